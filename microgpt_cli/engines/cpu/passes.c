// What stands between the matrix products of a GPT's blocks, each in one visit to the memory: activations with their
// slopes, norms and their backward passes, sums. model/passes.py calls them and says the same in torch.
//
// Sums over rows are made block by block and then added up in order, so that any number of threads gives the same bits.
// N rows (batch times positions), C numbers in a row. A bias that isn't there is NULL.

#include "functions.h"

#define TOGETHER 8  // rows that are added up before the sum goes back to memory
#define BLOCKS 32   // of rows, at most, that are summed apart from each other

// Rows in a block, a multiple of TOGETHER: no function of the number of threads.
static inline long block_rows(long N) { return (N + BLOCKS * TOGETHER - 1) / (BLOCKS * TOGETHER) * TOGETHER; }

static inline void activate_row(number *x, const float *bias, number *y, long C, int kind) {
    for (long c = 0; c < C; c += LANES) {
        lanes v = take(x + c, C - c), slope;
        if (bias) v += take_floats(bias + c, C - c);
        give(activation(v, kind, &slope), y + c, C - c);
        give(slope, x + c, C - c);
    }
}

// y = f(x + bias); x becomes the slope of f there, by which what flows back is multiplied.
void activate(number *x, const float *bias, number *y, long N, long C, int kind) {
#pragma omp parallel for schedule(static) if (N * C > FEW)
    for (long n = 0; n < N; n++) {  // a copy of the row's code for each kind
        if (kind == RELU) activate_row(x + n * C, bias, y + n * C, C, RELU);
        if (kind == GELU) activate_row(x + n * C, bias, y + n * C, C, GELU);
        if (kind == RELU2) activate_row(x + n * C, bias, y + n * C, C, RELU2);
    }
}

// sum = x + more + more_bias, and y = (sum - mean) / std * weight + bias, row by row; mean and 1 / std are kept. A norm
// that isn't centred has 0 for the mean (RMSNorm). Without `more`, sum is x.
void norm(const float *x, const number *more, const float *more_bias, float *sum, const float *weight,
          const float *bias, number *y, float *mean, float *rstd, long N, long C, float eps, int centred) {
#pragma omp parallel for schedule(static) if (N * C > FEW)
    for (long n = 0; n < N; n++) {
        const float *row = more ? sum + n * C : x + n * C;
        lanes added = {0}, squares = {0};
        for (long c = 0; c < C; c += LANES) {
            lanes v = take_floats(x + n * C + c, C - c);
            if (more) v += take(more + n * C + c, C - c);
            if (more_bias) v += take_floats(more_bias + c, C - c);
            if (more) give_floats(v, sum + n * C + c, C - c);
            added += v;
        }
        float m = centred ? total(added) / C : 0;
        for (long c = 0; c < C; c += LANES) {
            lanes v = take_floats(row + c, C - c) - m;
            if (C - c < LANES)
                for (long l = C - c; l < LANES; l++) v[l] = 0;
            squares += v * v;
        }
        float r = 1.0f / sqrtf(total(squares) / C + eps);
        mean[n] = m, rstd[n] = r;
        for (long c = 0; c < C; c += LANES) {
            lanes v = (take_floats(row + c, C - c) - m) * r * take_floats(weight + c, C - c);
            if (bias) v += take_floats(bias + c, C - c);
            give(v, y + n * C + c, C - c);
        }
    }
}

// dx, the gradient that x has from elsewhere, becomes the whole one; it is rounded too. dweight, dbias are added to.
void norm_backward(const number *dy, const float *x, const float *mean, const float *rstd, const float *weight,
                   float *dx, number *rounded, float *dweight, float *dbias, long N, long C, int centred) {
    long rows = block_rows(N), blocks = (N + rows - 1) / rows;
    float *partial = calloc(2 * blocks * C, sizeof(float));  // of each block: of the weight, of the bias
#pragma omp parallel for schedule(static) if (N * C > FEW)
    for (long block = 0; block < blocks; block++) {
        float *dw = partial + 2 * C * block, *db = dw + C;
        for (long n = block * rows; n < N && n < (block + 1) * rows; n++) {
            float m = mean[n], r = rstd[n];
            lanes sum = {0}, along = {0};
            for (long c = 0; c < C; c += LANES) {
                lanes g = take(dy + n * C + c, C - c), scaled = (take_floats(x + n * C + c, C - c) - m) * r;
                give_floats(take_floats(dw + c, C - c) + g * scaled, dw + c, C - c);
                give_floats(take_floats(db + c, C - c) + g, db + c, C - c);
                g *= take_floats(weight + c, C - c);
                sum += g, along += g * scaled;
            }
            float mean_g = centred ? total(sum) / C : 0, mean_along = total(along) / C;
            for (long c = 0; c < C; c += LANES) {
                lanes g = take(dy + n * C + c, C - c) * take_floats(weight + c, C - c);
                lanes scaled = (take_floats(x + n * C + c, C - c) - m) * r;
                lanes d = take_floats(dx + n * C + c, C - c) + r * (g - mean_g - scaled * mean_along);
                give_floats(d, dx + n * C + c, C - c);
                give(d, rounded + n * C + c, C - c);
            }
        }
    }
    for (long block = 0; block < blocks; block++)
        for (long c = 0; c < C; c++) {
            dweight[c] += partial[2 * C * block + c];
            if (dbias) dbias[c] += partial[2 * C * block + C + c];
        }
    free(partial);
}

// sums (C) += the sum of the rows of x (N, C)
void add_rows(const number *x, float *sums, long N, long C) {
    long rows = block_rows(N), blocks = (N + rows - 1) / rows;
    float *partial = calloc(blocks * C, sizeof(float));
#pragma omp parallel for schedule(static) if (N * C > FEW)
    for (long block = 0; block < blocks; block++) {
        float *sum = partial + C * block;
        for (long n = block * rows; n < N && n < (block + 1) * rows; n += TOGETHER)
            for (long c = 0; c < C; c += LANES) {
                lanes some = take_floats(sum + c, C - c);
                for (long r = n; r < n + TOGETHER && r < N; r++) some += take(x + r * C + c, C - c);
                give_floats(some, sum + c, C - c);
            }
    }
    for (long block = 0; block < blocks; block++)
        for (long c = 0; c < C; c++) sums[c] += partial[C * block + c];
    free(partial);
}

// sums (n) += x (n)
void add(const number *x, float *sums, long n) {
#pragma omp parallel for schedule(static) if (n > FEW)
    for (long i = 0; i < n; i += LANES) give_floats(take_floats(sums + i, n - i) + take(x + i, n - i), sums + i, n - i);
}
