// Products of small matrices, a few rows at a time in registers, and how matrices lie for them.
//
// A sum of products goes along its axis a bundle at a time: PAIR numbers, one after the other along that axis, in 4
// bytes. So a matrix lies in bundles of its rows, or with PAIR rows woven into one, or with the bundles transposed.

#include "functions.h"

#define ROWS 8  // of a tile: so many sums of LANES numbers stay in registers

#if defined BFLOAT16
#define PAIR 2
typedef uint32_t bundle;
typedef words bundles;
static inline lanes dot(lanes sum, bundle x, bundles y) {
#ifdef __AVX512BF16__
    return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)((bundles){0} + x), (__m512bh)y);
#else
    bundles first = (bundles){0} + (x << 16), second = (bundles){0} + (x & 0xffff0000);
    return sum + (lanes)first * (lanes)(y << 16) + (lanes)second * (lanes)(y & 0xffff0000);
#endif
}
static inline bundles pair(packed x, packed y) {
    return __builtin_convertvector(x, words) | __builtin_convertvector(y, words) << 16;
}
#else
#define PAIR 1
typedef float bundle;
typedef lanes bundles;
static inline lanes dot(lanes sum, bundle x, bundles y) { return sum + x * y; }
static inline bundles pair(packed x, packed y) { return x; }
#endif

// Zeros, at the beginning of a line of the cache
static inline float *zeros(size_t n) {
    size_t size = (n * sizeof(float) + 63) / 64 * 64;
    float *room = aligned_alloc(64, size);
    if (!room) perror("microgpt, in C"), abort();
    return memset(room, 0, size);
}

// c (ROWS, columns) = a b, of a (ROWS, k) anywhere in memory and b (k, columns), bundles; columns a multiple of 16
static inline void tile(const bundle *a, long a_row, long a_column, const bundle *b, long b_row, float *c, long c_row,
                        long k, long columns) {
    for (long j = 0; j < columns; j += LANES) {
        lanes sum[ROWS] = {0};
        for (long i = 0; i < k; i++) {
            bundles right = *(const bundles *)(b + i * b_row + j);
            for (int r = 0; r < ROWS; r++) sum[r] = dot(sum[r], a[r * a_row + i * a_column], right);
        }
        for (int r = 0; r < ROWS; r++) *(lanes *)(c + r * c_row + j) = sum[r];
    }
}

// x (n, columns), rows `row` apart -> (n, row / PAIR), bundles of what is side by side: in y, or where they are already
static inline const bundle *bundled(const float *x, long row, long n, long columns, bundle *y) {
    if (PAIR == 1) return (const bundle *)x;
    for (long i = 0; i < n; i++)
        for (long j = 0; j < columns; j += LANES)
            *(packed *)((number *)(y + i * row / PAIR) + j) = narrow(*(const lanes *)(x + i * row + j));
    return y;
}

// x (n, columns), rows `row` apart -> (n / PAIR, row), bundles of what is one below the other: in y, or where they are
static inline const bundle *woven(const float *x, long row, long n, long columns, bundle *y) {
    if (PAIR == 1) return (const bundle *)x;
    for (long i = 0; i < n; i += PAIR)
        for (long j = 0; j < columns; j += LANES)
            *(bundles *)(y + i / PAIR * row + j) =
                pair(narrow(*(const lanes *)(x + i * row + j)), narrow(*(const lanes *)(x + (i + 1) * row + j)));
    return y;
}

// x (n, columns) -> y (columns, row)
static inline void transpose(const bundle *x, long n, long columns, bundle *y, long row) {
    for (long i = 0; i < n; i++)
        for (long j = 0; j < columns; j++) y[j * row + i] = x[i * columns + j];
}
