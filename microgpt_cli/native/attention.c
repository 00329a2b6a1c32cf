// Causal attention, softmax(q k' / sqrt(D)) v, and its backward pass: each sequence and head on its own, from where the
// product has put its queries, keys and values, to where the next product wants what was found. On the way queries and
// keys get what is asked for: a bias, a norm, a turn by their position. model/passes.py calls this.
//
// B sequences, T positions, H heads, D head size, C = H D.

#include "functions.h"

#define ROWS 8  // of a tile: so many sums of LANES numbers stay in registers

typedef struct {
    long B, T, H, D;
    const float *bias;        // (3, H, D), or NULL
    const float *cosines, *sines;  // (T, D / 2) of the angles to turn by, or NULL
    float eps;                // of the norm of queries and keys; 0: none
} Heads;

// c (ROWS, columns) = a b, with a (ROWS, k) anywhere in memory and b (k, columns); columns a multiple of 16
static inline void tile(const float *a, long a_row, long a_column, const float *b, long b_row, float *c, long c_row,
                        long k, long columns) {
    for (long j = 0; j < columns; j += LANES) {
        lanes sum[ROWS] = {0};
        for (long i = 0; i < k; i++) {
            lanes right = *(const lanes *)(b + i * b_row + j);
            for (int r = 0; r < ROWS; r++) sum[r] += a[r * a_row + i * a_column] * right;
        }
        for (int r = 0; r < ROWS; r++) *(lanes *)(c + r * c_row + j) = sum[r];
    }
}

// T pieces of D numbers, `row` apart -> y (T, DD), padded with zeros
static inline void take_rows(const number *x, long row, long T, long D, const float *bias, float *y, long DD) {
    for (long t = 0; t < T; t++)
        for (long d = 0; d < D; d += LANES) {
            lanes v = take(x + t * row + d, D - d);
            if (bias) v += take_floats(bias + d, D - d);
            *(lanes *)(y + t * DD + d) = v;
        }
}

static inline void give_rows(const float *y, long DD, long T, long D, number *x, long row) {
    for (long t = 0; t < T; t++)
        for (long d = 0; d < D; d += LANES) give(*(const lanes *)(y + t * DD + d), x + t * row + d, D - d);
}

static inline void transpose(const float *x, long DD, long T, long D, float *y, long TT) {
    for (long t = 0; t < T; t++)
        for (long d = 0; d < D; d++) y[d * TT + t] = x[t * DD + d];
}

// x (T, DD) divided by its root mean square, of which the inverse is kept, and turned
static inline void place(float *x, long DD, float *per_rms, const Heads *heads) {
    long T = heads->T, D = heads->D, half = D / 2;
    for (long t = 0; t < T; t++) {
        float *row = x + t * DD;
        if (heads->eps > 0) {
            lanes squares = {0};
            for (long d = 0; d < DD; d += LANES) squares += *(lanes *)(row + d) * *(lanes *)(row + d);
            per_rms[t] = 1.0f / sqrtf(total(squares) / D + heads->eps);
            for (long d = 0; d < DD; d += LANES) *(lanes *)(row + d) *= per_rms[t];
        }
        if (heads->cosines) turn(row, heads->cosines + t * half, heads->sines + t * half, half, 1);
    }
}

// d, the gradient with respect to y = place(x), becomes scale times that with respect to x. A turn keeps products, so
// the mean of dy y is the same before and after it: dx = (dy - y mean(dy y)) / rms, turned back.
static inline void place_backward(float *d, const float *y, long DD, const float *per_rms, float scale,
                                  const Heads *heads) {
    long T = heads->T, D = heads->D, half = D / 2;
    for (long t = 0; t < T; t++) {
        float *row = d + t * DD, share = 0, factor = scale;
        if (heads->eps > 0) {
            lanes along = {0};
            for (long i = 0; i < DD; i += LANES) along += *(lanes *)(row + i) * *(const lanes *)(y + t * DD + i);
            share = total(along) / D;
            factor *= per_rms[t];
        }
        for (long i = 0; i < DD; i += LANES)
            *(lanes *)(row + i) = (*(lanes *)(row + i) - *(const lanes *)(y + t * DD + i) * share) * factor;
        if (heads->cosines) turn(row, heads->cosines + t * half, heads->sines + t * half, half, -1);
    }
}

// d, the gradient with respect to softmax(x), becomes that with respect to x.
static inline void softmax_backward(const float *weights, float *d, long wide) {
    lanes sum = {0};
    for (long j = 0; j < wide; j += LANES) sum += *(const lanes *)(weights + j) * *(lanes *)(d + j);
    float along = total(sum);
    for (long j = 0; j < wide; j += LANES)
        *(lanes *)(d + j) = *(const lanes *)(weights + j) * (*(lanes *)(d + j) - along);
}

static inline const float *part_of(const float *bias, long offset) { return bias ? bias + offset : NULL; }

// qkv (B, T, 3, H, D) -> y (B, T, H, D). The weights (B, H, T, T) are kept up to the tile of the diagonal.
void attention(const number *qkv, number *y, number *weights, const Heads *heads) {
    long T = heads->T, H = heads->H, D = heads->D, C = H * D, TT = up(T), DD = up(D);
    float scale = 1.0f / sqrtf(D);
#pragma omp parallel
    {
        float *q = calloc(5 * TT * DD + ROWS * TT + TT, sizeof(float)), *k = q + TT * DD, *v = k + TT * DD;
        float *turned = v + TT * DD, *out = turned + TT * DD, *scores = out + TT * DD, *per_rms = scores + ROWS * TT;
#pragma omp for schedule(static)
        for (long bh = 0; bh < heads->B * H; bh++) {
            long b = bh / H, at = bh % H * D;
            const number *here = qkv + b * T * 3 * C + at;
            take_rows(here, 3 * C, T, D, part_of(heads->bias, at), q, DD);
            take_rows(here + C, 3 * C, T, D, part_of(heads->bias, C + at), k, DD);
            take_rows(here + 2 * C, 3 * C, T, D, part_of(heads->bias, 2 * C + at), v, DD);
            place(q, DD, per_rms, heads);
            place(k, DD, per_rms, heads);
            transpose(k, DD, T, D, turned, TT);
            for (long t = 0; t < T; t += ROWS) {
                long wide = up(t + ROWS);
                tile(q + t * DD, DD, 1, turned, TT, scores, TT, D, wide);
                for (long last = t; last < t + ROWS; last++) {
                    float *row = scores + (last - t) * TT;
                    softmax(row, last, wide, scale);
                    if (last < T)
                        for (long j = 0; j < wide && j < T; j += LANES)
                            give(*(lanes *)(row + j), weights + (bh * T + last) * T + j, T - j);
                }
                tile(scores, TT, 1, v, DD, out + t * DD, DD, t + ROWS < T ? t + ROWS : T, DD);
            }
            give_rows(out, DD, T, D, y + b * T * C + at, C);
        }
        free(q);
    }
}

// dy (B, T, H, D) -> dqkv (B, T, 3, H, D)
void attention_backward(const number *dy, const number *qkv, const number *weights, number *dqkv, const Heads *heads) {
    long T = heads->T, H = heads->H, D = heads->D, C = H * D, TT = up(T), DD = up(D);
    float scale = 1.0f / sqrtf(D);
#pragma omp parallel
    {
        float *q = calloc(6 * TT * DD + 2 * TT * TT + 2 * TT, sizeof(float)), *k = q + TT * DD, *v = k + TT * DD;
        float *turned = v + TT * DD, *d = turned + TT * DD, *out = d + TT * DD;
        float *p = out + TT * DD, *ds = p + TT * TT, *q_per_rms = ds + TT * TT, *k_per_rms = q_per_rms + TT;
#pragma omp for schedule(static)
        for (long bh = 0; bh < heads->B * H; bh++) {
            long b = bh / H, at = bh % H * D;
            const number *here = qkv + b * T * 3 * C + at;
            number *there = dqkv + b * T * 3 * C + at;
            take_rows(here, 3 * C, T, D, part_of(heads->bias, at), q, DD);
            take_rows(here + C, 3 * C, T, D, part_of(heads->bias, C + at), k, DD);
            take_rows(here + 2 * C, 3 * C, T, D, part_of(heads->bias, 2 * C + at), v, DD);
            take_rows(dy + b * T * C + at, C, T, D, NULL, d, DD);
            place(q, DD, q_per_rms, heads);
            place(k, DD, k_per_rms, heads);
            transpose(v, DD, T, D, turned, TT);
            for (long t = 0; t < T; t += ROWS) {
                long wide = up(t + ROWS);
                for (long r = t; r < t + ROWS && r < T; r++)
                    for (long j = 0; j < wide && j < T; j += LANES)
                        *(lanes *)(p + r * TT + j) = take(weights + (bh * T + r) * T + j, T - j);
                tile(d + t * DD, DD, 1, turned, TT, ds + t * TT, TT, D, wide);
                for (long r = t; r < t + ROWS; r++) softmax_backward(p + r * TT, ds + r * TT, wide);
                tile(ds + t * TT, TT, 1, k, DD, out + t * DD, DD, t + ROWS < T ? t + ROWS : T, DD);
            }
            place_backward(out, q, DD, q_per_rms, scale, heads);
            give_rows(out, DD, T, D, there, 3 * C);
            for (long t = 0; t < T; t += ROWS)  // those that look at t are t and the ones after it
                tile(ds + t * TT + t, 1, TT, q + t * DD, DD, out + t * DD, DD, T - t, DD);
            place_backward(out, k, DD, k_per_rms, scale, heads);
            give_rows(out, DD, T, D, there + C, 3 * C);
            for (long t = 0; t < T; t += ROWS) tile(p + t * TT + t, 1, TT, d + t * DD, DD, out + t * DD, DD, T - t, DD);
            give_rows(out, DD, T, D, there + 2 * C, 3 * C);
        }
        free(q);
    }
}
