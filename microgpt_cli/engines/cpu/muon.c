// Muon's update (Jordan et al., 2024) of matrices of any shape: Nesterov momentum, made nearly semi-orthogonal by a
// Newton-Schulz iteration, x <- a x + x (b s + c s s) with s = x' x. muon.py calls it;
// training/optimizers.py has the same in torch.
//
// Each thread updates whole matrices: with up to about 300 columns, a matrix and all its intermediates stay in the cache
// of one core.

#include "gemm_tile.h"

#define BLOCK 16  // floats in a cache line

typedef struct {
    float *weight, *momentum;  // momentum (rows, columns) is contiguous
    const float *grad;
    long rows, columns, row_stride, column_stride;  // strides of weight and grad; rows >= columns
    float scale;                                    // of the update
} Matrix;

typedef struct {
    float rate, divide_by, momentum, weight_decay, a, b, c;
    long steps;
} Settings;

// y = the gradient times factor
static inline void load_gradient(const Matrix *matrix, float *y, long row, float factor) {
    long rows = matrix->rows, columns = matrix->columns, stride = matrix->row_stride, step = matrix->column_stride;
    if (step == 1)
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < columns; j += LANES)
                *(vec *)(y + i * row + j) = load_float(matrix->grad + i * stride + j, columns - j) * factor;
    else  // transposed in memory: in blocks of a cache line
        for (long i = 0; i < rows; i += BLOCK)
            for (long j = 0; j < columns; j++)
                for (long r = i; r < i + BLOCK && r < rows; r++)
                    y[r * row + j] = matrix->grad[r * stride + j * step] * factor;
}

// weight = keep weight - rate y
static inline void apply_update(const Matrix *matrix, const float *y, long row, float keep, float rate) {
    long rows = matrix->rows, columns = matrix->columns, stride = matrix->row_stride, step = matrix->column_stride;
    if (step == 1)
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < columns; j += LANES) {
                float *weight = matrix->weight + i * stride + j;
                vec w = load_float(weight, columns - j);
                store_float(w * keep - *(const vec *)(y + i * row + j) * rate, weight, columns - j);
            }
    else
        for (long i = 0; i < rows; i += BLOCK)
            for (long j = 0; j < columns; j++)
                for (long r = i; r < i + BLOCK && r < rows; r++) {
                    float *weight = matrix->weight + r * stride + j * step;
                    *weight = *weight * keep - y[r * row + j] * rate;
                }
}

// Updates the momentum with y, the gradient; y becomes the Nesterov momentum, scaled to Frobenius norm 1.
static inline void nesterov(float *y, long row, const Matrix *matrix, float momentum) {
    vec squares = {0};
    for (long i = 0; i < matrix->rows; i++)
        for (long j = 0; j < matrix->columns; j += LANES) {
            long left = matrix->columns - j;
            float *mean = matrix->momentum + i * matrix->columns + j;
            vec *value = (vec *)(y + i * row + j), m = load_float(mean, left);
            m += (*value - m) * (1 - momentum);
            store_float(m, mean, left);
            *value = m + (*value - m) * (1 - momentum);
            squares += *value * *value;
        }
    float inverse_norm = 1.0f / (sqrtf(reduce_sum(squares)) + 1e-7f);
    for (long i = 0; i < matrix->rows; i++)
        for (long j = 0; j < matrix->columns; j += LANES) *(vec *)(y + i * row + j) *= inverse_norm;
}

// Copies the upper triangle of s (n, n) to the lower one. The blocks on the diagonal are complete already.
static inline void symmetrize(float *s, long n, long row) {
    for (long i = BLOCK; i < n; i++)
        for (long j = 0; j < i / BLOCK * BLOCK; j++) s[i * row + j] = s[j * row + i];
}

// Rounds x to the type of the products in place, so that both terms of the polynomial use the same values and their
// rounding errors cancel.
static inline void round_in_place(float *x, long n, long columns, long row) {
    for (long i = 0; i < n; i++)
        for (long j = 0; j < columns; j += LANES)
            *(vec *)(x + i * row + j) = widen(narrow(*(const vec *)(x + i * row + j)));
}

// The row stride of a matrix's buffers: the elements of a column do not all map to the same few cache sets.
static inline long stride_of(const Matrix *matrix) { return round_up16(matrix->columns) + BLOCK; }

// The number of floats of a matrix's buffers
static inline long buffer_size(const Matrix *matrix) {
    long R = round_up16(matrix->rows), C = round_up16(matrix->columns);
    return (3 * R + 4 * C + ROWS) * stride_of(matrix);
}

static void update(const Matrix *matrix, const Settings *settings, float *buffer) {
    long R = round_up16(matrix->rows), C = round_up16(matrix->columns), row = stride_of(matrix);
    float *y = memset(buffer, 0, buffer_size(matrix) * sizeof(float));
    float *s = y + R * row, *p = s + C * row, *tile = p + C * row;
    pair *y_buf = (pair *)(tile + ROWS * row), *y_pairs_buf = y_buf + R * row;
    pair *s_buf = y_pairs_buf + R * row, *p_buf = s_buf + C * row;
    load_gradient(matrix, y, row, 1 / settings->divide_by);
    nesterov(y, row, matrix, settings->momentum);
    for (long step = 0; step < settings->steps; step++) {
        round_in_place(y, R, C, row);
        const pair *y_rows = pack_rows(y, row, R, C, y_buf), *y_pairs = pack_pairs(y, row, R, C, y_pairs_buf);
        for (long i = 0; i < C; i += ROWS) {
            long from = i / BLOCK * BLOCK;  // s and p are symmetric: only from the diagonal on
            gemm_tile(y_pairs + i, 1, row, y_pairs + from, row, s + i * row + from, row, R / PAIR, C - from);
        }
        symmetrize(s, C, row);
        round_in_place(s, C, C, row);
        const pair *s_rows = pack_rows(s, row, C, C, s_buf), *s_pairs = pack_pairs(s, row, C, C, p_buf);
        for (long i = 0; i < C; i += ROWS) {
            long from = i / BLOCK * BLOCK;
            gemm_tile(s_rows + i * row / PAIR, row / PAIR, 1, s_pairs + from, row, p + i * row + from, row, C / PAIR,
                      C - from);
        }
        for (long i = 0; i < C * row; i += LANES)
            *(vec *)(p + i) = settings->b * *(vec *)(s + i) + settings->c * *(vec *)(p + i);
        symmetrize(p, C, row);
        const pair *p_pairs = pack_pairs(p, row, C, C, p_buf);
        for (long i = 0; i < R; i += ROWS) {
            gemm_tile(y_rows + i * row / PAIR, row / PAIR, 1, p_pairs, row, tile, row, C / PAIR, C);
            for (long j = 0; j < ROWS * row; j += LANES) {
                vec *value = (vec *)(y + i * row + j);
                *value = settings->a * *value + *(vec *)(tile + j);
            }
        }
    }
    apply_update(matrix, y, row, 1 - settings->rate * settings->weight_decay, settings->rate * matrix->scale);
}

// Updates n matrices, or none of them if memory runs out.
int muon(const Matrix *matrices, long n, const Settings *settings) {
    long size = 0;
    for (long m = 0; m < n; m++)
        if (size < buffer_size(matrices + m)) size = buffer_size(matrices + m);
    float *buffers = allocate(omp_get_max_threads() * size);
    if (!buffers) return OUT_OF_MEMORY;
#pragma omp parallel for schedule(dynamic)
    for (long m = 0; m < n; m++) update(matrices + m, settings, buffers + omp_get_thread_num() * size);
    free(buffers);
    return OK;
}
