// Causal self-attention, softmax(q k' / sqrt(D)) v, and its backward pass, one sequence and head at a time. It reads
// queries, keys and values where the projection wrote them and writes its result where the next projection reads it,
// and applies on the way what the model has of: a bias, RMSNorm of queries and keys, rotary positions.
// kernels.py calls it.
//
// B sequences, T positions, H heads, D head size, C = H D.
// TT, DD: T and D rounded up to whole vectors, TT with 16 more, so that the elements of a column do not all map to the
// same few cache sets. TB, DB: the same lengths in pairs (see gemm_tile.h).

#include "gemm_tile.h"

#ifdef FLOAT16
#error "attention is float32 or bfloat16"
#endif

typedef struct {
    long B, T, H, D;
    const float *bias;        // (3, H, D), or NULL
    const float *cos, *sin;   // (T, D / 2) of the rotary angles, or NULL
    float eps;                // of the norm of queries and keys; 0: no norm
} Heads;

// T rows of D elements, row stride `row`, plus the bias -> y (T, DD), padded with zeros
static inline void load_rows(const scalar *x, long row, long T, long D, const float *bias, float *y, long DD) {
    for (long t = 0; t < T; t++)
        for (long d = 0; d < D; d += LANES) {
            vec v = load(x + t * row + d, D - d);
            if (bias) v += load_float(bias + d, D - d);
            *(vec *)(y + t * DD + d) = v;
        }
}

static inline void store_rows(const float *y, long DD, long T, long D, scalar *x, long row) {
    for (long t = 0; t < T; t++)
        for (long d = 0; d < D; d += LANES) store(*(const vec *)(y + t * DD + d), x + t * row + d, D - d);
}

// x (T, DD), in place: RMSNorm of each row, storing 1 / rms, then the rotation by its position
static inline void norm_and_rotate(float *x, long DD, float *inverse_rms, const Heads *heads) {
    long T = heads->T, D = heads->D, half = D / 2;
    for (long t = 0; t < T; t++) {
        float *row = x + t * DD;
        if (heads->eps > 0) {
            vec squares = {0};
            for (long d = 0; d < DD; d += LANES) squares += *(vec *)(row + d) * *(vec *)(row + d);
            inverse_rms[t] = 1.0f / sqrtf(reduce_sum(squares) / D + heads->eps);
            for (long d = 0; d < DD; d += LANES) *(vec *)(row + d) *= inverse_rms[t];
        }
        if (heads->cos) rotate(row, heads->cos + t * half, heads->sin + t * half, half, 1);
    }
}

// The gradient d with respect to y = norm_and_rotate(x) becomes, in place, scale times the gradient with respect to x.
// A rotation preserves dot products, so mean(dy y) is the same before and after it: dx = (dy - y mean(dy y)) / rms,
// rotated back.
static inline void norm_and_rotate_backward(float *d, const float *y, long DD, const float *inverse_rms, float scale,
                                            const Heads *heads) {
    long T = heads->T, D = heads->D, half = D / 2;
    for (long t = 0; t < T; t++) {
        float *row = d + t * DD, mean = 0, factor = scale;
        if (heads->eps > 0) {
            vec products = {0};
            for (long i = 0; i < DD; i += LANES) products += *(vec *)(row + i) * *(const vec *)(y + t * DD + i);
            mean = reduce_sum(products) / D;
            factor *= inverse_rms[t];
        }
        for (long i = 0; i < DD; i += LANES)
            *(vec *)(row + i) = (*(vec *)(row + i) - *(const vec *)(y + t * DD + i) * mean) * factor;
        if (heads->cos) rotate(row, heads->cos + t * half, heads->sin + t * half, half, -1);
    }
}

// The gradient d with respect to p = softmax(x) becomes, in place, the gradient with respect to x.
static inline void softmax_backward(const float *p, float *d, long width) {
    vec products = {0};
    for (long j = 0; j < width; j += LANES) products += *(const vec *)(p + j) * *(vec *)(d + j);
    float dot = reduce_sum(products);
    for (long j = 0; j < width; j += LANES)
        *(vec *)(d + j) = *(const vec *)(p + j) * (*(vec *)(d + j) - dot);
}

static inline const float *at(const float *bias, long offset) { return bias ? bias + offset : NULL; }

// qkv (B, T, 3, H, D) -> y (B, T, H, D). Stores the softmax weights (B, H, T, T), of each row at least those up to the
// diagonal.
int attention(const scalar *qkv, scalar *y, scalar *weights, const Heads *heads) {
    long T = heads->T, H = heads->H, D = heads->D, C = H * D;
    long TT = round_up16(T) + 16, DD = round_up16(D), TB = TT / PAIR, DB = DD / PAIR;
    long size = round_up16(4 * TT * DD + 4 * TT * DB + ROWS * (TT + TB) + TT);  // of a thread's buffers
    float scale = 1.0f / sqrtf(D), *buffers = allocate(omp_get_max_threads() * size);
    if (!buffers) return OUT_OF_MEMORY;
#pragma omp parallel
    {
        float *q = memset(buffers + omp_get_thread_num() * size, 0, size * sizeof(float));
        float *k = q + TT * DD, *v = k + TT * DD;
        float *out = v + TT * DD, *scores = out + TT * DD, *inverse_rms = scores + ROWS * TT;
        pair *q_buf = (pair *)(inverse_rms + TT), *k_buf = q_buf + TT * DB, *v_buf = k_buf + TT * DB;
        pair *k_transposed = v_buf + TT * DB, *p_buf = k_transposed + TT * DB;
#pragma omp for schedule(static)
        for (long bh = 0; bh < heads->B * H; bh++) {
            long b = bh / H, offset = bh % H * D;
            const scalar *input = qkv + b * T * 3 * C + offset;
            load_rows(input, 3 * C, T, D, at(heads->bias, offset), q, DD);
            load_rows(input + C, 3 * C, T, D, at(heads->bias, C + offset), k, DD);
            load_rows(input + 2 * C, 3 * C, T, D, at(heads->bias, 2 * C + offset), v, DD);
            norm_and_rotate(q, DD, inverse_rms, heads);
            norm_and_rotate(k, DD, inverse_rms, heads);
            const pair *q_rows = pack_rows(q, DD, T, DD, q_buf), *v_pairs = pack_pairs(v, DD, T, DD, v_buf);
            transpose(pack_rows(k, DD, T, DD, k_buf), T, DB, k_transposed, TT);
            for (long t = 0; t < T; t += ROWS) {
                long width = round_up16(t + ROWS);
                gemm_tile(q_rows + t * DB, DB, 1, k_transposed, TT, scores, TT, DB, width);
                for (long r = 0; r < ROWS; r++) softmax(scores + r * TT, t + r, width, scale);
                const pair *p = pack_rows(scores, TT, ROWS, width, p_buf);
                for (long r = 0; r < ROWS && t + r < T; r++)
                    memcpy(weights + (bh * T + t + r) * T, p + r * TB, (width < T ? width : T) * sizeof(scalar));
                gemm_tile(p, TB, 1, v_pairs, DD, out + t * DD, DD, (t + ROWS) / PAIR, DD);
            }
            store_rows(out, DD, T, D, y + b * T * C + offset, C);
        }
    }
    free(buffers);
    return OK;
}

// dy (B, T, H, D) -> dqkv (B, T, 3, H, D)
int attention_backward(const scalar *dy, const scalar *qkv, const scalar *weights, scalar *dqkv, const Heads *heads) {
    long T = heads->T, H = heads->H, D = heads->D, C = H * D;
    long TT = round_up16(T) + 16, DD = round_up16(D), TB = TT / PAIR, DB = DD / PAIR;
    long p_rows = PAIR == 1 ? TT : ROWS;  // of p and ds: all where pack_pairs returns its argument, else one tile's
    long size = round_up16(5 * TT * DD + 6 * TT * DB + 2 * p_rows * TT + 2 * TT * TB + ROWS * TB + 2 * TT);
    float scale = 1.0f / sqrtf(D), *buffers = allocate(omp_get_max_threads() * size);
    if (!buffers) return OUT_OF_MEMORY;
#pragma omp parallel
    {
        float *q = memset(buffers + omp_get_thread_num() * size, 0, size * sizeof(float));
        float *k = q + TT * DD, *v = k + TT * DD, *d = v + TT * DD, *out = d + TT * DD;
        float *p = out + TT * DD, *ds = p + p_rows * TT;
        float *q_inverse_rms = ds + p_rows * TT, *k_inverse_rms = q_inverse_rms + TT;
        pair *q_buf = (pair *)(k_inverse_rms + TT), *k_buf = q_buf + TT * DB, *v_buf = k_buf + TT * DB;
        pair *d_buf = v_buf + TT * DB, *d_rows_buf = d_buf + TT * DB, *v_transposed = d_rows_buf + TT * DB;
        pair *p_buf = v_transposed + TT * DB, *ds_buf = p_buf + TT * TB, *ds_tile_buf = ds_buf + TT * TB;
        const pair *p_pairs = PAIR == 1 ? (pair *)p : p_buf, *ds_pairs = PAIR == 1 ? (pair *)ds : ds_buf;
#pragma omp for schedule(static)
        for (long bh = 0; bh < heads->B * H; bh++) {
            long b = bh / H, offset = bh % H * D;
            const scalar *input = qkv + b * T * 3 * C + offset;
            scalar *output = dqkv + b * T * 3 * C + offset;
            load_rows(input, 3 * C, T, D, at(heads->bias, offset), q, DD);
            load_rows(input + C, 3 * C, T, D, at(heads->bias, C + offset), k, DD);
            load_rows(input + 2 * C, 3 * C, T, D, at(heads->bias, 2 * C + offset), v, DD);
            load_rows(dy + b * T * C + offset, C, T, D, NULL, d, DD);
            norm_and_rotate(q, DD, q_inverse_rms, heads);
            norm_and_rotate(k, DD, k_inverse_rms, heads);
            const pair *q_pairs = pack_pairs(q, DD, T, DD, q_buf), *k_pairs = pack_pairs(k, DD, T, DD, k_buf);
            const pair *d_pairs = pack_pairs(d, DD, T, DD, d_buf), *d_rows = pack_rows(d, DD, T, DD, d_rows_buf);
            transpose(pack_rows(v, DD, T, DD, v_buf), T, DB, v_transposed, TT);
            for (long t = 0; t < T; t += ROWS) {
                long width = round_up16(t + ROWS);
                float *p_tile = p + t % p_rows * TT, *ds_tile = ds + t % p_rows * TT;
                for (long r = 0; r < ROWS; r++)
                    for (long j = 0; j < width; j += LANES)
                        *(vec *)(p_tile + r * TT + j) =
                            t + r < T && j < T ? load(weights + (bh * T + t + r) * T + j, T - j) : broadcast(0);
                gemm_tile(d_rows + t * DB, DB, 1, v_transposed, TT, ds_tile, TT, DB, width);
                for (long r = 0; r < ROWS; r++) softmax_backward(p_tile + r * TT, ds_tile + r * TT, width);
                pack_pairs(p_tile, TT, ROWS, width, p_buf + t / PAIR * TT);
                pack_pairs(ds_tile, TT, ROWS, width, ds_buf + t / PAIR * TT);
                const pair *ds_rows = pack_rows(ds_tile, TT, ROWS, width, ds_tile_buf);
                gemm_tile(ds_rows, TB, 1, k_pairs, DD, out + t * DD, DD, (t + ROWS) / PAIR, DD);
            }
            norm_and_rotate_backward(out, q, DD, q_inverse_rms, scale, heads);
            store_rows(out, DD, T, D, output, 3 * C);
            for (long t = 0; t < T; t += ROWS)  // key t receives a gradient from queries t and later
                gemm_tile(ds_pairs + t / PAIR * TT + t, 1, TT, q_pairs + t / PAIR * DD, DD, out + t * DD, DD,
                          (round_up16(T) - t) / PAIR, DD);
            norm_and_rotate_backward(out, k, DD, k_inverse_rms, scale, heads);
            store_rows(out, DD, T, D, output + C, 3 * C);
            for (long t = 0; t < T; t += ROWS)
                gemm_tile(p_pairs + t / PAIR * TT + t, 1, TT, d_pairs + t / PAIR * DD, DD, out + t * DD, DD,
                          (round_up16(T) - t) / PAIR, DD);
            store_rows(out, DD, T, D, output + 2 * C, 3 * C);
        }
    }
    free(buffers);
    return OK;
}
