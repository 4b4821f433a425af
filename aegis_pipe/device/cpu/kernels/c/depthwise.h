/* Depthwise 3x3 windows of images with their channels last, 16 channels at a time.
 *
 *     for each 16 channels:  the nine weights stay in registers
 *       for each output row:  its three input rows stay in the first-level cache for the next one
 *         for each 4 results:  neighbours share what they load
 *
 * Every sum runs over the taps inside the image, row by row, from 0 on; then the bias.
 */
#ifndef AEGIS_DEPTHWISE_H
#define AEGIS_DEPTHWISE_H

#include "vector.h"

/* Rows are numbered as in the whole image, of which only those that are read need to be there. */
typedef struct {
    const float *x, *w, *bias, *residual; /* w: [channels / 16][9][16]; the last two or NULL */
    float *y; /* its first row is output row `first` */
    int64_t channels, height, width, out_width, pad_top, pad_left;
    int64_t first, last; /* output rows */
    float low, high;
    int64_t clips;
} depthwise;

/* Channels that are loaded at once; `is_whole` is known to the compiler. */
INLINE wide load_channels(const float *p, int64_t count, int is_whole) {
    return is_whole ? wide_load(p) : wide_load_part(p, count);
}

/* One output row of up to 16 channels. */
typedef struct {
    const float *line; /* where the first window's first tap is */
    const float *residual;
    float *y;
    int64_t first, last; /* taps of a column inside the image */
} depthwise_row;

/* `count` neighbouring results from `column` on, all meeting the taps `left` to before `right` of a row. */
INLINE void three_by_three(const depthwise *d, const depthwise_row *row, const wide weights[9], wide bias,
                           int64_t column, int64_t lanes, int is_whole, int stride, int left, int right, int count) {
    int64_t pixel = d->channels;
    const float *corner = row->line + column * stride * pixel;
    wide sums[4];
    UNROLL for (int i = 0; i < count; i++) sums[i] = wide_of(0);
    UNROLL for (int kh = 0; kh < 3; kh++) {
        if (kh < row->first || kh >= row->last) continue;
        const float *line = corner + kh * d->width * pixel;
        UNROLL for (int kw = left; kw < right; kw++)
            UNROLL for (int i = 0; i < count; i++)
                sums[i] = multiply_add(load_channels(line + (i * stride + kw) * pixel, lanes, is_whole),
                                       weights[kh * 3 + kw], sums[i]);
    }
    UNROLL for (int i = 0; i < count; i++) {
        wide sum = sums[i] + bias;
        if (row->residual) sum += load_channels(row->residual + (column + i) * pixel, lanes, is_whole);
        if (d->clips) sum = wide_at_most(wide_at_least(sum, wide_of(d->low)), wide_of(d->high));
        if (is_whole) wide_store(row->y + (column + i) * pixel, sum);
        else wide_store_part(row->y + (column + i) * pixel, sum, lanes);
    }
}

INLINE void depthwise_channels(const depthwise *d, int64_t channel, int64_t lanes, int is_whole, int stride) {
    wide weights[9], bias = d->bias ? load_channels(d->bias + channel, lanes, is_whole) : wide_of(0);
    UNROLL for (int i = 0; i < 9; i++) weights[i] = wide_load(d->w + channel * 9 + i * WIDE);
    /* Results from `inner` to before `edge` meet all taps of a row. */
    int64_t inner = smaller(d->out_width, ceil_divide(d->pad_left, stride));
    int64_t edge = d->width - 3 + d->pad_left;
    edge = edge < 0 ? inner : larger(inner, smaller(d->out_width, edge / stride + 1));
    for (int64_t r = d->first; r < d->last; r++) {
        int64_t at = r * stride - d->pad_top, result = (r - d->first) * d->out_width * d->channels + channel;
        depthwise_row row = {d->x + (at * d->width - d->pad_left) * d->channels + channel,
                             d->residual ? d->residual + result : NULL, d->y + result,
                             larger(0, -at), smaller(3, d->height - at)};
        int64_t column = 0;
#define RESULTS(left, right, count) \
    three_by_three(d, &row, weights, bias, column, lanes, is_whole, stride, left, right, count)
        for (; column < d->out_width; column++) {
            if (column == inner) {
                for (; column + 4 <= edge; column += 4) RESULTS(0, 3, 4);
                switch (edge - column) {
                    case 3: RESULTS(0, 3, 3); break;
                    case 2: RESULTS(0, 3, 2); break;
                    case 1: RESULTS(0, 3, 1); break;
                }
                column = larger(column, edge);
                if (column == d->out_width) break;
            }
            int64_t start = column * stride - d->pad_left;
            int64_t left = larger(0, -start), right = smaller(3, d->width - start);
            if (left <= 0 && right == 2) RESULTS(0, 2, 1);
            else if (left == 1 && right == 3) RESULTS(1, 3, 1);
            else if (left <= 0 && right == 1) RESULTS(0, 1, 1);
            else if (left == 2 && right == 3) RESULTS(2, 3, 1);
            else if (left == 1 && right == 2) RESULTS(1, 2, 1);
            else RESULTS(0, 0, 1);
        }
#undef RESULTS
    }
}

/* `stride` is 1 or 2. */
static void depthwise_3x3(const depthwise *original, int64_t stride) {
    /* A copy whose address nobody has: the compiler may keep it in registers. */
    const depthwise copy = *original, *d = &copy;
    for (int64_t channel = 0; channel < d->channels; channel += WIDE) {
        int64_t lanes = smaller(WIDE, d->channels - channel);
        if (lanes == WIDE && stride == 1) depthwise_channels(d, channel, lanes, 1, 1);
        else if (lanes == WIDE) depthwise_channels(d, channel, lanes, 1, 2);
        else if (stride == 1) depthwise_channels(d, channel, lanes, 0, 1);
        else depthwise_channels(d, channel, lanes, 0, 2);
    }
}

#endif
