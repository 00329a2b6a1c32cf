// Small matrix products, ROWS rows at a time in registers, and the memory layouts they read.
//
// A dot product consumes its axis one `pair` at a time: PAIR elements, consecutive along that axis, in 4 bytes (two
// bfloat16, or one float32). A left operand is stored as pairs within its rows (pack_rows). A right operand is stored
// with PAIR rows interleaved (pack_pairs), or as the transpose of a matrix packed by rows (transpose).

#ifndef MICROGPT_GEMM_TILE_H
#define MICROGPT_GEMM_TILE_H

#include "activations.h"

#define ROWS 8  // of a tile: ROWS accumulators of LANES elements fit in the registers

#if defined BFLOAT16
#define PAIR 2
typedef uint32_t pair;
typedef uvec pairs;
static inline vec multiply_add(vec sum, pair x, pairs y) {
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)((pairs){0} + x), (__m512bh)y);
#else
    pairs first = (pairs){0} + (x << 16), second = (pairs){0} + (x & 0xffff0000);
    return sum + (vec)first * (vec)(y << 16) + (vec)second * (vec)(y & 0xffff0000);
#endif
}
static inline pairs interleave(const float *x, const float *y) {
    packed low = narrow(*(const vec *)x), high = narrow(*(const vec *)y);
    return __builtin_convertvector(low, uvec) | __builtin_convertvector(high, uvec) << 16;
}
#else
#define PAIR 1
typedef float pair;
typedef vec pairs;
static inline vec multiply_add(vec sum, pair x, pairs y) { return sum + x * y; }
#endif

// c (ROWS, columns) = a b, of a (ROWS, k) with any strides and b (k, columns), both in pairs; columns: a multiple of 16
static inline void gemm_tile(const pair *a, long a_row, long a_column, const pair *b, long b_row, float *c, long c_row,
                             long k, long columns) {
    for (long j = 0; j < columns; j += LANES) {
        vec sum[ROWS] = {0};
        for (long i = 0; i < k; i++) {
            pairs right = *(const pairs *)(b + i * b_row + j);
            for (int r = 0; r < ROWS; r++) sum[r] = multiply_add(sum[r], a[r * a_row + i * a_column], right);
        }
        for (int r = 0; r < ROWS; r++) *(vec *)(c + r * c_row + j) = sum[r];
    }
}

// x (n, columns), row stride `row` -> (n, row / PAIR), each pair from one row. Written to y; float32 returns x itself.
static inline const pair *pack_rows(const float *x, long row, long n, long columns, pair *y) {
#if PAIR == 1
    (void)n, (void)columns, (void)row, (void)y;
    return x;
#else
    for (long i = 0; i < n; i++)
        for (long j = 0; j < columns; j += LANES)
            *(packed *)((scalar *)(y + i * row / PAIR) + j) = narrow(*(const vec *)(x + i * row + j));
    return y;
#endif
}

// x (n, columns), row stride `row` -> (n / PAIR, row), each pair from two rows, one above the other. As pack_rows.
static inline const pair *pack_pairs(const float *x, long row, long n, long columns, pair *y) {
#if PAIR == 1
    (void)n, (void)columns, (void)row, (void)y;
    return x;
#else
    for (long i = 0; i < n; i += PAIR)
        for (long j = 0; j < columns; j += LANES)
            *(pairs *)(y + i / PAIR * row + j) = interleave(x + i * row + j, x + (i + 1) * row + j);
    return y;
#endif
}

// x (n, columns) -> y (columns, row)
static inline void transpose(const pair *x, long n, long columns, pair *y, long row) {
    for (long i = 0; i < n; i++)
        for (long j = 0; j < columns; j++) y[j * row + i] = x[i * columns + j];
}

#endif
