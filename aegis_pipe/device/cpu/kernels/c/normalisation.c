/* Softmax along any dimension, normalisations over rows that are contiguous, BatchNormalization, LRN.
 *
 * Sums run in 16 lanes (see vector.h), folded at the end of a row.
 */
#include "softmax.h"
#include "step.h"

typedef struct {
    const float *x;
    float *y;
    int64_t outer, count, inner; /* X[outer][count][inner]; over the `count` */
    int64_t takes_logarithm;
} softmax;

/* Neighbouring elements: a row is one sum. */
INLINE void softmax_row(const float *x, float *y, int64_t count, int takes_logarithm) {
    wide sum = wide_of(0);
    float largest = row_largest(x, count);
    for (int64_t i = 0; i < count; i += WIDE) {
        wide power = wide_exp_short(load_power(x, i, count) - largest);
        sum += power;
        if (!takes_logarithm) row_store(y, i, count, power);
    }
    float total = wide_sum(sum);
    if (takes_logarithm) {
        wide logarithm = wide_log(wide_of(total));
        for (int64_t i = 0; i < count; i += WIDE)
            row_store(y, i, count, row_load(x, i, count) - largest - logarithm);
    } else {
        wide factor = wide_of(1.0f / total);
        for (int64_t i = 0; i < count; i += WIDE) row_store(y, i, count, row_load(y, i, count) * factor);
    }
}

/* Neighbouring sums, in registers: several, since the elements of one lie far apart. */
enum { SUMS = 4 };

INLINE void softmax_columns(const softmax *s, const float *x, float *y, int64_t columns, int vectors,
                            int takes_logarithm) {
    wide best[SUMS], sum[SUMS];
    UNROLL for (int v = 0; v < vectors; v++) best[v] = wide_of(-__builtin_inff()), sum[v] = wide_of(0);
    for (int64_t k = 0; k < s->count; k++)
        UNROLL for (int v = 0; v < vectors; v++)
            best[v] = larger_lanes(best[v], row_load(x + k * s->inner, v * WIDE, columns));
    for (int64_t k = 0; k < s->count; k++)
        UNROLL for (int v = 0; v < vectors; v++) {
            wide power = wide_exp_short(row_load(x + k * s->inner, v * WIDE, columns) - best[v]);
            sum[v] += power;
            if (!takes_logarithm) row_store(y + k * s->inner, v * WIDE, columns, power);
        }
    UNROLL for (int v = 0; v < vectors; v++) sum[v] = takes_logarithm ? wide_log(sum[v]) : 1.0f / sum[v];
    for (int64_t k = 0; k < s->count; k++)
        UNROLL for (int v = 0; v < vectors; v++) {
            const float *from = (takes_logarithm ? x : y) + k * s->inner;
            wide value = row_load(from, v * WIDE, columns);
            value = takes_logarithm ? value - best[v] - sum[v] : value * sum[v];
            row_store(y + k * s->inner, v * WIDE, columns, value);
        }
}

INLINE void softmax_part(const softmax *s, worker self, int takes_logarithm) {
    int64_t count = s->count, blocks = s->inner == 1 ? 1 : ceil_divide(s->inner, SUMS * WIDE);
    range mine = part_of(self, s->outer * blocks);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        const float *x = s->x + unit / blocks * count * s->inner;
        float *y = s->y + unit / blocks * count * s->inner;
        int64_t column = unit % blocks * SUMS * WIDE, end = smaller(s->inner, column + SUMS * WIDE);
        if (s->inner == 1) softmax_row(x, y, count, takes_logarithm);
        else if (end - column == SUMS * WIDE)
            softmax_columns(s, x + column, y + column, SUMS * WIDE, SUMS, takes_logarithm);
        else
            for (; column < end; column += WIDE)
                softmax_columns(s, x + column, y + column, smaller(WIDE, end - column), 1, takes_logarithm);
    }
}

/* exp(x - max) / sum, or its logarithm x - max - log(sum); where all are -inf, NaN. */
SHARED_KERNEL(aegis_softmax, softmax) {
    const softmax *s = arguments;
    if (s->takes_logarithm) softmax_part(s, self, 1);
    else softmax_part(s, self, 0);
}

typedef struct {
    const float *x, *scale, *bias; /* scale and bias: [count]; bias may be NULL */
    const float *skip, *skip_bias; /* added to x first: like x, and [count]; or NULL */
    float *sum; /* where x + skip + skip_bias is wanted as well, or NULL */
    float *y, *mean, *inverse_deviation; /* the last two: [rows], or NULL */
    int64_t rows, count;
    float epsilon;
    int32_t centres; /* 0: RMSNormalization, the mean is not taken away */
} layer_normalisation;

INLINE void add_skip(const layer_normalisation *n, const float *x, const float *skip, float *to) {
    for (int64_t i = 0; i < n->count; i += WIDE) {
        wide v = row_load(x, i, n->count) + row_load(skip, i, n->count);
        if (n->skip_bias) v += row_load(n->skip_bias, i, n->count);
        row_store(to, i, n->count, v);
    }
}

/* (x - mean) / sqrt(variance + epsilon) * scale + bias; two passes, so that a large mean does not
 * cost the variance its digits. */
SHARED_KERNEL(aegis_layer_normalisation, layer_normalisation) {
    const layer_normalisation *n = arguments;
    int64_t count = n->count;
    range mine = part_of(self, n->rows);
    for (int64_t r = mine.first; r < mine.last; r++) {
        const float *x = n->x + r * count;
        float *y = n->y + r * count;
        if (n->skip) {
            float *skipped = n->sum ? n->sum + r * count : y;
            add_skip(n, x, n->skip + r * count, skipped);
            x = skipped;
        }
        wide sum = wide_of(0), squares = wide_of(0);
        for (int64_t i = 0; n->centres && i < count; i += WIDE) sum += row_load(x, i, count);
        float mean = wide_sum(sum) / (float)count;
        for (int64_t i = 0; i < count; i += WIDE) {
            wide d = row_load(x, i, count) - mean;
            if (i + WIDE > count) d = wide_fill_behind(d, count - i, 0);
            squares = multiply_add(d, d, squares);
        }
        float inverse = 1.0f / __builtin_sqrtf(wide_sum(squares) / (float)count + n->epsilon);
        for (int64_t i = 0; i < count; i += WIDE) {
            wide v = (row_load(x, i, count) - mean) * inverse * row_load(n->scale, i, count);
            if (n->bias) v += row_load(n->bias, i, count);
            row_store(y, i, count, v);
        }
        if (n->mean) n->mean[r] = mean;
        if (n->inverse_deviation) n->inverse_deviation[r] = inverse;
    }
}

typedef struct {
    const float *x, *scale, *bias, *mean, *variance; /* all but x: [channels] */
    float *y;
    int64_t batch, channels, count; /* `count` elements a channel of an image */
    float epsilon;
} batch_normalisation;

SHARED_KERNEL(aegis_batch_normalisation, batch_normalisation) {
    const batch_normalisation *n = arguments;
    range mine = part_of(self, n->batch * n->channels);
    for (int64_t plane = mine.first; plane < mine.last; plane++) {
        int64_t c = plane % n->channels;
        wide factor = wide_of(n->scale[c] / __builtin_sqrtf(n->variance[c] + n->epsilon));
        wide shift = multiply_add(wide_of(-n->mean[c]), factor, wide_of(n->bias[c]));
        const float *x = n->x + plane * n->count;
        float *y = n->y + plane * n->count;
        for (int64_t i = 0; i < n->count; i += WIDE)
            row_store(y, i, n->count, multiply_add(row_load(x, i, n->count), factor, shift));
    }
}

typedef struct {
    const float *x;
    float *y;
    int64_t batch, channels, count; /* X[batch][channels][count] */
    int64_t before, after; /* neighbours of a channel that count */
    float alpha, bias, beta; /* alpha: of the sum, not of the mean */
} local_response;

/* v^-beta of what is positive; nearly all models have 3/4, which roots are better at. */
INLINE wide falling_power(wide v, float beta) {
    if (beta != 0.75f) return wide_exp(wide_log(v) * -beta);
    wide root = __builtin_elementwise_sqrt(v);
    return 1.0f / (root * __builtin_elementwise_sqrt(root));
}

INLINE void local_response_block(const local_response *n, const float *x, float *y, int64_t columns) {
    for (int64_t c = 0; c < n->channels; c++) {
        wide sum = wide_of(0);
        int64_t last = smaller(n->channels - 1, c + n->after);
        for (int64_t k = larger(0, c - n->before); k <= last; k++) {
            wide v = row_load(x + k * n->count, 0, columns);
            sum += v * v;
        }
        wide factor = falling_power(sum * n->alpha + n->bias, n->beta);
        row_store(y + c * n->count, 0, columns, row_load(x + c * n->count, 0, columns) * factor);
    }
}

/* y = x (bias + alpha times the squares of neighbouring channels)^-beta: Krizhevsky et al., "ImageNet
 * Classification with Deep Convolutional Neural Networks" (2012), section 3.3. */
SHARED_KERNEL(aegis_local_response, local_response) {
    const local_response *n = arguments;
    int64_t blocks = ceil_divide(n->count, WIDE), plane = n->channels * n->count;
    range mine = part_of(self, n->batch * blocks);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t column = unit % blocks * WIDE, start = unit / blocks * plane + column;
        local_response_block(n, n->x + start, n->y + start, smaller(WIDE, n->count - column));
    }
}
