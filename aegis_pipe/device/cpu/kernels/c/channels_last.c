/* Depthwise convolutions and pools of images with their channels last: N, H, W, C.
 *
 * Channels lie in the lanes, 16 at a time (see vector.h), so neighbouring pixels are `channels` floats
 * apart, no tap needs a shuffle, and padding is a matter of leaving taps out.
 *
 *     for each output row (workers share them, or the channels if rows are few)
 *       for each 16 channels
 *         for each 4 results of the row:  over the taps that lie inside the image
 */
#include "depthwise.h"
#include "step.h"

typedef struct {
    const float *x, *w, *bias, *residual; /* w: [channels / 16][tap][16]; the last two or all three NULL */
    float *y;
    int64_t batch, channels, height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t dilation_height, dilation_width, pad_top, pad_left, pad_bottom, pad_right;
    float low, high;
    int64_t clips; /* convolutions: between low and high */
    int64_t counts_pads; /* averages: whether padding counts in the divisor */
} windows;

typedef enum { DEPTHWISE, MAXIMUM, AVERAGE } purpose;

enum { GROUP = 4 }; /* results of a row whose sums hide each other's latency */

typedef struct { int64_t first, last; } taps;

/* The taps of a window starting at `start` that meet [low, high). */
INLINE taps taps_within(int64_t start, int64_t kernel, int64_t dilation, int64_t low, int64_t high) {
    int64_t first = start < low ? ceil_divide(low - start, dilation) : 0;
    int64_t last = start >= high ? 0 : smaller(kernel, ceil_divide(high - start, dilation));
    return (taps){first, larger(first, last)};
}

/* `count` neighbouring results, all meeting the taps `across` of a row and `down` of a column; `start`
 * is the pixel at which the first window begins. */
INLINE void some_results(const windows *k, const float *x, const float *w, wide bias, int64_t row_at, int64_t column,
                         taps down, taps across, int64_t lanes, int is_whole, int count, purpose what, wide share,
                         float *y, const float *residual) {
    int64_t row_floats = k->width * k->channels, pixel = k->channels;
    wide sums[GROUP];
    UNROLL for (int i = 0; i < count; i++) sums[i] = what == MAXIMUM ? wide_of(-__builtin_inff()) : wide_of(0);
    const float *corner = x + (column * k->stride_width - k->pad_left) * pixel;
    for (int64_t kh = down.first; kh < down.last; kh++) {
        const float *line = corner + (row_at + kh * k->dilation_height) * row_floats;
        for (int64_t kw = across.first; kw < across.last; kw++) {
            const float *tap = line + kw * k->dilation_width * pixel;
            wide weight = what == DEPTHWISE ? wide_load(w + (kh * k->kernel_width + kw) * WIDE) : wide_of(0);
            UNROLL for (int i = 0; i < count; i++) {
                wide v = load_channels(tap + i * k->stride_width * pixel, lanes, is_whole);
                if (what == DEPTHWISE) sums[i] = multiply_add(v, weight, sums[i]);
                else if (what == MAXIMUM) sums[i] = wide_max(sums[i], v);
                else sums[i] += v;
            }
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        wide sum = sums[i];
        if (what == AVERAGE) sum *= share;
        if (what == DEPTHWISE) {
            sum += bias;
            if (residual) sum += load_channels(residual + (column + i) * pixel, lanes, is_whole);
            if (k->clips) sum = wide_at_most(wide_at_least(sum, wide_of(k->low)), wide_of(k->high));
        }
        if (is_whole) wide_store(y + (column + i) * pixel, sum);
        else wide_store_part(y + (column + i) * pixel, sum, lanes);
    }
}

/* 1 / the number of elements of an average's window. */
INLINE float share_of(const windows *k, int64_t row, int64_t column) {
    int64_t top = k->counts_pads ? k->pad_top : 0, left = k->counts_pads ? k->pad_left : 0;
    int64_t bottom = k->height + (k->counts_pads ? k->pad_bottom : 0);
    int64_t right = k->width + (k->counts_pads ? k->pad_right : 0);
    taps down = taps_within(row, k->kernel_height, k->dilation_height, -top, bottom);
    taps across = taps_within(column, k->kernel_width, k->dilation_width, -left, right);
    return 1.0f / (float)larger(1, (down.last - down.first) * (across.last - across.first));
}

/* One output row of up to 16 channels. */
INLINE void channel_row(const windows *k, const float *x, const float *w, wide bias, int64_t row, int64_t lanes,
                        int is_whole, purpose what, float *y, const float *residual) {
    int64_t row_at = row * k->stride_height - k->pad_top;
    taps down = taps_within(row_at, k->kernel_height, k->dilation_height, 0, k->height);
    int64_t reach = (k->kernel_width - 1) * k->dilation_width;
    /* Results from `first` to before `last` meet all taps of a row. */
    int64_t first = smaller(k->out_width, ceil_divide(k->pad_left, k->stride_width));
    int64_t last = k->width - 1 - reach + k->pad_left;
    last = last < 0 ? first : larger(first, smaller(k->out_width, last / k->stride_width + 1));
    taps all = {0, k->kernel_width};
    wide share = wide_of(what == AVERAGE ? share_of(k, row_at, first * k->stride_width - k->pad_left) : 0);
    for (int64_t column = 0; column < k->out_width;) {
        if (column >= first && column + GROUP <= last) {
            some_results(k, x, w, bias, row_at, column, down, all, lanes, is_whole, GROUP, what, share, y, residual);
            column += GROUP;
            continue;
        }
        int64_t start = column * k->stride_width - k->pad_left;
        taps across = taps_within(start, k->kernel_width, k->dilation_width, 0, k->width);
        wide own = wide_of(what == AVERAGE ? share_of(k, row_at, start) : 0);
        some_results(k, x, w, bias, row_at, column, down, across, lanes, is_whole, 1, what, own, y, residual);
        column++;
    }
}

INLINE void channel_rows(const windows *original, worker self, purpose what, int64_t kernel_height,
                         int64_t kernel_width) {
    /* A copy whose address nobody has: the compiler may keep it in registers. */
    windows k = *original;
    k.kernel_height = kernel_height, k.kernel_width = kernel_width;
    int64_t count = kernel_height * kernel_width;
    int64_t rows = k.batch * k.out_height;
    range mine = part_of(self, rows), channels = {0, k.channels};
    if (rows < self.count) {
        range groups = part_of(self, ceil_divide(k.channels, WIDE));
        mine = (range){0, rows}, channels = (range){groups.first * WIDE, smaller(k.channels, groups.last * WIDE)};
    }
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t image = unit / k.out_height, row = unit % k.out_height;
        const float *x = k.x + image * k.height * k.width * k.channels;
        int64_t results = unit * k.out_width * k.channels;
        for (int64_t channel = channels.first; channel < channels.last; channel += WIDE) {
            int64_t lanes = smaller(WIDE, k.channels - channel);
            const float *w = what == DEPTHWISE ? k.w + channel * count : NULL;
            wide bias = k.bias ? row_load(k.bias, channel, k.channels) : wide_of(0);
            const float *residual = k.residual ? k.residual + results + channel : NULL;
            float *y = k.y + results + channel;
            if (lanes == WIDE) channel_row(&k, x + channel, w, bias, row, lanes, 1, what, y, residual);
            else channel_row(&k, x + channel, w, bias, row, lanes, 0, what, y, residual);
        }
    }
}

/* Floats that a strip of rows reads at most: it meets one group of channels after the other. */
enum { STRIP_FLOATS = 64 << 10 };

/* Whether `depthwise.h` knows such windows. */
INLINE int is_three_by_three(const windows *k) {
    return k->kernel_height == 3 && k->kernel_width == 3 && k->dilation_height == 1 && k->dilation_width == 1 &&
           k->stride_height == k->stride_width && k->stride_width <= 2;
}

static void depthwise_strips(const windows *k, worker self) {
    int64_t stride = k->stride_width, next;
    int64_t strip = larger(1, STRIP_FLOATS / (stride * k->width * k->channels));
    range mine = part_of(self, k->batch * k->out_height);
    for (int64_t unit = mine.first; unit < mine.last; unit = next) {
        int64_t image = unit / k->out_height, row = unit % k->out_height;
        next = smaller(mine.last, unit + smaller(strip, k->out_height - row));
        int64_t results = unit * k->out_width * k->channels;
        depthwise part = {.x = k->x + image * k->height * k->width * k->channels, .w = k->w, .bias = k->bias,
                          .residual = k->residual ? k->residual + results : NULL, .y = k->y + results,
                          .channels = k->channels, .height = k->height, .width = k->width,
                          .out_width = k->out_width, .pad_top = k->pad_top, .pad_left = k->pad_left,
                          .first = row, .last = row + next - unit,
                          .low = k->low, .high = k->high, .clips = k->clips};
        depthwise_3x3(&part, stride);
    }
}

SHARED_KERNEL(aegis_depthwise_channels_last, windows) {
    const windows *k = arguments;
    if (is_three_by_three(k)) depthwise_strips(k, self);
    else channel_rows(k, self, DEPTHWISE, k->kernel_height, k->kernel_width);
}

SHARED_KERNEL(aegis_max_pool_channels_last, windows) {
    const windows *k = arguments;
    if (k->kernel_height == 3 && k->kernel_width == 3) channel_rows(k, self, MAXIMUM, 3, 3);
    else channel_rows(k, self, MAXIMUM, k->kernel_height, k->kernel_width);
}

SHARED_KERNEL(aegis_average_pool_channels_last, windows) {
    const windows *k = arguments;
    channel_rows(k, self, AVERAGE, k->kernel_height, k->kernel_width);
}
