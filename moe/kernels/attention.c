/* Causal grouped-query attention on the CPU, without a T x T matrix: FlashAttention-2 (Dao 2023) in blocks that stay in
 * the cache, read from the joined tensor of queries, keys and values and written back to it without transposes. All of
 * it is fp32 but, if asked for, the factors of its products: those are bf16 then.
 *
 * Scores stand transposed, keys down and queries across: the sums and maxima of the softmax then go down vectors of
 * queries and never across one. One thread owns a row's key head and the query heads that share it from start to end,
 * so no result depends on the number of threads.
 *
 * joined [rows, width, heads + 2 kv, dim], out [rows, width, heads, dim], lse [rows, heads, width] in powers of two.
 */
#include "tiles.h"

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
#define PAD 16      /* head sizes are padded to this with zeros: a multiple of every LANES and TILE */
#define HALF_PAD 32 /* what a product of bf16 takes */
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

/* [rows][columns] -> [columns][rows], times `scale`; both multiples of 16 */
static void turn(const float *restrict from, size rows, size columns, float scale, float *restrict to) {
    for (size r = 0; r < rows; r += 16)
        for (size c = 0; c < columns; c += 16)
            turn_square(from + r * columns + c, columns, to + c * rows + r, rows, scale);
}

/* [padded][QUERIES] -> `count` vectors of dim, each times its `scale`. Uses `room` [QUERIES][padded]. */
static void unturn(const float *restrict from, size count, size dim, size padded, const float *scale,
                   float *restrict room, float *to, size stride) {
    turn(from, padded, QUERIES, 1.0f, room);
    for (size q = 0; q < count; q++)
#pragma omp simd
        for (size d = 0; d < dim; d++) to[q * stride + d] = room[q * padded + d] * scale[q];
}

/* [rows][columns] -> [columns][rows] in bf16; both multiples of 16, `room` [columns][16] */
static void halve_turned(const float *restrict from, size rows, size columns, float *restrict room, bf16 *restrict to) {
    for (size r = 0; r < rows; r += 16) {
        turn(from + r * columns, 16, columns, 1.0f, room);
        for (size c = 0; c < columns; c++) halve(room + c * 16, 16, to + c * rows + r);
    }
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

static inline size padding(size dim, size half) { return round_up(dim, half ? HALF_PAD : PAD); }

/* Floats of scratch memory that one thread needs, half of a float for a bf16 number. */
size attention_scratch(size width, size dim, size backward, size half) {
    const size padded = padding(dim, half), keys = round_up(width, KEYS) * padded;
    if (backward) /* what backward_head and forward_head take, and k, v and their gradients before it */
        return 4 * keys + (2 * KEYS + 5 * padded) * QUERIES + half * (3 * keys + (3 * KEYS + 4 * padded) * QUERIES) / 2;
    return 2 * keys + (KEYS + 3 * padded) * QUERIES + half * (2 * keys + (KEYS + padded) * QUERIES) / 2;
}

/* What one query head needs to know of its place: rows of `stride` floats in joined, of `out_stride` in out. */
struct head {
    const float *k, *v; /* [keys][padded], packed */
    /* in bf16, or none: k and v as they lie, and [padded][keys]; of v's the first for the backward, the second for the
     * forward pass */
    const bf16 *k_half, *v_half, *k_turned, *v_turned;
    const int64_t *start;
    size width, dim, padded, stride, out_stride;
    float scale;
};

static void forward_head(const struct head *at, const float *from, float *out, float *lse, float *room) {
    const size padded = at->padded;
    const size keys = round_up(at->width, KEYS);
    float *scores = room, *q = scores + KEYS * QUERIES, *qt = q + padded * QUERIES, *ot = qt + padded * QUERIES;
    bf16 *scores_half = (bf16 *)(ot + padded * QUERIES), *qt_half = scores_half + KEYS * QUERIES;
    for (size query = 0; query < at->width; query += QUERIES) {
        const size count = MIN(QUERIES, at->width - query), first = first_key(at->start, query);
        float top[QUERIES], total[QUERIES], above[QUERIES], fade[QUERIES];
        pack(from + query * at->stride, at->stride, count, QUERIES, at->dim, padded, q);
        turn(q, QUERIES, padded, at->scale * LOG2E, qt);
        if (at->k_half) halve_pairs(qt, padded, QUERIES, qt_half);
        for (size i = 0; i < QUERIES; i++) above[i] = HIDDEN, total[i] = 0;
        for (size key = first; key < query + count; key += KEYS) {
            if (at->k_half)
                block_product(at->k_half + key * padded, padded, qt_half, scores, QUERIES, KEYS, QUERIES, padded, 0);
            else
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
            if (at->v_turned) {
                halve_pairs(scores, KEYS, QUERIES, scores_half);
                block_product(at->v_turned + key, keys, scores_half, ot, QUERIES, padded, QUERIES, KEYS, key > first);
            } else
                product(at->v + key * padded, 1, padded, scores, QUERIES, ot, QUERIES, padded, QUERIES, KEYS,
                        key > first);
        }
        for (size i = 0; i < count; i++) {
            lse[query + i] = above[i] + log2f(total[i]);
            total[i] = 1.0f / total[i];
        }
        unturn(ot, count, at->dim, padded, total, q, out + query * at->out_stride, at->out_stride);
    }
}

/* d_from: the gradient of this head's queries; dk and dv [keys][padded] are added to, dk still without its scale. */
static void backward_head(const struct head *at, const float *from, const float *out, const float *d_out,
                          const float *lse, float *d_from, float *dk, float *dv, float *room) {
    const size padded = at->padded, area = padded * QUERIES;
    float *p = room, *dp = p + KEYS * QUERIES, *q = dp + KEYS * QUERIES, *qt = q + area, *dot = qt + area;
    float *d_o = dot + area, *dqt = d_o + area;
    const size keys = round_up(at->width, KEYS);
    bf16 *p_half = (bf16 *)(dqt + area), *dp_half = p_half + KEYS * QUERIES, *dp_pairs = dp_half + KEYS * QUERIES;
    bf16 *qt_half = dp_pairs + KEYS * QUERIES, *dot_half = qt_half + area, *q_half = dot_half + area;
    bf16 *d_o_half = q_half + area;
    for (size query = 0; query < at->width; query += QUERIES) {
        const size count = MIN(QUERIES, at->width - query), first = first_key(at->start, query);
        float level[QUERIES] = {0}, delta[QUERIES] = {0}, scale[QUERIES];
        pack(from + query * at->stride, at->stride, count, QUERIES, at->dim, padded, q);
        pack(d_out + query * at->out_stride, at->out_stride, count, QUERIES, at->dim, padded, d_o);
        turn(q, QUERIES, padded, at->scale * LOG2E, qt);
        turn(d_o, QUERIES, padded, 1.0f, dot);
        if (at->k_half) {
            halve_pairs(qt, padded, QUERIES, qt_half);
            halve_pairs(dot, padded, QUERIES, dot_half);
            halve_pairs(q, QUERIES, padded, q_half);
            halve_pairs(d_o, QUERIES, padded, d_o_half);
        }
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
            if (at->k_half) {
                block_product(at->k_half + key * padded, padded, qt_half, p, QUERIES, KEYS, QUERIES, padded, 0);
                block_product(at->v_half + key * padded, padded, dot_half, dp, QUERIES, KEYS, QUERIES, padded, 0);
            } else {
                product(k, padded, 1, qt, QUERIES, p, QUERIES, KEYS, QUERIES, padded, 0);
                product(v, padded, 1, dot, QUERIES, dp, QUERIES, KEYS, QUERIES, padded, 0);
            }
            hide(p, key, query, at->start, count);
            for (size j = 0; j < KEYS; j++)
#pragma omp simd
                for (size i = 0; i < QUERIES; i++) {
                    const float share = exponential2(p[j * QUERIES + i] - level[i]);
                    p[j * QUERIES + i] = share;
                    dp[j * QUERIES + i] = share * (dp[j * QUERIES + i] - delta[i]);
                }
            if (at->k_half) {
                halve(p, KEYS * QUERIES, p_half);
                halve(dp, KEYS * QUERIES, dp_half);
                halve_pairs(dp, KEYS, QUERIES, dp_pairs);
                block_product(p_half, QUERIES, d_o_half, dv + key * padded, padded, KEYS, padded, QUERIES, 1);
                block_product(dp_half, QUERIES, q_half, dk + key * padded, padded, KEYS, padded, QUERIES, 1);
                block_product(at->k_turned + key, keys, dp_pairs, dqt, QUERIES, padded, QUERIES, KEYS, key > first);
            } else {
                product(p, QUERIES, 1, d_o, padded, dv + key * padded, padded, KEYS, padded, QUERIES, 1);
                product(dp, QUERIES, 1, q, padded, dk + key * padded, padded, KEYS, padded, QUERIES, 1);
                product(k, 1, padded, dp, QUERIES, dqt, QUERIES, padded, QUERIES, KEYS, key > first);
            }
        }
        unturn(dqt, count, at->dim, padded, scale, q, d_from + query * at->stride, at->stride);
    }
}

/* start [rows, width]: the first key that each query sees, never less than the query before it; or none. `half` (0 or
 * 1): factors are rounded to bf16. */
void attention(const float *joined, const int64_t *start, float *out, float *lse, float *scratch, size rows,
               size width, size heads, size kv, size dim, size half, int threads) {
    const size padded = padding(dim, half), stride = (heads + 2 * kv) * dim, group = heads / kv;
    const size keys = round_up(width, KEYS), each = attention_scratch(width, dim, 0, half);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width * dim > SMALL)
    for (size task = 0; task < rows * kv; task++) {
        const size row = task / kv, shared = task % kv;
        float *k = scratch + omp_get_thread_num() * each, *v = k + keys * padded, *room = v + keys * padded;
        bf16 *k_half = NULL, *v_turned = NULL;
        char before[64] __attribute__((aligned(64)));
        const float *from = joined + row * width * stride;
        pack(from + (heads + shared) * dim, stride, width, keys, dim, padded, k);
        pack(from + (heads + kv + shared) * dim, stride, width, keys, dim, padded, v);
        if (half) {
            k_half = (bf16 *)(room + (KEYS + 3 * padded) * QUERIES) + (KEYS + padded) * QUERIES;
            v_turned = k_half + keys * padded;
            halve(k, keys * padded, k_half);
            halve_turned(v, keys, padded, room, v_turned);
            tiles_begin(before);
        }
        const struct head at = {k, v, k_half, NULL, NULL, v_turned, start ? start + row * width : NULL, width, dim,
                                padded, stride, heads * dim, 1.0f / sqrtf((float)dim)};
        for (size h = shared * group; h < (shared + 1) * group; h++)
            forward_head(&at, from + h * dim, out + (row * width * heads + h) * dim, lse + (row * heads + h) * width,
                         room);
        if (half) tiles_end(before);
    }
}

/* d_joined: the gradient of joined, in its layout */
void attention_backward(const float *joined, const int64_t *start, const float *out, const float *lse,
                        const float *d_out, float *d_joined, float *scratch, size rows, size width, size heads,
                        size kv, size dim, size half, int threads) {
    const size padded = padding(dim, half), stride = (heads + 2 * kv) * dim, group = heads / kv;
    const size area = round_up(width, KEYS) * padded, each = attention_scratch(width, dim, 1, half);
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width * dim > SMALL)
    for (size task = 0; task < rows * kv; task++) {
        const size row = task / kv, shared = task % kv;
        float *k = scratch + omp_get_thread_num() * each, *v = k + area, *dk = v + area, *dv = dk + area;
        bf16 *k_half = NULL, *v_half = NULL, *k_turned = NULL;
        char before[64] __attribute__((aligned(64)));
        const float *from = joined + row * width * stride;
        float *to = d_joined + row * width * stride;
        pack(from + (heads + shared) * dim, stride, width, area / padded, dim, padded, k);
        pack(from + (heads + kv + shared) * dim, stride, width, area / padded, dim, padded, v);
        memset(dk, 0, 2 * area * sizeof(float));
        if (half) {
            k_half = (bf16 *)(dv + area + (2 * KEYS + 5 * padded) * QUERIES) + (3 * KEYS + 4 * padded) * QUERIES;
            v_half = k_half + area;
            k_turned = v_half + area;
            halve(k, area, k_half);
            halve(v, area, v_half);
            halve_turned(k, area / padded, padded, dv + area, k_turned);
            tiles_begin(before);
        }
        const struct head at = {k, v, k_half, v_half, k_turned, NULL, start ? start + row * width : NULL, width, dim,
                                padded, stride, heads * dim, 1.0f / sqrtf((float)dim)};
        for (size h = shared * group; h < (shared + 1) * group; h++) {
            const size cell = (row * width * heads + h) * dim;
            backward_head(&at, from + h * dim, out + cell, d_out + cell, lse + (row * heads + h) * width, to + h * dim,
                          dk, dv, dv + area);
        }
        if (half) tiles_end(before);
        for (size t = 0; t < width; t++)
            for (size d = 0; d < dim; d++) {
                to[t * stride + (heads + shared) * dim + d] = dk[t * padded + d] * at.scale;
                to[t * stride + (heads + kv + shared) * dim + d] = dv[t * padded + d];
            }
    }
}
