// Fused element-wise and row-wise kernels of a transformer block: residual addition with LayerNorm or RMSNorm,
// activation with its derivative, their backward passes, and sums over rows. kernels.py calls them.
//
// Sums over rows are computed block by block and then added in order, so that any number of threads gives the same bits.
// N rows (batch times positions), C elements in a row. An absent bias is NULL.

#include "activations.h"

#define ROW_BLOCK 8    // rows added in registers before their sum is stored
#define MAX_BLOCKS 32  // of rows, each with a sum of its own

// Rows in a block, a multiple of ROW_BLOCK: not a function of the number of threads.
static inline long block_rows(long N) { return (N / (MAX_BLOCKS * ROW_BLOCK) + 1) * ROW_BLOCK; }

static inline void activate_row(scalar *x, const float *bias, scalar *y, long C, int kind) {
    for (long c = 0; c < C; c += LANES) {
        vec v = load(x + c, C - c), derivative;
        if (bias) v += load_float(bias + c, C - c);
        store(activation(v, kind, &derivative), y + c, C - c);
        store(derivative, x + c, C - c);
    }
}

// y = f(x + bias). x is overwritten with f'(x + bias), by which the backward pass multiplies.
void activate(scalar *x, const float *bias, scalar *y, long N, long C, int kind) {
#pragma omp parallel for schedule(static) if (N * C > MIN_PARALLEL)
    for (long n = 0; n < N; n++) {  // with a constant kind, so that the compiler specializes the row's loop
        if (kind == RELU) activate_row(x + n * C, bias, y + n * C, C, RELU);
        if (kind == GELU) activate_row(x + n * C, bias, y + n * C, C, GELU);
        if (kind == RELU2) activate_row(x + n * C, bias, y + n * C, C, RELU2);
    }
}

// sum = x + residual + residual_bias, and y = (sum - mean) / std * weight + bias for each row, storing mean and
// 1 / std. With subtract_mean 0 (RMSNorm) the mean is taken as 0. Without `residual`, sum is x and is not written.
void norm(const float *x, const scalar *residual, const float *residual_bias, float *sum, const float *weight,
          const float *bias, scalar *y, float *mean, float *rstd, long N, long C, float eps, int subtract_mean) {
#pragma omp parallel for schedule(static) if (N * C > MIN_PARALLEL)
    for (long n = 0; n < N; n++) {
        const float *row = residual ? sum + n * C : x + n * C;
        vec total = {0}, squares = {0};
        for (long c = 0; c < C; c += LANES) {
            vec v = load_float(x + n * C + c, C - c);
            if (residual) v += load(residual + n * C + c, C - c);
            if (residual_bias) v += load_float(residual_bias + c, C - c);
            if (residual) store_float(v, sum + n * C + c, C - c);
            total += v;
        }
        float m = subtract_mean ? reduce_sum(total) / C : 0;
        for (long c = 0; c < C; c += LANES) {
            vec v = load_float(row + c, C - c) - m;
            if (C - c < LANES)
                for (long l = C - c; l < LANES; l++) v[l] = 0;
            squares += v * v;
        }
        float r = 1.0f / sqrtf(reduce_sum(squares) / C + eps);
        mean[n] = m, rstd[n] = r;
        for (long c = 0; c < C; c += LANES) {
            vec v = (load_float(row + c, C - c) - m) * r * load_float(weight + c, C - c);
            if (bias) v += load_float(bias + c, C - c);
            store(v, y + n * C + c, C - c);
        }
    }
}

// dx = dtotal, or 0 where that is NULL, plus the gradient through the norm; also in `rounded`, in the type of dy. Adds
// the gradients of weight and bias to dweight and dbias. x, mean, rstd: the forward pass's sum, mean and rstd.
int norm_backward(const scalar *dy, const float *dtotal, const float *x, const float *mean, const float *rstd,
                  const float *weight, float *dx, scalar *rounded, float *dweight, float *dbias, long N, long C, int subtract_mean) {
    long rows = block_rows(N), blocks = N / rows + 1;
    float *partial = calloc(2 * blocks * C, sizeof(float));  // (blocks, 2, C): of weight, of bias
    if (!partial) return OUT_OF_MEMORY;
#pragma omp parallel for schedule(static) if (N * C > MIN_PARALLEL)
    for (long block = 0; block < blocks; block++) {
        float *dw = partial + 2 * C * block, *db = dw + C;
        for (long n = block * rows; n < N && n < (block + 1) * rows; n++) {
            float m = mean[n], r = rstd[n];
            vec sum = {0}, product = {0};
            for (long c = 0; c < C; c += LANES) {
                vec g = load(dy + n * C + c, C - c), scaled = (load_float(x + n * C + c, C - c) - m) * r;
                store_float(load_float(dw + c, C - c) + g * scaled, dw + c, C - c);
                store_float(load_float(db + c, C - c) + g, db + c, C - c);
                g *= load_float(weight + c, C - c);
                sum += g, product += g * scaled;
            }
            float mean_g = subtract_mean ? reduce_sum(sum) / C : 0, mean_product = reduce_sum(product) / C;
            for (long c = 0; c < C; c += LANES) {
                vec g = load(dy + n * C + c, C - c) * load_float(weight + c, C - c);
                vec scaled = (load_float(x + n * C + c, C - c) - m) * r;
                vec d = r * (g - mean_g - scaled * mean_product);
                if (dtotal) d = load_float(dtotal + n * C + c, C - c) + d;
                store_float(d, dx + n * C + c, C - c);
                store(d, rounded + n * C + c, C - c);
            }
        }
    }
    for (long block = 0; block < blocks; block++)
        for (long c = 0; c < C; c++) {
            dweight[c] += partial[2 * C * block + c];
            if (dbias) dbias[c] += partial[2 * C * block + C + c];
        }
    free(partial);
    return OK;
}

// sums (C) += the sum of the rows of x (N, C)
int add_rows(const scalar *x, float *sums, long N, long C) {
    long rows = block_rows(N), blocks = N / rows + 1;
    float *partial = calloc(blocks * C, sizeof(float));  // (blocks, C)
    if (!partial) return OUT_OF_MEMORY;
#pragma omp parallel for schedule(static) if (N * C > MIN_PARALLEL)
    for (long block = 0; block < blocks; block++) {
        float *sum = partial + C * block;
        for (long n = block * rows; n < N && n < (block + 1) * rows; n += ROW_BLOCK)
            for (long c = 0; c < C; c += LANES) {
                vec v = load_float(sum + c, C - c);
                for (long r = n; r < n + ROW_BLOCK && r < N; r++) v += load(x + r * C + c, C - c);
                store_float(v, sum + c, C - c);
            }
    }
    for (long block = 0; block < blocks; block++)
        for (long c = 0; c < C; c++) sums[c] += partial[C * block + c];
    free(partial);
    return OK;
}

// sums (n) += x (n)
void add(const scalar *x, float *sums, long n) {
#pragma omp parallel for schedule(static) if (n > MIN_PARALLEL)
    for (long i = 0; i < n; i += LANES) {
        vec v = load_float(sums + i, n - i) + load(x + i, n - i);
        store_float(v, sums + i, n - i);
    }
}
