// Decoding of one sample: the whole forward pass of a GPT for one or more tokens, with a cache of keys and values, and
// the choice of the next token. decode.py calls it; engines/decoding.py has the same in torch.
//
// Decoding is bound by reading the weights, so they are stored in the order they are read: a matrix (out, in) as panels
// of PANEL outputs, input by input. The scale and shift of a norm are folded into the matrix after it.
//
// C n_embd, H heads, D head size (C / H), V vocabulary size.

#include "activations.h"

#define PANEL 64
#define PANEL_VECS (PANEL / LANES)
#define ROWS 8  // tokens of a prompt that share one load of a weight

typedef struct {
    long in, out;
    const scalar *weight;  // (out / PANEL, in, PANEL), zeros beyond `out`
    const float *bias;     // (out), or NULL
} Linear;

typedef struct {
    Linear qkv, proj, fc, fc_proj;
    float *keys, *values;  // (H, positions, D)
} Layer;

typedef struct {
    long V, C, H, n_layer, positions;
    const float *token_embedding;     // (V, C)
    const float *prev_token_bias;     // (V, C): what a token adds to the embedding of the next one; or NULL
    const float *position_embedding;  // (positions, C), or NULL
    const float *cos, *sin;           // (positions, D / 2) of the rotary angles, or NULL
    float eps, qk_eps;                // of the norms; qk_eps 0: no norm of queries and keys
    int subtract_mean, activation;    // subtract_mean 0: RMSNorm
    const Layer *layers;
    Linear head;
} Model;

enum { SET, ADD, ACTIVATE };

// Stores outputs `first` and on: y = sum + bias, y += sum + bias, or y = f(sum + bias).
static inline void epilogue(vec sum, const Linear *linear, float *y, long first, int how, int kind) {
    long left = linear->out - first;
    vec derivative;
    if (left <= 0) return;
    if (linear->bias) sum += load_float(linear->bias + first, left);
    if (how == ADD) sum += load_float(y + first, left);
    if (how == ACTIVATE) sum = activation(sum, kind, &derivative);
    store_float(sum, y + first, left);
}

// y (T, out) from x (T, in). Called by all threads, which share the panels and end at a barrier.
static inline void apply_linear(const Linear *linear, const float *x, float *y, long T, int how, int kind) {
    long in = linear->in, out = linear->out;
#pragma omp for schedule(static)
    for (long p = 0; p < (out + PANEL - 1) / PANEL; p++) {
        const scalar *w = linear->weight + p * in * PANEL;
        long n = 0;
        for (; n + ROWS <= T; n += ROWS)
            for (int l = 0; l < PANEL_VECS; l++) {
                vec sum[ROWS] = {0};
                for (long i = 0; i < in; i++) {
                    vec weight = widen(*(const packed *)(w + i * PANEL + l * LANES));
                    for (int r = 0; r < ROWS; r++) sum[r] += x[(n + r) * in + i] * weight;
                }
                for (int r = 0; r < ROWS; r++)
                    epilogue(sum[r], linear, y + (n + r) * out, p * PANEL + l * LANES, how, kind);
            }
        for (; n < T; n++) {
            vec sum[PANEL_VECS] = {0};
            for (long i = 0; i < in; i++)
                for (int l = 0; l < PANEL_VECS; l++)
                    sum[l] += x[n * in + i] * widen(*(const packed *)(w + i * PANEL + l * LANES));
            for (int l = 0; l < PANEL_VECS; l++) epilogue(sum[l], linear, y + n * out, p * PANEL + l * LANES, how, kind);
        }
    }
}

// y = (x - mean) / std, or x / rms
static inline void normalize(const float *x, float *y, long C, float eps, int subtract_mean) {
    vec sum = {0}, squares = {0};
    for (long c = 0; c < C; c += LANES) sum += load_float(x + c, C - c);
    float mean = subtract_mean ? reduce_sum(sum) / C : 0;
    for (long c = 0; c < C; c++) y[c] = x[c] - mean;
    for (long c = 0; c < C; c += LANES) squares += load_float(y + c, C - c) * load_float(y + c, C - c);
    float inverse_std = 1.0f / sqrtf(reduce_sum(squares) / C + eps);
    for (long c = 0; c < C; c++) y[c] *= inverse_std;
}

static inline void normalize_rows(const float *x, float *y, long T, long C, const Model *model) {
    for (long t = 0; t < T; t++) normalize(x + t * C, y + t * C, C, model->eps, model->subtract_mean);
}

static inline float dot(const float *a, const float *b, long D) {
    vec sum = {0};
    for (long d = 0; d < D; d += LANES) sum += load_float(a + d, D - d) * load_float(b + d, D - d);
    return reduce_sum(sum);
}

// Attention of one head at `position`, whose key and value it adds to the cache. qkv (3, H, D), changed -> y (H, D)
static inline void attend_one(const Model *model, const Layer *layer, long h, long position, float *qkv, float *scores,
                              float *y) {
    long C = model->C, D = C / model->H, half = D / 2, length = position + 1;
    float *q = qkv + h * D, *k = q + C, *v = k + C;
    float *keys = layer->keys + h * model->positions * D, *values = layer->values + h * model->positions * D;
    for (int i = 0; i < 2; i++) {
        float *row = i ? k : q;
        if (model->qk_eps > 0) normalize(row, row, D, model->qk_eps, 0);
        if (model->cos) rotate(row, model->cos + position * half, model->sin + position * half, half, 1);
    }
    memcpy(keys + position * D, k, D * sizeof(float));
    memcpy(values + position * D, v, D * sizeof(float));
    for (long j = 0; j < length; j++) scores[j] = dot(q, keys + j * D, D);
    softmax(scores, position, round_up16(length), 1.0f / sqrtf(D));
    for (long d = 0; d < D; d += LANES) {
        vec sum = {0};
        for (long j = 0; j < length; j++) sum += scores[j] * load_float(values + j * D + d, D - d);
        store_float(sum, y + h * D + d, D - d);
    }
}

// The forward pass for T tokens, the first at `position` and after the token `previous` (-1: none) -> logits (V) after
// the last. Adds keys and values to the cache. activations: 9 C for each token.
int forward(const Model *model, const long *tokens, long previous, long position, long T, float *activations,
            float *logits) {
    long C = model->C, size = round_up16(T * C + round_up16(model->positions));  // of a thread's buffers
    float *x = activations, *qkv = x + T * C, *heads = qkv + T * 3 * C, *h = heads + T * C;
    float *buffers = allocate(omp_get_max_threads() * size);
    if (!buffers) return OUT_OF_MEMORY;
    for (long t = 0; t < T; t++)
        for (long c = 0; c < C; c++) {
            long last = t ? tokens[t - 1] : previous;
            float *element = x + t * C + c;
            *element = model->token_embedding[tokens[t] * C + c];
            if (model->prev_token_bias && last >= 0) *element += model->prev_token_bias[last * C + c];
            if (model->position_embedding) *element += model->position_embedding[(position + t) * C + c];
        }
#pragma omp parallel
    {
        float *normed = buffers + omp_get_thread_num() * size, *scores = normed + T * C;
        for (const Layer *layer = model->layers; layer < model->layers + model->n_layer; layer++) {
            normalize_rows(x, normed, T, C, model);  // by every thread for itself, which costs less than a barrier
            apply_linear(&layer->qkv, normed, qkv, T, SET, 0);
#pragma omp for schedule(static)
            for (long head = 0; head < model->H; head++)
                for (long t = 0; t < T; t++)
                    attend_one(model, layer, head, position + t, qkv + t * 3 * C, scores, heads + t * C);
            apply_linear(&layer->proj, heads, x, T, ADD, 0);
            normalize_rows(x, normed, T, C, model);
            apply_linear(&layer->fc, normed, h, T, ACTIVATE, model->activation);
            apply_linear(&layer->fc_proj, h, x, T, ADD, 0);
        }
        normalize_rows(x + (T - 1) * C, normed, 1, C, model);
        apply_linear(&model->head, normed, logits, 1, SET, 0);
    }
    free(buffers);
    return OK;
}

// The token at which the cumulative probability exceeds `uniform`, in [0, 1); at temperature 0 the most likely one.
// weights: V, written to.
static long sample_token(const float *logits, long V, double temperature, double uniform, double *weights) {
    long likeliest = 0;
    for (long v = 1; v < V; v++)  // the first NaN, if there is one, as torch.argmax
        if (!(logits[v] <= logits[likeliest]) && logits[likeliest] == logits[likeliest]) likeliest = v;
    if (temperature == 0) return likeliest;
    double total = 0, sum = 0;
    for (long v = 0; v < V; v++) total += weights[v] = exp((logits[v] - (double)logits[likeliest]) / temperature);
    for (long v = 0; v < V; v++)
        if ((sum += weights[v] / total) > uniform) return v;
    return V - 1;
}

// `count` tokens after `token`, which is at `position`; each is drawn with its own element of uniforms.
int generate(const Model *model, long token, long previous, long position, long count, double temperature,
             const double *uniforms, float *activations, float *logits, long *tokens) {
    double *weights = malloc(model->V * sizeof(double));
    if (!weights) return OUT_OF_MEMORY;
    int status = OK;
    for (long i = 0; i < count && status == OK; i++) {
        status = forward(model, &token, previous, position + i, 1, activations, logits);
        previous = token;
        if (status == OK) token = tokens[i] = sample_token(logits, model->V, temperature, uniforms[i], weights);
    }
    free(weights);
    return status;
}
