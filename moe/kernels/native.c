/* The passes of a training step on the CPU that are bound by memory or by exp, each in one sweep over its rows.
 *
 * moe/kernels/native.py builds, loads and wraps this file; moe/{kernels,losses}.py hold the same arithmetic in torch.
 * Sums over rows go in blocks of fixed size, and a task belongs to one thread from start to end, so no result depends
 * on the number of threads.
 */
#include "native.h"

#define BLOCK 128 /* rows to a partial sum: part of the arithmetic, never to depend on the threads */

/* Shares out the rows of the loop that follows. */
#define PARALLEL(work) _Pragma(STRING(omp parallel for schedule(static) num_threads(threads) if ((work) > SMALL)))
#define STRING(text) #text

void exponentials(const float *x, float *y, size count, int threads) {
    PARALLEL(count)
    for (size i = 0; i < count; i++) y[i] = exponential(x[i]);
}

#define NUMBER float
#define NAMED(pass) pass##_fp32
#define READ(x) (x)
#define WRITE(x) (x)
#include "passes.h"

#define NUMBER bf16
#define NAMED(pass) pass##_bf16
#define READ(x) from_bf16(x)
#define WRITE(x) to_bf16(x)
#include "passes.h"

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
void cross_entropy_fp32(float *logits, const int64_t *target, double *loss, size rows, size real, size vocabulary,
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

/* The same in bf16; e^x is computed twice, for its sum and for its share of that. */
void cross_entropy_bf16(bf16 *logits, const int64_t *target, double *loss, size rows, size real, size vocabulary,
                        int threads) {
    PARALLEL(rows * vocabulary)
    for (size r = 0; r < rows; r++) {
        bf16 *restrict x = logits + r * vocabulary;
        if (r >= real) {
            memset(x, 0, vocabulary * sizeof(bf16));
            continue;
        }
        const float wanted = from_bf16(x[target[r]]);
        float top = from_bf16(x[0]), sum = 0;
#pragma omp simd reduction(max : top)
        for (size i = 0; i < vocabulary; i++) top = from_bf16(x[i]) > top ? from_bf16(x[i]) : top;
#pragma omp simd reduction(+ : sum)
        for (size i = 0; i < vocabulary; i++) sum += exponential(from_bf16(x[i]) - top);
        const float share = 1.0f / sum, slope = exponential(wanted - top) * share - 1.0f;
#pragma omp simd
        for (size i = 0; i < vocabulary; i++) x[i] = to_bf16(exponential(from_bf16(x[i]) - top) * share);
        x[target[r]] = to_bf16(slope);
        loss[r] = log((double)sum) + (double)top - (double)wanted;
    }
}

/* x [rows, columns] -> y [columns, rows] */
void transpose(const float *x, float *y, size rows, size columns, int threads) {
    PARALLEL(rows * columns)
    for (size strip = 0; strip < rows; strip += 64) /* whole cache lines of y in every pass */
        for (size left = 0; left < columns; left += 16)
            for (size top = strip; top < MIN(rows, strip + 64); top += 16) {
                const size bottom = MIN(rows, top + 16), right = MIN(columns, left + 16);
                if (bottom - top == 16 && right - left == 16)
                    turn_square(x + top * columns + left, columns, y + left * rows + top, rows, 1.0f);
                else
                    for (size r = top; r < bottom; r++)
                        for (size c = left; c < right; c++) y[c * rows + r] = x[r * columns + c];
            }
}
