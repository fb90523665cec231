/* What native.c, attention.c and decode/step.c share. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t size;

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define SMALL 16384       /* elements below which waking the other threads costs more than it saves */
#define ROUND 12582912.0f /* added to a float, it leaves a whole number in the last bits */

/* 2^n for a whole n in [-126, 127], given as n + ROUND */
static inline float power_of_two(float rounded) {
    union {
        float value;
        uint32_t bits;
    } power = {rounded};
    power.bits = (power.bits + 127) << 23;
    return power.value;
}

/* e^x for x <= 88, 0 below -87; NaN stays NaN. Cody and Waite's reduction, the polynomial of Moshier's Cephes. */
static inline float exponential(float x) {
    const float kept = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float rounded = kept * 1.44269504f + ROUND;
    const float n = rounded - ROUND;
    const float r = kept - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return x < -87.0f ? 0.0f : p * power_of_two(rounded);
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

typedef uint16_t bf16; /* the upper half of an fp32 number */

static inline float from_bf16(bf16 x) {
    union {
        uint32_t bits;
        float value;
    } number = {(uint32_t)x << 16};
    return number.value;
}

/* Rounded to the nearest, to the even one of two; NaN stays NaN. */
static inline bf16 to_bf16(float x) {
    union {
        float value;
        uint32_t bits;
    } number = {x};
    const uint32_t rounded = (number.bits + 0x7fff + (number.bits >> 16 & 1)) >> 16;
    return x != x ? 0x7fc0 : (bf16)rounded;
}

typedef float row __attribute__((vector_size(64), aligned(4), may_alias));

/* Lines r and r + 8 of sixteen, shuffled like cards: after four rounds rows are columns. */
#define INTERLEAVE(from, to)                                                                                           \
    _Pragma("GCC unroll 8") for (int r = 0; r < 8; r++) {                                                              \
        to[2 * r] = __builtin_shufflevector(from[r], from[r + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,  \
                                            23);                                                                       \
        to[2 * r + 1] = __builtin_shufflevector(from[r], from[r + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,    \
                                                14, 30, 15, 31);                                                       \
    }

/* y [16 columns][16 rows] = scale * x [16 rows][16 columns], in memory rows of `x_row` and `y_row` floats */
static inline void turn_square(const float *x, size x_row, float *y, size y_row, float scale) {
    row a[16], b[16];
    _Pragma("GCC unroll 16") for (int r = 0; r < 16; r++) a[r] = *(const row *)(x + r * x_row);
    INTERLEAVE(a, b)
    INTERLEAVE(b, a)
    INTERLEAVE(a, b)
    INTERLEAVE(b, a)
    _Pragma("GCC unroll 16") for (int r = 0; r < 16; r++) *(row *)(y + r * y_row) = a[r] * scale;
}
