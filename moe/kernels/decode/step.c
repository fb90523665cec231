/* One call computes the next logits of many sequences: every layer of the decoder over R tokens, whoever they belong to.
 *
 * A token brings its position and its sequence's cache, writes its key and value there and sees what lies before it; so
 * prompts, parts of prompts and single new tokens go through together. moe/kernels/decode/step.py wraps this file,
 * moe/decoder.py holds the same arithmetic in torch. No number depends on the other tokens or on the threads: every sum
 * has its own order (products.h).
 *
 * A cache is [layers, kv heads, 2, room * D'] floats, D' = D filled up to sixteen: keys [room / 16, D', 16], sixteen
 * positions side by side, and values [room, D'].
 */
#include "products.h"

#include <omp.h>

enum { INPUT_NORM, Q_NORM, K_NORM, MLP_NORM, GATE, Q, K, V, O, GATE_UP, DOWN, PARTS };
enum { EMBEDDING, NORM, HEAD, ENDS };

typedef struct {
    size layers, hidden, heads, kv, dim, experts, chosen, inner, vocabulary;
    size kind, small; /* of the matrices; of norms and gate */
} model;

typedef struct {
    int64_t token, position, room;
    float *cache;
} place;

typedef struct {
    const void *values;
    const bf16 *scales;
} weight;

/* What a step computes with; rows are filled up to sixteen with zeros. */
typedef struct {
    float *x, *normal, *joined, *mixed, *added, *odds, *share, *up, *active, *out, *scores;
    int32_t *expert, *order, *token, *slot, *begin;
} rooms;

static matrix of(weight w, size kind) { return (matrix){w.values, w.scales, (int)kind}; }

/* The e-th of several matrices [outputs, width]. */
static matrix nth(matrix w, size e, size outputs, size width) {
    w.values = (const char *)w.values + e * outputs * width * SIZES[w.kind];
    if (w.scales) w.scales += e * outputs;
    return w;
}

static float squares(const float *x, size width) {
    row sum = {0};
    size i = 0;
    for (; i + LANES <= width; i += LANES) sum += *(const row *)(x + i) * *(const row *)(x + i);
    if (i < width) {
        const row rest = load_some(x, i, FP32, width - i);
        sum += rest * rest;
    }
    return sum_of(sum);
}

/* y = weight * x / sqrt(mean(x^2) + eps) */
static void normalise(const float *x, const void *weight, size kind, float *y, size width, float eps) {
    const float scale = 1.0f / sqrtf(squares(x, width) / (float)width + eps);
    if (kind == BF16)
        for (size i = 0; i < width; i++) y[i] = x[i] * scale * from_bf16(((const bf16 *)weight)[i]);
    else
        for (size i = 0; i < width; i++) y[i] = x[i] * scale * ((const float *)weight)[i];
}

static void turn(float *x, const float *cos, const float *sin, size half) {
    for (size i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

/* Normalises and turns the queries of a token that share a key head, and that key, and writes key and value into the
 * cache. `joined`: the token's queries, keys and values. */
static void enter(const model *m, const weight *w, float *joined, size head, place at, float *cache, const float *rope,
                  size angles, float eps) {
    const size dim = m->dim, half = dim / 2, group = m->heads / m->kv, wide = whole(dim);
    const float *cos = rope + at.position * half, *sin = cos + angles * half;
    float *key = joined + (m->heads + head) * dim;
    const float *value = key + m->kv * dim;
    for (size g = 0; g <= group; g++) {
        float *x = g < group ? joined + (head * group + g) * dim : key;
        const void *gain = w[g < group ? Q_NORM : K_NORM].values;
        if (gain) normalise(x, gain, m->small, x, dim, eps);
        turn(x, cos, sin, half);
    }
    float *keys = cache + at.position / LANES * LANES * wide + at.position % LANES;
    for (size i = 0; i < dim; i++) keys[i * LANES] = key[i];
    float *values = cache + (at.room + at.position) * wide;
    for (size i = 0; i < wide; i++) values[i] = i < dim ? value[i] : 0.0f;
}

/* `count` queries, which share keys, over the positions of the cache up to their own. scores: room for those of each,
 * filled up to sixteen. */
ALWAYS void attend_some(const float *query, int count, const float *cache, size room, size length, size dim,
                        float *scores, float *out) {
    const size wide = whole(dim), filled = whole(length);
    const float scale = 1.0f / sqrtf((float)dim);
    for (size p = 0; p < filled; p += 4 * LANES) {
        const float *keys = cache + p * wide;
        const size blocks = MIN(4, (filled - p) / LANES);
        row dot[2][4];
        UNROLL for (int c = 0; c < count; c++) UNROLL for (int b = 0; b < 4; b++) dot[c][b] = (row){0};
#define DOT(c, b) dot[c][b] += query[c * dim + i] * *(const row *)(keys + (b * wide + i) * LANES);
        if (blocks == 4) {
            for (size i = 0; i < dim; i++)
                UNROLL for (int b = 0; b < 4; b++) UNROLL for (int c = 0; c < count; c++) DOT(c, b)
        } else
            UNROLL for (int b = 0; b < 4; b++) {
                if (b < blocks)
                    for (size i = 0; i < dim; i++) UNROLL for (int c = 0; c < count; c++) DOT(c, b)
            }
#undef DOT
        UNROLL for (int c = 0; c < count; c++) UNROLL for (int b = 0; b < 4; b++)
            if (b < blocks) *(row *)(scores + c * filled + p + b * LANES) = dot[c][b] * scale;
    }
    float share[2];
    for (int c = 0; c < count; c++) {
        float *of = scores + c * filled, top[LANES];
        for (size p = length; p < filled; p++) of[p] = -INFINITY;
        memcpy(top, of, sizeof top);
        for (size p = LANES; p < filled; p += LANES)
            for (int l = 0; l < LANES; l++) top[l] = of[p + l] > top[l] ? of[p + l] : top[l];
        float largest = top[0];
        for (int l = 1; l < LANES; l++) largest = top[l] > largest ? top[l] : largest;
        for (size p = 0; p < filled; p++) of[p] = exponential(of[p] - largest);
        row sum = {0};
        for (size p = 0; p < filled; p += LANES) sum += *(const row *)(of + p);
        share[c] = 1.0f / sum_of(sum);
    }
    for (size i = 0; i < wide; i += LANES) {
        const float *values = cache + room * wide + i;
        row mixed[2][4]; /* every fourth position: a chain of sums waits for its last */
        UNROLL for (int c = 0; c < count; c++) UNROLL for (int b = 0; b < 4; b++) mixed[c][b] = (row){0};
        size p = 0;
#define MIX(c, b) mixed[c][b] += scores[c * filled + p + b] * *(const row *)(values + (p + b) * wide);
        for (; p + 4 <= length; p += 4) UNROLL for (int b = 0; b < 4; b++) UNROLL for (int c = 0; c < count; c++) MIX(c, b)
        UNROLL for (int b = 0; b < 3; b++) {
            if (p + b < length) UNROLL for (int c = 0; c < count; c++) MIX(c, b)
        }
#undef MIX
        UNROLL for (int c = 0; c < count; c++) {
            const row all = ((mixed[c][0] + mixed[c][1]) + (mixed[c][2] + mixed[c][3])) * share[c];
            memcpy(out + c * dim + i, &all, MIN(LANES, dim - i) * sizeof(float));
        }
    }
}

static void attend(const float *query, size count, const float *cache, size room, size length, size dim, float *scores,
                   float *out) {
    size c = 0;
    for (; c + 2 <= count; c += 2)
        attend_some(query + c * dim, 2, cache, room, length, dim, scores, out + c * dim);
    if (c < count) attend_some(query + c * dim, 1, cache, room, length, dim, scores, out + c * dim);
}

/* The softmax of `odds` [experts], of which the `chosen` likeliest become expert and share, which sums to 1. Of equals
 * the first counts. */
static void choose(float *odds, size experts, size chosen, int32_t *expert, float *share) {
    float top = odds[0], sum = 0, kept = 0;
    for (size e = 1; e < experts; e++) top = odds[e] > top ? odds[e] : top;
    for (size e = 0; e < experts; e++) odds[e] = exponential(odds[e] - top);
    for (size e = 0; e < experts; e++) sum += odds[e];
    for (size j = 0; j < chosen; j++) {
        size best = -1;
        for (size e = 0; e < experts; e++) {
            int taken = 0;
            for (size i = 0; i < j; i++) taken |= expert[i] == e;
            if (!taken && (best < 0 || odds[e] > odds[best])) best = e;
        }
        expert[j] = (int32_t)best;
        kept += share[j] = odds[best] / sum;
    }
    for (size j = 0; j < chosen; j++) share[j] /= kept;
}

/* order: the assignments token * chosen + j sorted by expert, each expert's beginning at begin[e]; slot: their places. */
static void sort(const model *m, const rooms *r, size tokens) {
    const size count = tokens * m->chosen;
    memset(r->begin, 0, (m->experts + 1) * sizeof(int32_t));
    for (size a = 0; a < count; a++) r->begin[r->expert[a] + 1]++;
    for (size e = 0; e < m->experts; e++) r->begin[e + 1] += r->begin[e];
    for (size a = 0; a < count; a++) {
        const int32_t to = r->begin[r->expert[a]]++;
        r->slot[a] = to;
        r->token[to] = (int32_t)(a / m->chosen);
    }
    for (size e = m->experts; e; e--) r->begin[e] = r->begin[e - 1];
    r->begin[0] = 0;
}

static void fill(float *x, size width) {
    for (size i = width; i < whole(width); i++) x[i] = 0.0f;
}

/* Lays out the rooms of a step from `at` on; returns how many floats they take. `at` may be none. */
static size lay(const model *m, size tokens, size threads, size longest, float *at, rooms *r) {
    const size pairs = tokens * m->chosen, heads = m->heads + 2 * m->kv;
    size used = 0;
#define ROOM(name, floats) (r->name = (void *)(at + used), used += whole(floats))
    ROOM(x, tokens * whole(m->hidden));
    ROOM(normal, tokens * whole(m->hidden));
    ROOM(joined, tokens * heads * m->dim);
    ROOM(mixed, tokens * whole(m->heads * m->dim));
    ROOM(added, tokens * m->hidden);
    ROOM(odds, tokens * m->experts);
    ROOM(share, pairs);
    ROOM(up, pairs * m->inner);
    ROOM(active, pairs * whole(m->inner));
    ROOM(out, pairs * m->hidden);
    ROOM(scores, threads * 2 * whole(longest));
    ROOM(expert, pairs);
    ROOM(token, pairs);
    ROOM(slot, pairs);
    ROOM(begin, m->experts + 1);
    return used;
}

size decode_room(const model *m, size tokens, size threads, size longest) {
    rooms r;
    return lay(m, tokens, threads, longest, 0, &r);
}

#define EACH(count) _Pragma(STRING(omp for schedule(static))) for (size i = 0; i < (count); i++)
#define STRING(text) #text
#define STRIPS(n) (((n) + 15) / 16)

/* logits [wanted, vocabulary] of the tokens `ends`. rope: cosines, then sines [angles, dim / 2]. longest: no position is
 * beyond it. room: as many floats as decode_room says. routes [tokens, layers, chosen]: the experts that were chosen;
 * nobody asks where it is none. */
void decode(const model *m, const weight *weights, const place *places, size tokens, const int64_t *ends, size wanted,
            const float *rope, size angles, size longest, float *room, float *logits, int16_t *routes, float eps,
            int threads) {
    const size hidden = m->hidden, h = whole(hidden), dim = m->dim, own = m->heads * dim, theirs = m->kv * dim;
    const size width = own + 2 * theirs, inner = m->inner, wide = whole(inner), k = m->chosen, group = m->heads / m->kv;
    const weight *last = weights + m->layers * PARTS;
    rooms r;
    lay(m, tokens, threads, longest, room, &r);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *scores = r.scores + omp_get_thread_num() * 2 * whole(longest);
        EACH(tokens) {
            const matrix table = of(last[EMBEDDING], m->kind);
            const size at = places[i].token;
            const float scale = m->kind == INT8 ? from_bf16(table.scales[at]) : 1.0f;
            for (size j = 0; j < hidden; j += LANES)
                *(row *)(r.x + i * h + j) =
                    scale * load_some(table.values, at * hidden + j, table.kind, MIN(LANES, hidden - j));
        }
        for (size layer = 0; layer < m->layers; layer++) {
            const weight *w = weights + layer * PARTS;
            EACH(tokens) {
                normalise(r.x + i * h, w[INPUT_NORM].values, m->small, r.normal + i * h, hidden, eps);
                fill(r.normal + i * h, hidden);
            }
            EACH(STRIPS(own) + 2 * STRIPS(theirs)) {
                const size strip = i < STRIPS(own) ? i : (i - STRIPS(own)) % STRIPS(theirs);
                const int part = i < STRIPS(own) ? Q : i < STRIPS(own) + STRIPS(theirs) ? K : V;
                const size outputs = part == Q ? own : theirs, before = part == Q ? 0 : part == K ? own : own + theirs;
                product(of(w[part], m->kind), 16 * strip, MIN(outputs, 16 * strip + 16), hidden, r.normal, h, 0, tokens,
                        r.joined + before + 16 * strip, width);
            }
            const size share = m->kv * 2 * whole(dim); /* of a layer in a cache, for each position of its room */
            EACH(tokens * m->kv) {
                const place at = places[i / m->kv];
                float *cache = at.cache + layer * share * at.room + i % m->kv * 2 * at.room * whole(dim);
                enter(m, w, r.joined + i / m->kv * width, i % m->kv, at, cache, rope, angles, eps);
            }
            EACH(tokens * m->kv) {
                const size token = i / m->kv, head = i % m->kv * group;
                const place at = places[token];
                const float *cache = at.cache + layer * share * at.room + i % m->kv * 2 * at.room * whole(dim);
                float *to = r.mixed + token * whole(own);
                attend(r.joined + token * width + head * dim, group, cache, at.room, at.position + 1, dim, scores,
                       to + head * dim);
                if (!head) fill(to, own);
            }
            EACH(STRIPS(hidden)) {
                product(of(w[O], m->kind), 16 * i, MIN(hidden, 16 * i + 16), own, r.mixed, whole(own), 0, tokens,
                        r.added + 16 * i, hidden);
            }
            EACH(tokens) {
                float *x = r.x + i * h;
                for (size j = 0; j < hidden; j++) x[j] += r.added[i * hidden + j];
                normalise(x, w[MLP_NORM].values, m->small, r.normal + i * h, hidden, eps);
                fill(r.normal + i * h, hidden);
                for (size e = 0; e < m->experts; e += 16)
                    product(of(w[GATE], m->small), e, MIN(m->experts, e + 16), hidden, r.normal + i * h, h, 0, 1,
                            r.odds + i * m->experts + e, m->experts);
                choose(r.odds + i * m->experts, m->experts, k, r.expert + i * k, r.share + i * k);
                for (size j = 0; routes && j < k; j++)
                    routes[(i * m->layers + layer) * k + j] = (int16_t)r.expert[i * k + j];
            }
#pragma omp single
            sort(m, &r, tokens);
            EACH(m->experts * STRIPS(inner)) {
                const size e = i / STRIPS(inner), first = i % STRIPS(inner) * 16, end = MIN(inner, first + 16);
                const size top = r.begin[e], rows = r.begin[e + 1] - top;
                if (!rows) continue;
                const matrix both = nth(of(w[GATE_UP], m->kind), e, 2 * inner, hidden);
                product(both, first, end, hidden, r.normal, h, r.token + top, rows, r.active + top * wide + first, wide);
                product(both, inner + first, inner + end, hidden, r.normal, h, r.token + top, rows,
                        r.up + top * inner + first, inner);
                for (size a = top; a < top + rows; a++) {
                    float *gate = r.active + a * wide;
                    const float *up = r.up + a * inner;
                    for (size j = first; j < end; j++) gate[j] = gate[j] * sigmoid(gate[j]) * up[j];
                    if (end == inner) fill(gate, inner);
                }
            }
            EACH(m->experts * STRIPS(hidden)) {
                const size e = i / STRIPS(hidden), first = i % STRIPS(hidden) * 16;
                const size top = r.begin[e], rows = r.begin[e + 1] - top;
                if (rows)
                    product(nth(of(w[DOWN], m->kind), e, hidden, inner), first, MIN(hidden, first + 16), inner,
                            r.active + top * wide, wide, 0, rows, r.out + top * hidden + first, hidden);
            }
            EACH(tokens) {
                for (size a = i * k; a < (i + 1) * k; a++) {
                    const float *from = r.out + r.slot[a] * hidden;
                    for (size j = 0; j < hidden; j++) r.x[i * h + j] += r.share[a] * from[j];
                }
            }
        }
        EACH(wanted) {
            normalise(r.x + ends[i] * h, last[NORM].values, m->small, r.normal + i * h, hidden, eps);
            fill(r.normal + i * h, hidden);
        }
        EACH(STRIPS(m->vocabulary)) {
            product(of(last[HEAD], m->kind), 16 * i, MIN(m->vocabulary, 16 * i + 16), hidden, r.normal, h, 0, wanted,
                    logits + 16 * i, m->vocabulary);
        }
    }
}
