/* The experts' passes over rows of NUMBER, float or bf16; native.c includes this for each. The arithmetic is fp32. */

/* hidden [rows, 2 inner] (gate first) -> active [rows, inner] = silu(gate) * up */
void NAMED(swiglu)(const NUMBER *hidden, NUMBER *active, size rows, size inner, int threads) {
    PARALLEL(rows * inner)
    for (size r = 0; r < rows; r++) {
        const NUMBER *restrict gate = hidden + r * 2 * inner, *restrict up = gate + inner;
        NUMBER *restrict to = active + r * inner;
#pragma omp simd
        for (size i = 0; i < inner; i++) {
            const float g = READ(gate[i]);
            to[i] = WRITE(g * sigmoid(g) * READ(up[i]));
        }
    }
}

/* Through y = weight * down active: `active` holds down^T dy before the call, and weight * active after it; d_weight[r]
 * is the product of the two without weight. */
void NAMED(swiglu_backward)(const NUMBER *hidden, const float *weight, NUMBER *active, NUMBER *d_hidden,
                            float *d_weight, size rows, size inner, int threads) {
    PARALLEL(rows * inner)
    for (size r = 0; r < rows; r++) {
        const NUMBER *restrict gate = hidden + r * 2 * inner, *restrict up = gate + inner;
        NUMBER *restrict d_gate = d_hidden + r * 2 * inner, *restrict d_up = d_gate + inner;
        NUMBER *restrict both = active + r * inner;
        const float w = weight[r];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size i = 0; i < inner; i++) {
            const float g = READ(gate[i]), u = READ(up[i]), given = READ(both[i]), slope = w * given;
            const float s = sigmoid(g), silu = g * s;
            sum += given * silu * u;
            d_gate[i] = WRITE(slope * u * (s + silu * (1.0f - s)));
            d_up[i] = WRITE(slope * silu);
            both[i] = WRITE(w * silu * u);
        }
        d_weight[r] = sum;
    }
}

/* y[t] = sum of weights[t, j] * rows[slot[t, j]], without weights their sum; fp32 [tokens, width] */
void NAMED(combine)(const NUMBER *rows, const int64_t *slot, const float *weights, float *y, size tokens, size each,
                    size width, int threads) {
    PARALLEL(tokens * width)
    for (size t = 0; t < tokens; t++) {
        float *restrict to = y + t * width;
        for (size j = 0; j < each; j++) {
            const NUMBER *restrict from = rows + slot[t * each + j] * width;
            const float w = weights ? weights[t * each + j] : 1.0f;
            if (j == 0)
#pragma omp simd
                for (size i = 0; i < width; i++) to[i] = w * READ(from[i]);
            else
#pragma omp simd
                for (size i = 0; i < width; i++) to[i] += w * READ(from[i]);
        }
    }
}

#undef NUMBER
#undef NAMED
#undef READ
#undef WRITE
