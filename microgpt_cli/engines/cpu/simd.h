// SIMD vectors of float32, and conversion to and from the type of the arrays in memory: float32, bfloat16 with
// -DBFLOAT16, float16 with -DFLOAT16. LANES is the number of float32 in one register of this processor.

#ifndef MICROGPT_SIMD_H
#define MICROGPT_SIMD_H

#include <math.h>
#include <omp.h>
#include <stdint.h>
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
#define MIN_PARALLEL 8192  // elements; with fewer, starting a second thread costs more than it saves

enum { OK, OUT_OF_MEMORY };  // what a function that allocates memory returns

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// The next multiple of 16, which is a whole number of vectors whatever LANES is
static inline long round_up16(long n) { return (n + 15) / 16 * 16; }

// Uninitialized memory for n floats, aligned to a cache line; NULL if there is none
static inline float *allocate(size_t n) { return aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64); }

static inline vec broadcast(float x) { return (vec){0} + x; }

// a where the mask is -1, b where it is 0
static inline vec blend(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

static inline vec min(vec x, vec y) {
#ifdef __AVX512F__
    return (vec)_mm512_min_ps((__m512)x, (__m512)y);
#else
    return blend(x < y, x, y);
#endif
}
static inline vec max(vec x, vec y) {
#ifdef __AVX512F__
    return (vec)_mm512_max_ps((__m512)x, (__m512)y);
#else
    return blend(x > y, x, y);
#endif
}

// The sum of the lanes
static inline float reduce_sum(vec x) {
    typedef float vec4 __attribute__((vector_size(16)));
    vec4 sum = {0}, part;
    for (int l = 0; l < LANES; l += 4) memcpy(&part, (const char *)&x + 4 * l, 16), sum += part;
    return sum[0] + sum[1] + (sum[2] + sum[3]);
}

// scalar: an element in memory; packed: LANES of them
#if defined BFLOAT16 || defined FLOAT16
typedef uint16_t scalar;
typedef uint16_t packed __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
#else
typedef float scalar;
typedef vec packed;
#endif

#if defined BFLOAT16
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
static inline vec widen(packed x) { return (vec)(__builtin_convertvector(x, uvec) << 16); }
static inline packed narrow(vec x) {  // to nearest, ties to even
#ifdef __AVX512BF16__
    return (packed)_mm512_cvtneps_pbh((__m512)x);
#else
    uvec bits = (uvec)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    ivec is_nan = x != x;
    return __builtin_convertvector((uvec)blend(is_nan, (vec)((uvec){0} + 0x7fc0), (vec)rounded), packed);
#endif
}
#elif defined FLOAT16 && defined __AVX512F__
static inline vec widen(packed x) { return (vec)_mm512_cvtph_ps((__m256i)x); }
static inline packed narrow(vec x) { return (packed)_mm512_cvtps_ph((__m512)x, 0); }
#elif defined FLOAT16 && defined __F16C__
static inline vec widen(packed x) { return (vec)_mm256_cvtph_ps((__m128i)x); }
static inline packed narrow(vec x) { return (packed)_mm256_cvtps_ph((__m256)x, 0); }
#elif defined FLOAT16 && defined __x86_64__
#error "this processor has no float16 conversion (F16C)"
#elif defined FLOAT16
typedef _Float16 halves __attribute__((vector_size(2 * LANES)));
static inline vec widen(packed x) { return __builtin_convertvector((halves)x, vec); }
static inline packed narrow(vec x) { return (packed)__builtin_convertvector(x, halves); }
#else
static inline vec widen(packed x) { return x; }
static inline packed narrow(vec x) { return x; }
#endif

// Load or store min(n, LANES) elements. load fills the other lanes with zeros.
static inline vec load(const scalar *x, long n) {
    if (n >= LANES) return widen(*(const packed *)x);
    packed tail = {0};
    memcpy(&tail, x, n * sizeof(scalar));
    return widen(tail);
}
static inline void store(vec y, scalar *x, long n) {
    packed values = narrow(y);
    if (n >= LANES) *(packed *)x = values;
    else memcpy(x, &values, n * sizeof(scalar));
}
static inline vec load_float(const float *x, long n) {
    if (n >= LANES) return *(const vec *)x;
    vec tail = {0};
    memcpy(&tail, x, n * sizeof(float));
    return tail;
}
static inline void store_float(vec y, float *x, long n) {
    if (n >= LANES) *(vec *)x = y;
    else memcpy(x, &y, n * sizeof(float));
}

// e^x to 2 units in the last place: 2 to the integer part of x / ln 2, times a polynomial in the remainder (Cephes expf).
static inline vec vexp(vec x) {
    x = min(broadcast(88.0f), max(broadcast(-87.0f), x));
    vec whole = x * 1.44269504f + 12582912.0f - 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    vec rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    return p * (vec)((__builtin_convertvector(whole, ivec) + 127) << 23);
}

#endif
