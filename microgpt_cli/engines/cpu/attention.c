// Causal attention, softmax(q k' / sqrt(D)) v, and its backward pass: each sequence and head on its own, from where the
// product has put its queries, keys and values, to where the next product wants what was found. On the way queries and
// keys get what is asked for: a bias, a norm, a turn by their position. model/passes.py calls this.
//
// B sequences, T positions, H heads, D head size, C = H D. TT and DD are T and D with room for whole lanes; TT with
// some more, so that the numbers of a column don't all fall into the same few lines of the cache. TB, DB: in bundles.

#include "products.h"

typedef struct {
    long B, T, H, D;
    const float *bias;        // (3, H, D), or NULL
    const float *cosines, *sines;  // (T, D / 2) of the angles to turn by, or NULL
    float eps;                // of the norm of queries and keys; 0: none
} Heads;

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
    long T = heads->T, H = heads->H, D = heads->D, C = H * D;
    long TT = up(T) + 16, DD = up(D), TB = TT / PAIR, DB = DD / PAIR;
    float scale = 1.0f / sqrtf(D);
#pragma omp parallel
    {
        float *q = zeros(4 * TT * DD + 4 * TT * DB + ROWS * (TT + TB) + TT), *k = q + TT * DD, *v = k + TT * DD;
        float *out = v + TT * DD, *scores = out + TT * DD, *per_rms = scores + ROWS * TT;
        bundle *room_q = (bundle *)(per_rms + TT), *room_k = room_q + TT * DB, *room_v = room_k + TT * DB;
        bundle *turned_k = room_v + TT * DB, *room_p = turned_k + TT * DB;
#pragma omp for schedule(static)
        for (long bh = 0; bh < heads->B * H; bh++) {
            long b = bh / H, at = bh % H * D;
            const number *here = qkv + b * T * 3 * C + at;
            take_rows(here, 3 * C, T, D, part_of(heads->bias, at), q, DD);
            take_rows(here + C, 3 * C, T, D, part_of(heads->bias, C + at), k, DD);
            take_rows(here + 2 * C, 3 * C, T, D, part_of(heads->bias, 2 * C + at), v, DD);
            place(q, DD, per_rms, heads);
            place(k, DD, per_rms, heads);
            const bundle *q_rows = bundled(q, DD, T, DD, room_q), *woven_v = woven(v, DD, T, DD, room_v);
            transpose(bundled(k, DD, T, DD, room_k), T, DB, turned_k, TT);
            for (long t = 0; t < T; t += ROWS) {
                long wide = up(t + ROWS);
                tile(q_rows + t * DB, DB, 1, turned_k, TT, scores, TT, DB, wide);
                for (long r = 0; r < ROWS; r++) softmax(scores + r * TT, t + r, wide, scale);
                const bundle *p = bundled(scores, TT, ROWS, wide, room_p);
                for (long r = 0; r < ROWS && t + r < T; r++)
                    memcpy(weights + (bh * T + t + r) * T, p + r * TB, (wide < T ? wide : T) * sizeof(number));
                tile(p, TB, 1, woven_v, DD, out + t * DD, DD, (t + ROWS) / PAIR, DD);
            }
            give_rows(out, DD, T, D, y + b * T * C + at, C);
        }
        free(q);
    }
}

// dy (B, T, H, D) -> dqkv (B, T, 3, H, D)
void attention_backward(const number *dy, const number *qkv, const number *weights, number *dqkv, const Heads *heads) {
    long T = heads->T, H = heads->H, D = heads->D, C = H * D;
    long TT = up(T) + 16, DD = up(D), TB = TT / PAIR, DB = DD / PAIR;
    long kept = PAIR == 1 ? TT : ROWS;  // rows of p and ds: all where woven() leaves them as they are, else a tile's
    float scale = 1.0f / sqrtf(D);
#pragma omp parallel
    {
        float *q = zeros(5 * TT * DD + 6 * TT * DB + 2 * kept * TT + 2 * TT * TB + ROWS * TB + 2 * TT);
        float *k = q + TT * DD, *v = k + TT * DD, *d = v + TT * DD, *out = d + TT * DD;
        float *p = out + TT * DD, *ds = p + kept * TT;
        float *q_per_rms = ds + kept * TT, *k_per_rms = q_per_rms + TT;
        bundle *room_q = (bundle *)(k_per_rms + TT), *room_k = room_q + TT * DB, *room_v = room_k + TT * DB;
        bundle *room_d = room_v + TT * DB, *room_rows = room_d + TT * DB, *turned_v = room_rows + TT * DB;
        bundle *room_p = turned_v + TT * DB, *room_ds = room_p + TT * TB, *room_tile = room_ds + TT * TB;
        const bundle *woven_p = PAIR == 1 ? (bundle *)p : room_p, *woven_ds = PAIR == 1 ? (bundle *)ds : room_ds;
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
            const bundle *woven_q = woven(q, DD, T, DD, room_q), *woven_k = woven(k, DD, T, DD, room_k);
            const bundle *woven_d = woven(d, DD, T, DD, room_d), *d_rows = bundled(d, DD, T, DD, room_rows);
            transpose(bundled(v, DD, T, DD, room_v), T, DB, turned_v, TT);
            for (long t = 0; t < T; t += ROWS) {
                long wide = up(t + ROWS);
                float *p_here = p + t % kept * TT, *ds_here = ds + t % kept * TT;
                for (long r = 0; r < ROWS; r++)
                    for (long j = 0; j < wide; j += LANES)
                        *(lanes *)(p_here + r * TT + j) =
                            t + r < T && j < T ? take(weights + (bh * T + t + r) * T + j, T - j) : all(0);
                tile(d_rows + t * DB, DB, 1, turned_v, TT, ds_here, TT, DB, wide);
                for (long r = 0; r < ROWS; r++) softmax_backward(p_here + r * TT, ds_here + r * TT, wide);
                woven(p_here, TT, ROWS, wide, room_p + t / PAIR * TT);
                woven(ds_here, TT, ROWS, wide, room_ds + t / PAIR * TT);
                const bundle *ds_rows = bundled(ds_here, TT, ROWS, wide, room_tile);
                tile(ds_rows, TB, 1, woven_k, DD, out + t * DD, DD, (t + ROWS) / PAIR, DD);
            }
            place_backward(out, q, DD, q_per_rms, scale, heads);
            give_rows(out, DD, T, D, there, 3 * C);
            for (long t = 0; t < T; t += ROWS)  // those that look at t are t and the ones after it
                tile(woven_ds + t / PAIR * TT + t, 1, TT, woven_q + t / PAIR * DD, DD, out + t * DD, DD,
                     (up(T) - t) / PAIR, DD);
            place_backward(out, k, DD, k_per_rms, scale, heads);
            give_rows(out, DD, T, D, there + C, 3 * C);
            for (long t = 0; t < T; t += ROWS)
                tile(woven_p + t / PAIR * TT + t, 1, TT, woven_d + t / PAIR * DD, DD, out + t * DD, DD,
                     (up(T) - t) / PAIR, DD);
            give_rows(out, DD, T, D, there + 2 * C, 3 * C);
        }
        free(q);
    }
}
