// Element-wise and row-wise functions: activations and their derivatives, rotary positions, softmax.

#ifndef MICROGPT_ACTIVATIONS_H
#define MICROGPT_ACTIVATIONS_H

#include "simd.h"

enum { RELU, GELU, RELU2 };

// GELU's tanh approximation is x s, with s the sigmoid of 2 u, u = sqrt(2 / pi) (x + 0.044715 x^3).
#define GELU_A 1.5957691216f  // 2 sqrt(2 / pi)
#define GELU_B 0.044715f
static inline vec gelu_sigmoid(vec x) { return 1.0f / (1.0f + vexp(-GELU_A * (x + GELU_B * x * x * x))); }

// f(x), and its derivative
static inline vec activation(vec x, int kind, vec *derivative) {
    if (kind == GELU) {
        vec s = gelu_sigmoid(x);
        *derivative = s + x * s * (1.0f - s) * GELU_A * (1.0f + 3.0f * GELU_B * x * x);
        return x * s;
    }
    vec positive = max(broadcast(0), x);
    if (kind == RELU) {
        *derivative = blend(x > 0.0f, broadcast(1), broadcast(0));
        return positive;
    }
    *derivative = 2.0f * positive;
    return positive * positive;
}

// Rotary position: (a, b) -> (a cos - b sin, b cos + a sin) for the two halves of a row; direction -1 is the inverse.
static inline void rotate(float *x, const float *cos, const float *sin, long half, float direction) {
    for (long i = 0; i < half; i++) {
        float a = x[i], b = x[half + i], c = cos[i], s = sin[i] * direction;
        x[i] = a * c - b * s;
        x[half + i] = b * c + a * s;
    }
}

// Softmax, in place, of scale times row[0..last]; row[last + 1..width - 1] becomes 0. width is a multiple of 16.
static inline void softmax(float *row, long last, long width, float scale) {
    ivec lane;
    for (int l = 0; l < LANES; l++) lane[l] = l;
    vec maxima = broadcast(-INFINITY), sum = {0};
    float highest = -INFINITY;
    for (long j = 0; j < width; j += LANES) {
        vec s = blend(lane + (int)j <= (int)last, *(vec *)(row + j), broadcast(-INFINITY));
        maxima = max(s, maxima);
    }
    for (int l = 0; l < LANES; l++) highest = maxima[l] > highest ? maxima[l] : highest;
    for (long j = 0; j < width; j += LANES) {
        vec e = vexp((*(vec *)(row + j) - highest) * scale);
        sum += *(vec *)(row + j) = blend(lane + (int)j <= (int)last, e, broadcast(0));
    }
    float factor = 1.0f / reduce_sum(sum);
    for (long j = 0; j < width; j += LANES) *(vec *)(row + j) *= factor;
}

#endif
