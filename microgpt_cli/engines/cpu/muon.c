// An update of Muon (Jordan et al., 2024) of matrices of all shapes: momentum, brought near to a semi-orthogonal matrix
// by Newton-Schulz iteration, x -> a x + x (b s + c s s) with s = x' x. training/native_muon.py calls this;
// training/optimizers.py says the same in torch.
//
// A thread takes a matrix of its own: up to some 300 columns it stays in that core's cache, with all that is made of it.

#include "products.h"

#define BLOCK 16  // numbers in a line of the cache

typedef struct {
    float *weight, *mean;  // the mean of gradients (rows, columns) is contiguous
    const float *grad;
    long rows, columns, row_stride, column_stride;  // of weight and grad; at least as many rows as columns
    float scale;                                    // of the update
} Matrix;

typedef struct {
    float rate, divide_by, momentum, decay, a, b, c;
    long steps;
} Settings;

// y = the gradient, divided
static inline void gather(const Matrix *matrix, float *y, long row, float per) {
    long rows = matrix->rows, columns = matrix->columns, down = matrix->row_stride, along = matrix->column_stride;
    if (along == 1)
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < columns; j += LANES)
                *(lanes *)(y + i * row + j) = take_floats(matrix->grad + i * down + j, columns - j) * per;
    else  // by blocks, for it lies transposed
        for (long i = 0; i < rows; i += BLOCK)
            for (long j = 0; j < columns; j++)
                for (long r = i; r < i + BLOCK && r < rows; r++)
                    y[r * row + j] = matrix->grad[r * down + j * along] * per;
}

// weight = shrunk weight - rate y
static inline void apply(const Matrix *matrix, const float *y, long row, float shrink, float rate) {
    long rows = matrix->rows, columns = matrix->columns, down = matrix->row_stride, along = matrix->column_stride;
    if (along == 1)
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < columns; j += LANES) {
                float *weight = matrix->weight + i * down + j;
                lanes w = take_floats(weight, columns - j);
                give_floats(w * shrink - *(const lanes *)(y + i * row + j) * rate, weight, columns - j);
            }
    else
        for (long i = 0; i < rows; i += BLOCK)
            for (long j = 0; j < columns; j++)
                for (long r = i; r < i + BLOCK && r < rows; r++) {
                    float *weight = matrix->weight + r * down + j * along;
                    *weight = *weight * shrink - y[r * row + j] * rate;
                }
}

// y, the gradient, goes into the mean, and becomes what the mean will be if the next is like it (Nesterov), of length 1.
static inline void look_ahead(float *y, long row, const Matrix *matrix, float momentum) {
    lanes squares = {0};
    for (long i = 0; i < matrix->rows; i++)
        for (long j = 0; j < matrix->columns; j += LANES) {
            long left = matrix->columns - j;
            float *mean = matrix->mean + i * matrix->columns + j;
            lanes *at = (lanes *)(y + i * row + j), m = take_floats(mean, left);
            m += (*at - m) * (1 - momentum);
            give_floats(m, mean, left);
            *at = m + (*at - m) * (1 - momentum);
            squares += *at * *at;
        }
    float per_norm = 1.0f / (sqrtf(total(squares)) + 1e-7f);
    for (long i = 0; i < matrix->rows; i++)
        for (long j = 0; j < matrix->columns; j += LANES) *(lanes *)(y + i * row + j) *= per_norm;
}

// s (n, n) is symmetric: what is above its diagonal goes below it; blocks on it are whole.
static inline void mirror(float *s, long n, long row) {
    for (long i = BLOCK; i < n; i++)
        for (long j = 0; j < i / BLOCK * BLOCK; j++) s[i * row + j] = s[j * row + i];
}

// What is read twice is rounded where it lies, so that both terms of the polynomial see the same: their errors cancel.
static inline void settle(float *x, long n, long columns, long row) {
    for (long i = 0; i < n; i++)
        for (long j = 0; j < columns; j += LANES)
            *(lanes *)(x + i * row + j) = widen(narrow(*(const lanes *)(x + i * row + j)));
}

static void update(const Matrix *matrix, const Settings *settings) {
    long R = up(matrix->rows), C = up(matrix->columns);
    long row = C + BLOCK;  // of all that follows: a column's numbers are not all in the same few lines of the cache
    float *y = zeros((3 * R + 4 * C + ROWS) * row), *s = y + R * row, *p = s + C * row, *tiles = p + C * row;
    bundle *y_room = (bundle *)(tiles + ROWS * row), *woven_room = y_room + R * row;
    bundle *s_room = woven_room + R * row, *p_room = s_room + C * row;
    gather(matrix, y, row, 1 / settings->divide_by);
    look_ahead(y, row, matrix, settings->momentum);
    for (long step = 0; step < settings->steps; step++) {
        settle(y, R, C, row);
        const bundle *y_rows = bundled(y, row, R, C, y_room), *woven_y = woven(y, row, R, C, woven_room);
        for (long i = 0; i < C; i += ROWS) {
            long from = i / BLOCK * BLOCK;
            tile(woven_y + i, 1, row, woven_y + from, row, s + i * row + from, row, R / PAIR, C - from);
        }
        mirror(s, C, row);
        settle(s, C, C, row);
        const bundle *s_rows = bundled(s, row, C, C, s_room), *woven_s = woven(s, row, C, C, p_room);
        for (long i = 0; i < C; i += ROWS) {
            long from = i / BLOCK * BLOCK;
            tile(s_rows + i * row / PAIR, row / PAIR, 1, woven_s + from, row, p + i * row + from, row, C / PAIR, C - from);
        }
        for (long i = 0; i < C * row; i += LANES)
            *(lanes *)(p + i) = settings->b * *(lanes *)(s + i) + settings->c * *(lanes *)(p + i);
        mirror(p, C, row);
        const bundle *woven_p = woven(p, row, C, C, p_room);
        for (long i = 0; i < R; i += ROWS) {
            tile(y_rows + i * row / PAIR, row / PAIR, 1, woven_p, row, tiles, row, C / PAIR, C);
            for (long j = 0; j < ROWS * row; j += LANES) {
                lanes *at = (lanes *)(y + i * row + j);
                *at = settings->a * *at + *(lanes *)(tiles + j);
            }
        }
    }
    apply(matrix, y, row, 1 - settings->rate * settings->decay, settings->rate * matrix->scale);
    free(y);
}

void muon(const Matrix *matrices, long n, const Settings *settings) {
#pragma omp parallel for schedule(dynamic)
    for (long m = 0; m < n; m++) update(matrices + m, settings);
}
