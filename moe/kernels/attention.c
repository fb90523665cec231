/* Causal grouped-query attention on the CPU, fp32, without a T x T matrix: FlashAttention-2 (Dao 2023) in tiles that
 * stay in the cache, read from the joined tensor of queries, keys and values and written back to it without transposes.
 *
 * Scores stand transposed, keys down and queries across: the sums and maxima of the softmax then go down vectors of
 * queries and never across one. One thread owns a row's key head and the query heads that share it from start to end,
 * so no result depends on the number of threads.
 *
 * joined [rows, width, heads + 2 kv, dim], out [rows, width, heads, dim], lse [rows, heads, width] in powers of two.
 */
#include "native.h"

#include <omp.h>

#if defined(__AVX512F__)
#define LANES 16
#define TILE 8 /* rows of a tile whose sums stay in registers */
#elif defined(__AVX__)
#define LANES 8
#define TILE 4
#else
#define LANES 4
#define TILE 8
#endif
#define QUERIES 64
#define KEYS 64
#define PAD 16 /* head sizes are padded to this with zeros: a multiple of every LANES and TILE */
#define HIDDEN -1e30f
#define LOG2E 1.44269504f

typedef float vector __attribute__((vector_size(4 * LANES), may_alias));

/* 2^x for x <= 0, 0 below -126; NaN stays NaN. Taylor's polynomial of 2^f, |f| <= 1/2. */
static inline float exponential2(float x) {
    const float kept = x < -126.0f ? -126.0f : x;
    const float rounded = kept + ROUND;
    const float f = kept - (rounded - ROUND);
    float p = 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return x < -126.0f ? 0.0f : p * power_of_two(rounded);
}

/* TILE rows and `columns` vectors of a product. What c held is added last: a long sum is then a sum of short ones. */
#define PRODUCT_TILE(columns)                                                                                          \
    vector sum[TILE][columns] = {0};                                                                                   \
    for (size i = 0; i < k; i++) {                                                                                     \
        const vector *row = (const vector *)(b + i * b_row + column);                                                  \
        _Pragma("GCC unroll 8") for (int r = 0; r < TILE; r++) {                                                       \
            const float one = from[r * down + i * across];                                                             \
            _Pragma("GCC unroll 2") for (int v = 0; v < columns; v++) sum[r][v] += one * row[v];                       \
        }                                                                                                              \
    }                                                                                                                  \
    _Pragma("GCC unroll 8") for (int r = 0; r < TILE; r++) {                                                           \
        vector *to = (vector *)(c + (top + r) * c_row + column);                                                       \
        _Pragma("GCC unroll 2") for (int v = 0; v < columns; v++) {                                                    \
            if (keep) sum[r][v] += to[v];                                                                              \
            to[v] = sum[r][v];                                                                                         \
        }                                                                                                              \
    }

/* c[m][n] (+)= sum_k a(m, k) * b[k][n] with a(m, k) = a[m * down + k * across] */
static inline __attribute__((always_inline)) void product(const float *restrict a, size down, size across,
                                                          const float *restrict b, size b_row, float *restrict c,
                                                          size c_row, size m, size n, size k, int keep) {
    for (size top = 0; top < m; top += TILE) {
        const float *from = a + top * down;
        size column = 0;
        for (; column + 2 * LANES <= n; column += 2 * LANES) {
            PRODUCT_TILE(2)
        }
        for (; column < n; column += LANES) {
            PRODUCT_TILE(1)
        }
    }
}

/* One head's `count` vectors, `stride` floats apart, to [rows][padded] with zeros beside and below. */
static void pack(const float *from, size stride, size count, size rows, size dim, size padded, float *restrict to) {
    for (size r = 0; r < rows; r++, to += padded) {
        const size real = r < count ? dim : 0;
        memcpy(to, from + (r < count ? r * stride : 0), real * sizeof(float));
        memset(to + real, 0, (padded - real) * sizeof(float));
    }
}

/* [QUERIES][padded] -> [padded][QUERIES], times `scale` */
static void transpose(const float *restrict from, size padded, float scale, float *restrict to) {
    for (size d = 0; d < padded; d++)
#pragma omp simd
        for (size q = 0; q < QUERIES; q++) to[d * QUERIES + q] = from[q * padded + d] * scale;
}

/* [padded][QUERIES] -> `count` vectors of dim, each times its `scale` */
static void untranspose(const float *restrict from, size count, size dim, const float *scale, float *to, size stride) {
    for (size q = 0; q < count; q++)
        for (size d = 0; d < dim; d++) to[q * stride + d] = from[d * QUERIES + q] * scale[q];
}

/* scores [KEYS][QUERIES] of keys from `key` on and queries from `query` on: no query sees a later key, nor one before
 * its start. Padding lies behind the last key and so is hidden from every real query. */
static void hide(float *restrict scores, size key, size query, const int64_t *restrict start, size count) {
    if (key + KEYS > query)
        for (size j = 0; j < KEYS; j++)
#pragma omp simd
            for (size q = 0; q < QUERIES; q++)
                scores[j * QUERIES + q] = key + j > query + q ? HIDDEN : scores[j * QUERIES + q];
    if (start && start[query + count - 1] > key)
        for (size q = 0; q < count; q++)
            for (size j = 0; j < MIN(KEYS, start[query + q] - key); j++) scores[j * QUERIES + q] = HIDDEN;
}

static inline size first_key(const int64_t *start, size query) { return start ? start[query] / KEYS * KEYS : 0; }

static inline size round_up(size n, size unit) { return (n + unit - 1) / unit * unit; }

/* Floats of scratch memory that one thread needs. */
size attention_scratch(size width, size dim, int backward) {
    const size padded = round_up(dim, PAD), keys = round_up(width, KEYS) * padded;
    return backward ? 4 * keys + (2 * KEYS + 5 * padded) * QUERIES : 2 * keys + (KEYS + 3 * padded) * QUERIES;
}

/* What one query head needs to know of its place: rows of `stride` floats in joined, of `out_stride` in out. */
struct head {
    const float *k, *v; /* [keys][padded], packed */
    const int64_t *start;
    size width, dim, padded, stride, out_stride;
    float scale;
};

static void forward_head(const struct head *at, const float *from, float *out, float *lse, float *room) {
    const size padded = at->padded;
    float *scores = room, *q = scores + KEYS * QUERIES, *qt = q + padded * QUERIES, *ot = qt + padded * QUERIES;
    for (size query = 0; query < at->width; query += QUERIES) {
        const size count = MIN(QUERIES, at->width - query), first = first_key(at->start, query);
        float top[QUERIES], total[QUERIES], above[QUERIES], fade[QUERIES];
        pack(from + query * at->stride, at->stride, count, QUERIES, at->dim, padded, q);
        transpose(q, padded, at->scale * LOG2E, qt);
        for (size i = 0; i < QUERIES; i++) above[i] = HIDDEN, total[i] = 0;
        for (size key = first; key < query + count; key += KEYS) {
            product(at->k + key * padded, padded, 1, qt, QUERIES, scores, QUERIES, KEYS, QUERIES, padded, 0);
            hide(scores, key, query, at->start, count);
            memcpy(top, above, sizeof top);
            for (size j = 0; j < KEYS; j++)
#pragma omp simd
                for (size i = 0; i < QUERIES; i++)
                    above[i] = scores[j * QUERIES + i] > above[i] ? scores[j * QUERIES + i] : above[i];
#pragma omp simd
            for (size i = 0; i < QUERIES; i++) total[i] *= fade[i] = exponential2(top[i] - above[i]);
            for (size j = 0; j < KEYS; j++)
#pragma omp simd
                for (size i = 0; i < QUERIES; i++)
                    total[i] += scores[j * QUERIES + i] = exponential2(scores[j * QUERIES + i] - above[i]);
            for (size d = 0; key > first && d < padded; d++)
#pragma omp simd
                for (size i = 0; i < QUERIES; i++) ot[d * QUERIES + i] *= fade[i];
            product(at->v + key * padded, 1, padded, scores, QUERIES, ot, QUERIES, padded, QUERIES, KEYS, key > first);
        }
        for (size i = 0; i < count; i++) {
            lse[query + i] = above[i] + log2f(total[i]);
            total[i] = 1.0f / total[i];
        }
        untranspose(ot, count, at->dim, total, out + query * at->out_stride, at->out_stride);
    }
}

/* d_from: the gradient of this head's queries; dk and dv [keys][padded] are added to, dk still without its scale. */
static void backward_head(const struct head *at, const float *from, const float *out, const float *d_out,
                          const float *lse, float *d_from, float *dk, float *dv, float *room) {
    const size padded = at->padded, area = padded * QUERIES;
    float *p = room, *dp = p + KEYS * QUERIES, *q = dp + KEYS * QUERIES, *qt = q + area, *dot = qt + area;
    float *d_o = dot + area, *dqt = d_o + area;
    for (size query = 0; query < at->width; query += QUERIES) {
        const size count = MIN(QUERIES, at->width - query), first = first_key(at->start, query);
        float level[QUERIES] = {0}, delta[QUERIES] = {0}, scale[QUERIES];
        pack(from + query * at->stride, at->stride, count, QUERIES, at->dim, padded, q);
        pack(d_out + query * at->out_stride, at->out_stride, count, QUERIES, at->dim, padded, d_o);
        transpose(q, padded, at->scale * LOG2E, qt);
        transpose(d_o, padded, 1.0f, dot);
        for (size i = 0; i < QUERIES; i++) scale[i] = at->scale;
        for (size i = 0; i < count; i++) {
            const float *restrict y = out + (query + i) * at->out_stride, *restrict dy = d_o + i * padded;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (size d = 0; d < at->dim; d++) sum += y[d] * dy[d];
            delta[i] = sum;
            level[i] = lse[query + i];
        }
        for (size key = first; key < query + count; key += KEYS) {
            const float *k = at->k + key * padded, *v = at->v + key * padded;
            product(k, padded, 1, qt, QUERIES, p, QUERIES, KEYS, QUERIES, padded, 0);
            product(v, padded, 1, dot, QUERIES, dp, QUERIES, KEYS, QUERIES, padded, 0);
            hide(p, key, query, at->start, count);
            for (size j = 0; j < KEYS; j++)
#pragma omp simd
                for (size i = 0; i < QUERIES; i++) {
                    const float share = exponential2(p[j * QUERIES + i] - level[i]);
                    p[j * QUERIES + i] = share;
                    dp[j * QUERIES + i] = share * (dp[j * QUERIES + i] - delta[i]);
                }
            product(p, QUERIES, 1, d_o, padded, dv + key * padded, padded, KEYS, padded, QUERIES, 1);
            product(dp, QUERIES, 1, q, padded, dk + key * padded, padded, KEYS, padded, QUERIES, 1);
            product(k, 1, padded, dp, QUERIES, dqt, QUERIES, padded, QUERIES, KEYS, key > first);
        }
        untranspose(dqt, count, at->dim, scale, d_from + query * at->stride, at->stride);
    }
}

/* start [rows, width]: the first key that each query sees, never less than the query before it; or none. */
void attention(const float *joined, const int64_t *start, float *out, float *lse, float *scratch, size rows,
               size width, size heads, size kv, size dim, int threads) {
    const size padded = round_up(dim, PAD), stride = (heads + 2 * kv) * dim, group = heads / kv;
    const size keys = round_up(width, KEYS), each = attention_scratch(width, dim, 0);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width * dim > SMALL)
    for (size task = 0; task < rows * kv; task++) {
        const size row = task / kv, shared = task % kv;
        float *k = scratch + omp_get_thread_num() * each, *v = k + keys * padded, *room = v + keys * padded;
        const float *from = joined + row * width * stride;
        pack(from + (heads + shared) * dim, stride, width, keys, dim, padded, k);
        pack(from + (heads + kv + shared) * dim, stride, width, keys, dim, padded, v);
        const struct head at = {k, v, start ? start + row * width : NULL, width, dim, padded, stride, heads * dim,
                                1.0f / sqrtf((float)dim)};
        for (size h = shared * group; h < (shared + 1) * group; h++)
            forward_head(&at, from + h * dim, out + (row * width * heads + h) * dim, lse + (row * heads + h) * width,
                         room);
    }
}

/* d_joined: the gradient of joined, in its layout */
void attention_backward(const float *joined, const int64_t *start, const float *out, const float *lse,
                        const float *d_out, float *d_joined, float *scratch, size rows, size width, size heads,
                        size kv, size dim, int threads) {
    const size padded = round_up(dim, PAD), stride = (heads + 2 * kv) * dim, group = heads / kv;
    const size area = round_up(width, KEYS) * padded, each = attention_scratch(width, dim, 1);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width * dim > SMALL)
    for (size task = 0; task < rows * kv; task++) {
        const size row = task / kv, shared = task % kv;
        float *k = scratch + omp_get_thread_num() * each, *v = k + area, *dk = v + area, *dv = dk + area;
        const float *from = joined + row * width * stride;
        float *to = d_joined + row * width * stride;
        pack(from + (heads + shared) * dim, stride, width, area / padded, dim, padded, k);
        pack(from + (heads + kv + shared) * dim, stride, width, area / padded, dim, padded, v);
        memset(dk, 0, 2 * area * sizeof(float));
        const struct head at = {k, v, start ? start + row * width : NULL, width, dim, padded, stride, heads * dim,
                                1.0f / sqrtf((float)dim)};
        for (size h = shared * group; h < (shared + 1) * group; h++) {
            const size cell = (row * width * heads + h) * dim;
            backward_head(&at, from + h * dim, out + cell, d_out + cell, lse + (row * heads + h) * width, to + h * dim,
                          dk, dv, dv + area);
        }
        for (size t = 0; t < width; t++)
            for (size d = 0; d < dim; d++) {
                to[t * stride + (heads + shared) * dim + d] = dk[t * padded + d] * at.scale;
                to[t * stride + (heads + kv + shared) * dim + d] = dv[t * padded + d];
            }
    }
}
