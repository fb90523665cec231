/* The passes of a training step on the CPU that are bound by memory or by exp, fp32, each in one sweep over its rows.
 *
 * moe/kernels/native.py builds, loads and wraps this file; moe/{experts,norm,losses}.py hold the same arithmetic in torch. Sums
 * over rows go in blocks of fixed size, and a task belongs to one thread from start to end, so no result depends on the
 * number of threads.
 */
#include "native.h"

#define BLOCK 128 /* rows to a partial sum: part of the arithmetic, never to depend on the threads */

/* Shares out the rows of the loop that follows. */
#define PARALLEL(work) _Pragma(STRING(omp parallel for schedule(static) num_threads(threads) if ((work) > SMALL)))
#define STRING(text) #text

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

void exponentials(const float *x, float *y, size count, int threads) {
    PARALLEL(count)
    for (size i = 0; i < count; i++) y[i] = exponential(x[i]);
}

/* hidden [rows, 2 inner] (gate first) -> active [rows, inner] = silu(gate) * up */
void swiglu(const float *hidden, float *active, size rows, size inner, int threads) {
    PARALLEL(rows * inner)
    for (size r = 0; r < rows; r++) {
        const float *restrict gate = hidden + r * 2 * inner, *restrict up = gate + inner;
        float *restrict to = active + r * inner;
#pragma omp simd
        for (size i = 0; i < inner; i++) to[i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
}

/* `active` holds the gradient of `active` before the call and `active` itself after it. */
void swiglu_backward(const float *hidden, float *active, float *d_hidden, size rows, size inner, int threads) {
    PARALLEL(rows * inner)
    for (size r = 0; r < rows; r++) {
        const float *restrict gate = hidden + r * 2 * inner, *restrict up = gate + inner;
        float *restrict d_gate = d_hidden + r * 2 * inner, *restrict d_up = d_gate + inner;
        float *restrict both = active + r * inner;
#pragma omp simd
        for (size i = 0; i < inner; i++) {
            const float slope = both[i], s = sigmoid(gate[i]), silu = gate[i] * s;
            d_gate[i] = slope * up[i] * (s + silu * (1.0f - s));
            d_up[i] = slope * silu;
            both[i] = silu * up[i];
        }
    }
}

/* d_out[r] = weight[r] * dy[token[r]], d_weight[r] = <out[r], dy[token[r]]>; rows of `width` */
void combine_backward(const float *dy, const float *out, const int64_t *token, const float *weight, float *d_out,
                      float *d_weight, size rows, size width, int threads) {
    PARALLEL(rows * width)
    for (size r = 0; r < rows; r++) {
        const float *restrict from = dy + token[r] * width, *restrict y = out + r * width;
        float *restrict to = d_out + r * width;
        const float w = weight[r];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size i = 0; i < width; i++) {
            sum += y[i] * from[i];
            to[i] = w * from[i];
        }
        d_weight[r] = sum;
    }
}

static inline float inverse_rms(const float *restrict x, size width, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size i = 0; i < width; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)width + eps);
}

/* dx of y = weight * scale * x, and weight's gradient added to `dw`. `dy` may be `dx`. */
static inline void norm_slope(const float *dy, const float *restrict x, const float *restrict weight, float scale,
                              float *dx, float *restrict dw, size width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size i = 0; i < width; i++) {
        const float product = dy[i] * x[i] * scale;
        sum += product * weight[i];
        dw[i] += product;
    }
    const float mean = sum / (float)width * scale;
#pragma omp simd
    for (size i = 0; i < width; i++) dx[i] = scale * (dy[i] * weight[i] - x[i] * mean);
}

/* The sum of partial[blocks, width] over its blocks, in their order. */
static void add_up(const float *partial, float *total, size blocks, size width) {
    memset(total, 0, width * sizeof(float));
    for (size b = 0; b < blocks; b++)
#pragma omp simd
        for (size i = 0; i < width; i++) total[i] += partial[b * width + i];
}

size blocks_of(size rows) { return (rows + BLOCK - 1) / BLOCK; }

/* x [rows, width] -> y = weight * scale * x, scale [rows] */
void rms_norm(const float *x, const float *weight, float *y, float *scale, size rows, size width, float eps,
              int threads) {
    PARALLEL(rows * width)
    for (size r = 0; r < rows; r++) {
        const float *restrict from = x + r * width;
        float *restrict to = y + r * width;
        const float s = scale[r] = inverse_rms(from, width, eps);
#pragma omp simd
        for (size i = 0; i < width; i++) to[i] = from[i] * s * weight[i];
    }
}

/* partial: room for [blocks_of(rows), width] */
void rms_norm_backward(const float *dy, const float *x, const float *weight, const float *scale, float *dx, float *dw,
                       float *partial, size rows, size width, int threads) {
    const size blocks = blocks_of(rows);
    PARALLEL(rows * width)
    for (size b = 0; b < blocks; b++) {
        float *sum = partial + b * width;
        memset(sum, 0, width * sizeof(float));
        for (size r = b * BLOCK; r < MIN(rows, (b + 1) * BLOCK); r++)
            norm_slope(dy + r * width, x + r * width, weight, scale[r], dx + r * width, sum, width);
    }
    add_up(partial, dw, blocks, width);
}

/* The first `turned` heads of x [rows, heads, dim] normalised where there is a weight [turned, dim] and rotated by the
 * angles [rows, dim / 2]; the others copied. scale: [rows, turned], or none with the weight. */
void norm_turn(const float *x, const float *cosine, const float *sine, const float *weight, float *y, float *scale,
               size rows, size heads, size turned, size dim, float eps, int threads) {
    const size half = dim / 2;
    PARALLEL(rows * heads * dim)
    for (size r = 0; r < rows; r++) {
        const float *restrict c = cosine + r * half, *restrict s = sine + r * half;
        for (size h = 0; h < turned; h++) {
            const float *restrict from = x + (r * heads + h) * dim, *restrict w = weight + h * dim;
            float *restrict to = y + (r * heads + h) * dim;
            if (weight) {
                const float k = scale[r * turned + h] = inverse_rms(from, dim, eps);
#pragma omp simd
                for (size i = 0; i < half; i++) {
                    const float a = from[i] * k * w[i], b = from[half + i] * k * w[half + i];
                    to[i] = a * c[i] - b * s[i];
                    to[half + i] = b * c[i] + a * s[i];
                }
            } else {
#pragma omp simd
                for (size i = 0; i < half; i++) {
                    to[i] = from[i] * c[i] - from[half + i] * s[i];
                    to[half + i] = from[half + i] * c[i] + from[i] * s[i];
                }
            }
        }
        memcpy(y + (r * heads + turned) * dim, x + (r * heads + turned) * dim, (heads - turned) * dim * sizeof(float));
    }
}

/* partial: room for [blocks_of(rows), turned, dim], or none with the weight */
void norm_turn_backward(const float *dy, const float *x, const float *cosine, const float *sine, const float *weight,
                        const float *scale, float *dx, float *dw, float *partial, size rows, size heads, size turned,
                        size dim, int threads) {
    const size half = dim / 2, width = turned * dim, blocks = blocks_of(rows);
    PARALLEL(rows * heads * dim)
    for (size b = 0; b < blocks; b++) {
        float *sum = partial + b * width;
        if (weight) memset(sum, 0, width * sizeof(float));
        for (size r = b * BLOCK; r < MIN(rows, (b + 1) * BLOCK); r++) {
            const float *restrict c = cosine + r * half, *restrict s = sine + r * half;
            for (size h = 0; h < turned; h++) {
                const size at = (r * heads + h) * dim;
                const float *restrict from = dy + at;
                float *restrict to = dx + at;
#pragma omp simd
                for (size i = 0; i < half; i++) {
                    to[i] = from[i] * c[i] + from[half + i] * s[i];
                    to[half + i] = from[half + i] * c[i] - from[i] * s[i];
                }
                if (weight) norm_slope(to, x + at, weight + h * dim, scale[r * turned + h], to, sum + h * dim, dim);
            }
            const size rest = (r * heads + turned) * dim;
            memcpy(dx + rest, dy + rest, (heads - turned) * dim * sizeof(float));
        }
    }
    if (weight) add_up(partial, dw, blocks, width);
}

/* logits [rows, vocabulary] -> their slope softmax - onehot, in place; loss [real] = -log p(target). Rows from `real`
 * on are padding and become 0. */
void cross_entropy(float *logits, const int64_t *target, double *loss, size rows, size real, size vocabulary,
                   int threads) {
    PARALLEL(rows * vocabulary)
    for (size r = 0; r < rows; r++) {
        float *restrict x = logits + r * vocabulary;
        if (r >= real) {
            memset(x, 0, vocabulary * sizeof(float));
            continue;
        }
        const float wanted = x[target[r]];
        float top = x[0], sum = 0;
#pragma omp simd reduction(max : top)
        for (size i = 0; i < vocabulary; i++) top = x[i] > top ? x[i] : top;
#pragma omp simd reduction(+ : sum)
        for (size i = 0; i < vocabulary; i++) sum += x[i] = exponential(x[i] - top);
        const float share = 1.0f / sum;
#pragma omp simd
        for (size i = 0; i < vocabulary; i++) x[i] *= share;
        x[target[r]] -= 1.0f;
        loss[r] = log((double)sum) + (double)top - (double)wanted;
    }
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

static inline void transpose_square(const float *from, size columns, float *to, size rows) {
    row a[16], b[16];
    _Pragma("GCC unroll 16") for (int r = 0; r < 16; r++) a[r] = *(const row *)(from + r * columns);
    INTERLEAVE(a, b)
    INTERLEAVE(b, a)
    INTERLEAVE(a, b)
    INTERLEAVE(b, a)
    _Pragma("GCC unroll 16") for (int r = 0; r < 16; r++) *(row *)(to + r * rows) = a[r];
}

/* x [rows, columns] -> y [columns, rows] */
void transpose(const float *x, float *y, size rows, size columns, int threads) {
    PARALLEL(rows * columns)
    for (size strip = 0; strip < rows; strip += 64) /* whole cache lines of y in every pass */
        for (size left = 0; left < columns; left += 16)
            for (size top = strip; top < MIN(rows, strip + 64); top += 16) {
                const size bottom = MIN(rows, top + 16), right = MIN(columns, left + 16);
                if (bottom - top == 16 && right - left == 16)
                    transpose_square(x + top * columns + left, columns, y + left * rows + top, rows);
                else
                    for (size r = top; r < bottom; r++)
                        for (size c = left; c < right; c++) y[c * rows + r] = x[r * columns + c];
            }
}
