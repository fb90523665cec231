/* Products of a few rows with a weight matrix as it lies in memory, each sum always in the same order.
 *
 * y[r][o] = sum_k x[r][k] w[o][k]: lane l of a vector of sixteen adds up k = l, l + 16, ..., and the lanes are added in
 * one tree. So a number of y depends on its row of x alone, never on how many rows are multiplied together: what is
 * decoded is the same in any company.
 */
#include "../native.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 16
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS static inline __attribute__((always_inline))

#ifdef __AVX512F__
#define WIDE LANES /* numbers in a register */
#define BLOCK 16   /* vectors of sums kept in registers at once */
#else
#define WIDE 8
#define BLOCK 8
#endif
typedef float part __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));

enum { FP32, BF16, INT8 }; /* how a matrix is written */

typedef struct {
    const void *values;  /* [outputs, width] */
    const bf16 *scales;  /* [outputs], of INT8 */
    int kind;
} matrix;

static const size SIZES[] = {4, 2, 1};

ALWAYS size whole(size n) { return (n + LANES - 1) / LANES * LANES; }

ALWAYS part load(const void *from, size at, int kind) {
    if (kind == BF16) { /* GCC would convert both of these number by number */
        const void *halves = (const bf16 *)from + at;
#if defined(__AVX512F__)
        return (part)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(halves)), 16);
#elif defined(__AVX2__)
        return (part)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves)), 16);
#else
        typedef uint16_t half __attribute__((vector_size(WIDE * 2), aligned(2), may_alias));
        typedef uint32_t full __attribute__((vector_size(WIDE * 4)));
        return (part)(__builtin_convertvector(*(const half *)halves, full) << 16);
#endif
    }
    if (kind == INT8) {
        const void *bytes = (const int8_t *)from + at;
#if defined(__AVX512F__)
        return (part)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)));
#elif defined(__AVX2__)
        return (part)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes)));
#else
        typedef int8_t byte __attribute__((vector_size(WIDE), aligned(1), may_alias));
        return __builtin_convertvector(*(const byte *)bytes, part);
#endif
    }
    return *(const part *)((const float *)from + at);
}

/* The first n of sixteen, and zeros. */
ALWAYS row load_some(const void *from, size at, int kind, size n) {
    char room[64] = {0};
    row made;
    memcpy(room, (const char *)from + at * SIZES[kind], n * SIZES[kind]);
    UNROLL for (int l = 0; l < LANES; l += WIDE) ((part *)&made)[l / WIDE] = load(room, l, kind);
    return made;
}

/* Sixteen vectors to the sums of each, all in one tree: lane l with l + 8, then 4, 2, 1. */
#ifdef __AVX512F__
ALWAYS row sums(const row a[16]) {
    row b[8], c[4], d[2];
    UNROLL for (int r = 0; r < 8; r++) b[r] =
        __builtin_shufflevector(a[r], a[r + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
        __builtin_shufflevector(a[r], a[r + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    UNROLL for (int r = 0; r < 4; r++) c[r] =
        __builtin_shufflevector(b[r], b[r + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
        __builtin_shufflevector(b[r], b[r + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    UNROLL for (int r = 0; r < 2; r++) d[r] =
        __builtin_shufflevector(c[r], c[r + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
        __builtin_shufflevector(c[r], c[r + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return __builtin_shufflevector(d[0], d[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(d[0], d[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
#else
ALWAYS row sums(const row a[16]) {
    float lane[16][16], made[16];
    memcpy(lane, a, sizeof lane);
    for (int r = 0; r < 16; r++) {
        for (int l = 0; l < 8; l++) lane[r][l] += lane[r][l + 8];
        for (int l = 0; l < 4; l++) lane[r][l] += lane[r][l + 4];
        made[r] = (lane[r][0] + lane[r][2]) + (lane[r][1] + lane[r][3]);
    }
    return *(const row *)made;
}
#endif

/* The sum of one vector, in the same tree. */
ALWAYS float sum_of(row a) {
    float lane[16];
    memcpy(lane, &a, sizeof lane);
    for (int step = 8; step; step /= 2)
        for (int l = 0; l < step; l++) lane[l] += lane[l + step];
    return lane[0];
}

/* acc[r * step + o] of `rows` rows from `top` on and `outs` outputs from `first` on; a row of x is filled up with zeros. */
ALWAYS void block(const float *const *x, const void *const *w, int top, int rows, int first, int outs, int step,
                  size width, int kind, row *acc) {
    UNROLL for (int side = 0; side < LANES; side += WIDE) {
        part kept[BLOCK];
        UNROLL for (int i = 0; i < rows * outs; i++) kept[i] = (part){0};
        size at = 0;
        for (; at + LANES <= width; at += LANES) {
            part a[4];
            UNROLL for (int r = 0; r < rows; r++) a[r] = *(const part *)(x[top + r] + at + side);
            UNROLL for (int o = 0; o < outs; o++) {
                const part b = load(w[first + o], at + side, kind);
                UNROLL for (int r = 0; r < rows; r++) kept[r * outs + o] += a[r] * b;
            }
        }
        if (at < width) {
            UNROLL for (int o = 0; o < outs; o++) {
                const row b = load_some(w[first + o], at, kind, width - at);
                UNROLL for (int r = 0; r < rows; r++)
                    kept[r * outs + o] += *(const part *)(x[top + r] + at + side) * ((const part *)&b)[side / WIDE];
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int o = 0; o < outs; o++)
                ((part *)&acc[(top + r) * step + first + o])[side / WIDE] = kept[r * outs + o];
    }
}

/* `rows` x `outs` = 16 numbers of y. */
ALWAYS row tile(const float *const *x, const void *const *w, int rows, int outs, size width, int kind) {
    row acc[16];
    if (BLOCK == 16 && rows > 1)
        block(x, w, 0, rows, 0, outs, outs, width, kind, acc);
    else { /* fewer at a time: what there are registers for; and for one row as few streams from memory */
        const int high = rows > 1 ? 2 : 1, wide = (BLOCK == 16 ? 4 : BLOCK) / high;
        UNROLL for (int top = 0; top < rows; top += high)
            UNROLL for (int first = 0; first < outs; first += wide)
                block(x, w, top, high, first, wide, outs, width, kind, acc);
    }
    return sums(acc);
}

/* Sixteen outputs, of which `outs` are real, for all rows; a row r of x is x + index[r] * x_row. */
ALWAYS void strip(const void *const *w, const float *scale, size outs, size width, int kind, const float *x, size x_row,
                  const int32_t *index, size rows, float *y, size y_row) {
    /* while these outputs are computed for many rows, the next ones are on their way */
    const size bytes = outs * width * SIZES[kind], share = (bytes * 4 / (16 * (rows / 4) + 1) + 63) / 64 * 64;
    const char *next = (const char *)w[0] + bytes, *beyond = rows < 4 ? next : next + bytes;
    size r = 0;
#define TILES(high)                                                                                                    \
    for (; r + high <= rows; r += high) {                                                                              \
        const float *from[high];                                                                                       \
        UNROLL for (int i = 0; i < high; i++) from[i] = x + (index ? index[r + i] : r + i) * x_row;                    \
        for (size o = 0; o < outs; o += 16 / high) {                                                                   \
            for (const char *to = MIN(next + share, beyond); next < to; next += 64) __builtin_prefetch(next, 0, 2);    \
            float made[16];                                                                                            \
            const row all = tile(from, w + o, high, 16 / high, width, kind);                                           \
            memcpy(made, &all, sizeof made);                                                                           \
            for (int i = 0; i < high; i++)                                                                             \
                for (size j = 0; j < MIN(16 / high, outs - o); j++)                                                    \
                    y[(r + i) * y_row + o + j] = made[i * (16 / high) + j] * (kind == INT8 ? scale[o + j] : 1.0f);     \
        }                                                                                                              \
    }
    TILES(4)
    TILES(2)
    TILES(1)
#undef TILES
}

/* Outputs [first, last) of y = x w^T, at most sixteen: y[r][0] is output `first`. */
static void product(matrix w, size first, size last, size width, const float *x, size x_row, const int32_t *index,
                    size rows, float *y, size y_row) {
    const void *from[16];
    float scale[16];
    for (size o = 0; o < 16; o++) { /* those beyond the end are computed and not written */
        const size at = MIN(first + o, last - 1);
        from[o] = (const char *)w.values + at * width * SIZES[w.kind];
        scale[o] = w.kind == INT8 ? from_bf16(w.scales[at]) : 1.0f;
    }
    const size outs = last - first;
    if (w.kind == FP32)
        strip(from, scale, outs, width, FP32, x, x_row, index, rows, y, y_row);
    else if (w.kind == BF16)
        strip(from, scale, outs, width, BF16, x, x_row, index, rows, y, y_row);
    else
        strip(from, scale, outs, width, INT8, x, x_row, index, rows, y, y_row);
}
