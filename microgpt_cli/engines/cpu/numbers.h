// Numbers in memory and in registers. In memory they are float32, bfloat16 with -DBFLOAT16, or float16 with -DFLOAT16; in
// registers LANES float32 side by side, as many as the processor has room for.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#if defined __AVX512F__
#define LANES 16
#elif defined __AVX__
#define LANES 8
#else
#define LANES 4
#endif
#define FEW 8192  // numbers; below, a second thread costs more than it saves

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline long up(long n) { return (n + 15) / 16 * 16; }  // to what is whole lanes anywhere
static inline lanes all(float x) { return (lanes){0} + x; }

// yes where the mask is -1, no where it is 0
static inline lanes choose(ints mask, lanes yes, lanes no) { return (lanes)((mask & (ints)yes) | (~mask & (ints)no)); }

static inline lanes smaller(lanes x, lanes y) {
#ifdef __AVX512F__
    return (lanes)_mm512_min_ps((__m512)x, (__m512)y);
#else
    return choose(x < y, x, y);
#endif
}
static inline lanes larger(lanes x, lanes y) {
#ifdef __AVX512F__
    return (lanes)_mm512_max_ps((__m512)x, (__m512)y);
#else
    return choose(x > y, x, y);
#endif
}

static inline float total(lanes x) {
    typedef float four __attribute__((vector_size(16)));
    four sum = {0}, part;
    for (int l = 0; l < LANES; l += 4) memcpy(&part, (const char *)&x + 4 * l, 16), sum += part;
    return sum[0] + sum[1] + (sum[2] + sum[3]);
}

#if defined BFLOAT16 || defined FLOAT16
typedef uint16_t number;
typedef uint16_t packed __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
#else
typedef float number;
typedef lanes packed;
#endif

#if defined BFLOAT16
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
static inline lanes widen(packed x) { return (lanes)(__builtin_convertvector(x, words) << 16); }
static inline packed narrow(lanes x) {  // to the nearest, of two as near the even one
#ifdef __AVX512BF16__
    return (packed)_mm512_cvtneps_pbh((__m512)x);
#else
    words bits = (words)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    ints is_nan = x != x;
    return __builtin_convertvector((words)choose(is_nan, (lanes)((words){0} + 0x7fc0), (lanes)rounded), packed);
#endif
}
#elif defined FLOAT16 && defined __AVX512F__
static inline lanes widen(packed x) { return (lanes)_mm512_cvtph_ps((__m256i)x); }
static inline packed narrow(lanes x) { return (packed)_mm512_cvtps_ph((__m512)x, 0); }
#elif defined FLOAT16 && defined __F16C__
static inline lanes widen(packed x) { return (lanes)_mm256_cvtph_ps((__m128i)x); }
static inline packed narrow(lanes x) { return (packed)_mm256_cvtps_ph((__m256)x, 0); }
#elif defined FLOAT16 && defined __x86_64__
#error "this processor converts no float16"
#elif defined FLOAT16
typedef _Float16 halves __attribute__((vector_size(2 * LANES)));
static inline lanes widen(packed x) { return __builtin_convertvector((halves)x, lanes); }
static inline packed narrow(lanes x) { return (packed)__builtin_convertvector(x, halves); }
#else
static inline lanes widen(packed x) { return x; }
static inline packed narrow(lanes x) { return x; }
#endif

// The next of n numbers that are left, zeros after them; and the way back.
static inline lanes take(const number *x, long n) {
    if (n >= LANES) return widen(*(const packed *)x);
    packed some = {0};
    memcpy(&some, x, n * sizeof(number));
    return widen(some);
}
static inline void give(lanes y, number *x, long n) {
    packed some = narrow(y);
    if (n >= LANES) *(packed *)x = some;
    else memcpy(x, &some, n * sizeof(number));
}
static inline lanes take_floats(const float *x, long n) {
    if (n >= LANES) return *(const lanes *)x;
    lanes some = {0};
    memcpy(&some, x, n * sizeof(float));
    return some;
}
static inline void give_floats(lanes y, float *x, long n) {
    if (n >= LANES) *(lanes *)x = y;
    else memcpy(x, &y, n * sizeof(float));
}

// e to the x, to 2 units in the last place: 2 to the whole part of x / ln 2, times a polynomial in the rest (Cephes).
static inline lanes exponential(lanes x) {
    x = smaller(all(88.0f), larger(all(-87.0f), x));
    lanes whole = x * 1.44269504f + 12582912.0f - 12582912.0f;  // 1.5 * 2^23 leaves no room for a fraction
    lanes rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    lanes p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    return p * (lanes)((__builtin_convertvector(whole, ints) + 127) << 23);
}
