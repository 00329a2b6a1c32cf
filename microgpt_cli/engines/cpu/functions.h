// Functions of a row of numbers: activations, rotary positions, softmax.

#include "numbers.h"

enum { RELU, GELU, RELU2 };

// GELU as tanh approximates it is x s, with s the sigmoid of 2 u, u = sqrt(2 / pi) (x + 0.044715 x^3).
#define GELU_A 1.5957691216f  // 2 sqrt(2 / pi)
#define GELU_B 0.044715f
static inline lanes sigmoid(lanes x) { return 1.0f / (1.0f + exponential(-GELU_A * (x + GELU_B * x * x * x))); }

// f(x), and its slope there
static inline lanes activation(lanes x, int kind, lanes *slope) {
    if (kind == GELU) {
        lanes s = sigmoid(x);
        *slope = s + x * s * (1.0f - s) * GELU_A * (1.0f + 3.0f * GELU_B * x * x);
        return x * s;
    }
    lanes positive = larger(all(0), x);
    if (kind == RELU) {
        *slope = choose(x > 0.0f, all(1), all(0));
        return positive;
    }
    *slope = 2.0f * positive;
    return positive * positive;
}

// (a, b) -> (a cos - b sin, b cos + a sin), of the two halves of a row; the other way round with direction -1
static inline void turn(float *x, const float *cosines, const float *sines, long half, float direction) {
    for (long i = 0; i < half; i++) {
        float a = x[i], b = x[half + i], cosine = cosines[i], sine = sines[i] * direction;
        x[i] = a * cosine - b * sine;
        x[half + i] = b * cosine + a * sine;
    }
}

// Softmax of scale times the numbers of a row up to `last`, 0 in the rest of it; wide is a multiple of 16.
static inline void softmax(float *row, long last, long wide, float scale) {
    ints at;
    for (int l = 0; l < LANES; l++) at[l] = l;
    lanes most = all(-INFINITY), sum = {0};
    float highest = -INFINITY;
    for (long j = 0; j < wide; j += LANES) {
        lanes s = choose(at + (int)j <= (int)last, *(lanes *)(row + j), all(-INFINITY));
        most = larger(s, most);
    }
    for (int l = 0; l < LANES; l++) highest = most[l] > highest ? most[l] : highest;
    for (long j = 0; j < wide; j += LANES) {
        lanes e = exponential((*(lanes *)(row + j) - highest) * scale);
        sum += *(lanes *)(row + j) = choose(at + (int)j <= (int)last, e, all(0));
    }
    float share = 1.0f / total(sum);
    for (long j = 0; j < wide; j += LANES) *(lanes *)(row + j) *= share;
}
