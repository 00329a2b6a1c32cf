// More tokens of one sample: all of a GPT at one position or at many, over a cache of keys and values.
// generation/native_decoding.py calls this; generation/decoding.py says the same in torch.
//
// What a token costs is reading the weights. So they lie as they are read: of a matrix (out, in), TILE outputs together,
// input by input. Norms are without what they have learnt, which is in the matrix after them.
//
// C n_embd, H heads, D head size (C / H), V vocabulary.

#include "functions.h"

#define TILE 64
#define PARTS (TILE / LANES)
#define ROWS 8  // of a prompt that look at a weight together

typedef struct {
    long in, out;
    const number *weight;  // (out / TILE, in, TILE), zeros beyond `out`
    const float *bias;     // (out), or NULL
} Product;

typedef struct {
    Product qkv, proj, fc, fc_proj;
    float *keys, *values;  // (H, positions, D)
} Layer;

typedef struct {
    long V, C, H, n_layer, positions;
    const float *tokens;            // (V, C)
    const float *shifted;           // (V, C): what a token adds to the one after it; or NULL
    const float *places;            // (positions, C), or NULL
    const float *cosines, *sines;   // (positions, D / 2), or NULL
    float eps, qk_eps;              // qk_eps 0: no norm of queries and keys
    int centred, activation;
    const Layer *layers;
    Product head;
} Model;

enum { SET, ADD, ACTIVATE };

// A sum is done: y = sum + bias, y += sum + bias, or y = f(sum + bias), of the outputs from `at` on.
static inline void finish(lanes sum, const Product *product, float *y, long at, int how, int kind) {
    long left = product->out - at;
    lanes slope;
    if (left <= 0) return;
    if (product->bias) sum += take_floats(product->bias + at, left);
    if (how == ADD) sum += take_floats(y + at, left);
    if (how == ACTIVATE) sum = activation(sum, kind, &slope);
    give_floats(sum, y + at, left);
}

// y (T, out) from x (T, in) W; the threads share the tiles, and wait for each other
static inline void multiply(const Product *product, const float *x, float *y, long T, int how, int kind) {
    long in = product->in, out = product->out;
#pragma omp for schedule(static)
    for (long t = 0; t < (out + TILE - 1) / TILE; t++) {
        const number *w = product->weight + t * in * TILE;
        long n = 0;
        for (; n + ROWS <= T; n += ROWS)
            for (int l = 0; l < PARTS; l++) {
                lanes sum[ROWS] = {0};
                for (long i = 0; i < in; i++) {
                    lanes weight = widen(*(const packed *)(w + i * TILE + l * LANES));
                    for (int r = 0; r < ROWS; r++) sum[r] += x[(n + r) * in + i] * weight;
                }
                for (int r = 0; r < ROWS; r++)
                    finish(sum[r], product, y + (n + r) * out, t * TILE + l * LANES, how, kind);
            }
        for (; n < T; n++) {
            lanes sum[PARTS] = {0};
            for (long i = 0; i < in; i++)
                for (int l = 0; l < PARTS; l++)
                    sum[l] += x[n * in + i] * widen(*(const packed *)(w + i * TILE + l * LANES));
            for (int l = 0; l < PARTS; l++) finish(sum[l], product, y + n * out, t * TILE + l * LANES, how, kind);
        }
    }
}

// y = (x - mean) / std, or x / its root mean square
static inline void normalise(const float *x, float *y, long C, float eps, int centred) {
    lanes sum = {0}, squares = {0};
    for (long c = 0; c < C; c += LANES) sum += take_floats(x + c, C - c);
    float mean = centred ? total(sum) / C : 0;
    for (long c = 0; c < C; c++) y[c] = x[c] - mean;
    for (long c = 0; c < C; c += LANES) squares += take_floats(y + c, C - c) * take_floats(y + c, C - c);
    float per_std = 1.0f / sqrtf(total(squares) / C + eps);
    for (long c = 0; c < C; c++) y[c] *= per_std;
}

static inline void normalise_rows(const float *x, float *y, long T, long C, const Model *model) {
    for (long t = 0; t < T; t++) normalise(x + t * C, y + t * C, C, model->eps, model->centred);
}

static inline float along(const float *a, const float *b, long D) {
    lanes sum = {0};
    for (long d = 0; d < D; d += LANES) sum += take_floats(a + d, D - d) * take_floats(b + d, D - d);
    return total(sum);
}

// One head's query looks at its keys up to `position`, where its own is put. qkv (3, H, D) -> y (H, D)
static inline void look(const Model *model, const Layer *layer, long h, long position, float *qkv, float *scores,
                        float *y) {
    long C = model->C, D = C / model->H, half = D / 2, seen = position + 1;
    float *q = qkv + h * D, *k = q + C, *v = k + C;
    float *keys = layer->keys + h * model->positions * D, *values = layer->values + h * model->positions * D;
    for (int i = 0; i < 2; i++) {
        float *row = i ? k : q;
        if (model->qk_eps > 0) normalise(row, row, D, model->qk_eps, 0);
        if (model->cosines) turn(row, model->cosines + position * half, model->sines + position * half, half, 1);
    }
    memcpy(keys + position * D, k, D * sizeof(float));
    memcpy(values + position * D, v, D * sizeof(float));
    for (long j = 0; j < seen; j++) scores[j] = along(q, keys + j * D, D);
    softmax(scores, position, up(seen), 1.0f / sqrtf(D));
    for (long d = 0; d < D; d += LANES) {
        lanes sum = {0};
        for (long j = 0; j < seen; j++) sum += scores[j] * take_floats(values + j * D + d, D - d);
        give_floats(sum, y + h * D + d, D - d);
    }
}

// T tokens, the first at `position` and after the token `before` (-1: none) -> logits (V) after the last. Keys and values
// are kept. scratch: 9 C for each of T.
void take_in(const Model *model, const long *tokens, long before, long position, long T, float *scratch, float *logits) {
    long C = model->C;
    float *x = scratch, *qkv = x + T * C, *heads = qkv + T * 3 * C, *h = heads + T * C;
    for (long t = 0; t < T; t++)
        for (long c = 0; c < C; c++) {
            long last = t ? tokens[t - 1] : before;
            float *at = x + t * C + c;
            *at = model->tokens[tokens[t] * C + c];
            if (model->shifted && last >= 0) *at += model->shifted[last * C + c];
            if (model->places) *at += model->places[(position + t) * C + c];
        }
#pragma omp parallel
    {
        float *own = malloc((T * C + up(model->positions)) * sizeof(float)), *scores = own + T * C;
        for (const Layer *layer = model->layers; layer < model->layers + model->n_layer; layer++) {
            normalise_rows(x, own, T, C, model);  // each thread for itself: it costs less than to wait
            multiply(&layer->qkv, own, qkv, T, SET, 0);
#pragma omp for schedule(static)
            for (long head = 0; head < model->H; head++)
                for (long t = 0; t < T; t++)
                    look(model, layer, head, position + t, qkv + t * 3 * C, scores, heads + t * C);
            multiply(&layer->proj, heads, x, T, ADD, 0);
            normalise_rows(x, own, T, C, model);
            multiply(&layer->fc, own, h, T, ACTIVATE, model->activation);
            multiply(&layer->fc_proj, h, x, T, ADD, 0);
        }
        normalise_rows(x + (T - 1) * C, own, 1, C, model);
        multiply(&model->head, own, logits, 1, SET, 0);
        free(own);
    }
}

// Where the running sum of the probabilities passes `number`, in [0, 1); the likeliest at temperature 0.
static long pick(const float *logits, long V, double temperature, double number) {
    long likeliest = 0;
    for (long v = 1; v < V; v++)  // the first that is not a number, if one is: as torch has it
        if (!(logits[v] <= logits[likeliest]) && logits[likeliest] == logits[likeliest]) likeliest = v;
    if (temperature == 0) return likeliest;
    double weights[V], whole = 0, sum = 0;
    for (long v = 0; v < V; v++) whole += weights[v] = exp((logits[v] - (double)logits[likeliest]) / temperature);
    for (long v = 0; v < V; v++)
        if ((sum += weights[v] / whole) > number) return v;
    return V - 1;
}

// `count` tokens after `token` at `position`, each drawn by a number of its own
void write_on(const Model *model, long token, long before, long position, long count, double temperature,
              const double *numbers, float *scratch, float *logits, long *tokens) {
    for (long i = 0; i < count; i++) {
        take_in(model, &token, before, position + i, 1, scratch, logits);
        before = token;
        token = tokens[i] = pick(logits, model->V, temperature, numbers[i]);
    }
}
