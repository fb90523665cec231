/* Products of small blocks of bf16, sums in fp32: by the tiles of AMX, or number by number where there are none.
 *
 * c[m][n] (+)= sum_k a[m][k] b[k][n]. `a` lies as written, `b` with two rows interleaved: [k / 2][n][2]. m is a
 * multiple of 16, n and k of 32.
 */
#include "native.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023 /* arch_prctl: a process asks before it uses the tiles' registers */
#define TILE_DATA 18

static int have_tiles(void) {
    static int known; /* 1 yes, 2 no */
    if (!known) known = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) ? 2 : 1;
    return known == 1;
}

/* The thread may be another library's as well: what it had set up is put back. */
static void tiles_begin(char before[64]) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } wanted = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    if (!have_tiles()) return;
    _tile_storeconfig(before);
    _tile_loadconfig(&wanted);
}

static void tiles_end(const char before[64]) {
    if (!have_tiles()) return;
    if (before[0])
        _tile_loadconfig(before);
    else
        _tile_release();
}

static void product_by_tiles(const bf16 *a, size a_row, const bf16 *b, float *c, size c_row, size m, size n, size k,
                             int keep) {
    for (size top = 0; top < m; top += 16)
        for (size left = 0; left < n; left += 32) {
            float *to = c + top * c_row + left;
            if (keep) {
                _tile_loadd(0, to, c_row * 4);
                _tile_loadd(1, to + 16, c_row * 4);
            } else {
                _tile_zero(0);
                _tile_zero(1);
            }
            for (size i = 0; i < k; i += 32) {
                _tile_loadd(2, a + top * a_row + i, a_row * 2);
                _tile_loadd(3, b + i * n + 2 * left, n * 4);
                _tile_loadd(4, b + i * n + 2 * left + 32, n * 4);
                _tile_dpbf16ps(0, 2, 3);
                _tile_dpbf16ps(1, 2, 4);
            }
            _tile_stored(0, to, c_row * 4);
            _tile_stored(1, to + 16, c_row * 4);
        }
}

/* bf16 as it lies; `count` is a multiple of 16 */
static inline void halve(const float *restrict from, size count, bf16 *restrict to) {
    for (size i = 0; i < count; i += 16)
        _mm256_storeu_si256((void *)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
}

/* [rows][columns] in bf16 with two rows interleaved; rows are even, columns a multiple of 16 */
static inline void halve_pairs(const float *restrict from, size rows, size columns, bf16 *restrict to) {
    for (size r = 0; r < rows; r += 2, from += 2 * columns)
        for (size i = 0; i < columns; i += 16, to += 32) {
            const __m256i even = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
            const __m256i odd = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + columns + i));
            const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
            _mm512_storeu_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(even), high));
        }
}

#else

static inline void halve(const float *restrict from, size count, bf16 *restrict to) {
    for (size i = 0; i < count; i++) to[i] = to_bf16(from[i]);
}

static inline void halve_pairs(const float *restrict from, size rows, size columns, bf16 *restrict to) {
    for (size r = 0; r < rows; r += 2, from += 2 * columns)
        for (size i = 0; i < columns; i++, to += 2) to[0] = to_bf16(from[i]), to[1] = to_bf16(from[columns + i]);
}

static int have_tiles(void) { return 0; }

static void tiles_begin(char before[64]) {}

static void tiles_end(const char before[64]) {}

static void product_by_tiles(const bf16 *a, size a_row, const bf16 *b, float *c, size c_row, size m, size n, size k,
                             int keep) {}

#endif

static void block_product(const bf16 *a, size a_row, const bf16 *b, float *c, size c_row, size m, size n, size k,
                          int keep) {
    if (have_tiles()) {
        product_by_tiles(a, a_row, b, c, c_row, m, n, k, keep);
        return;
    }
    for (size i = 0; i < m; i++)
        for (size j = 0; j < n; j++) {
            float sum = 0;
            for (size l = 0; l < k; l++)
                sum += from_bf16(a[i * a_row + l]) * from_bf16(b[(l / 2 * n + j) * 2 + l % 2]);
            c[i * c_row + j] = keep ? c[i * c_row + j] + sum : sum;
        }
}
