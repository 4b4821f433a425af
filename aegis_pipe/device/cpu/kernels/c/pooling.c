/* Pools over windows of a plane, [planes][height][width]. Windows are separable:
 *
 *     for each plane
 *       for each strip of output rows
 *         for each row:  combine the windows' input rows into one row (16 columns at a time), its
 *           columns sorted by their remainder modulo the stride, padding filled in
 *         for each row:  combine neighbours, again 16 results at a time
 *
 * A strip, because a row just written is still on its way to the cache: reading it at other
 * boundaries than those of its stores would wait for it.
 */
#include "columns.h"
#include "step.h"

typedef struct {
    const float *x;
    float *y, *workspace; /* STRIP sorted rows, one unsorted, and 1 / count of each column of averages */
    int64_t planes, height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t dilation_height, dilation_width, pad_top, pad_left, pad_bottom, pad_right;
    int64_t row_floats; /* room of one sorted row: a whole last register beyond out_width and the taps */
    int64_t counts_pads; /* averages: whether padding counts in the divisor */
    int64_t workspace_floats; /* of one worker */
} pool;

enum { STRIP = 8 };

typedef struct { int64_t first, last; } taps;

/* The taps of a window starting at `start` that meet [low, high). */
INLINE taps taps_within(int64_t start, int64_t kernel, int64_t dilation, int64_t low, int64_t high) {
    int64_t first = start < low ? ceil_divide(low - start, dilation) : 0;
    int64_t last = start >= high ? 0 : smaller(kernel, ceil_divide(high - start, dilation));
    return (taps){first, larger(first, last)};
}

INLINE wide combine(wide a, wide b, int is_max) { return is_max ? wide_max(a, b) : a + b; }

/* Combines the window's rows of a plane: writes row[width]. */
INLINE void combine_rows(const pool *p, const float *x, taps t, int64_t start, float neutral, int is_max,
                         float *row) {
    const float *first = x + (start + t.first * p->dilation_height) * p->width;
    for (int64_t column = 0; column < p->width; column += WIDE) {
        const float *from = first;
        wide best = wide_of(neutral);
        for (int64_t tap = t.first; tap < t.last; tap++, from += p->dilation_height * p->width)
            best = combine(best, row_load(from, column, p->width), is_max);
        row_store(row, column, p->width, best);
    }
}

/* Combines the rows that one output row's windows meet, and sorts them. */
INLINE void prepare_row(const pool *p, const float *x, int64_t out_row, float neutral, int is_max, float *row,
                        float *sorted) {
    int64_t start = out_row * p->stride_height - p->pad_top;
    taps met = taps_within(start, p->kernel_height, p->dilation_height, 0, p->height);
    combine_rows(p, x, met, start, neutral, is_max, p->stride_width == 1 ? sorted + p->pad_left : row);
    if (p->stride_width > 1) sort_columns(row, p->width, p->stride_width, p->pad_left, p->row_floats, sorted);
}

/* Combines neighbours of a sorted row; `shares` and `share` are 1 / count of averages. */
INLINE void finish_row(const pool *p, const float *sorted, float neutral, int is_max, const float *shares,
                       float share, float *y) {
    for (int64_t column = 0; column < p->out_width; column += WIDE) {
        wide best = wide_of(neutral);
        sorted_tap tap = {0, 0};
        for (int64_t kw = 0; kw < p->kernel_width; kw++) {
            best = combine(best, wide_load(sorted + tap.remainder * p->row_floats + tap.place + column), is_max);
            tap = next_tap(tap, p->dilation_width, p->stride_width);
        }
        if (!is_max) best *= row_load(shares, column, p->out_width) * share;
        row_store(y, column, p->out_width, best);
    }
}

INLINE void pool_planes(const pool *p, worker self, int is_max) {
    const float neutral = is_max ? -__builtin_inff() : 0;
    int64_t sorted_floats = p->stride_width * p->row_floats;
    float *sorted = p->workspace + self.thread * p->workspace_floats, *row = sorted + STRIP * sorted_floats, *shares = row + p->row_floats;
    int64_t pads_top = p->counts_pads ? p->pad_top : 0, pads_left = p->counts_pads ? p->pad_left : 0;
    int64_t bottom = p->height + (p->counts_pads ? p->pad_bottom : 0);
    int64_t right = p->width + (p->counts_pads ? p->pad_right : 0);
    for (int64_t column = 0; !is_max && column < p->out_width; column++) {
        taps t = taps_within(column * p->stride_width - p->pad_left, p->kernel_width, p->dilation_width,
                             -pads_left, right);
        shares[column] = 1.0f / (float)larger(1, t.last - t.first);
    }
    /* The padding is the same for all rows: filled in once, never written again. */
    for (int64_t i = 0; i < STRIP * sorted_floats; i += WIDE) wide_store(sorted + i, wide_of(neutral));
    range mine = part_of(self, p->planes);
    for (int64_t plane = mine.first; plane < mine.last; plane++) {
        const float *x = p->x + plane * p->height * p->width;
        float *y = p->y + plane * p->out_height * p->out_width;
        for (int64_t first = 0; first < p->out_height; first += STRIP) {
            int64_t last = smaller(first + STRIP, p->out_height);
            for (int64_t r = first; r < last; r++)
                prepare_row(p, x, r, neutral, is_max, row, sorted + (r - first) * sorted_floats);
            for (int64_t r = first; r < last; r++) {
                taps counted = taps_within(r * p->stride_height - p->pad_top, p->kernel_height,
                                           p->dilation_height, -pads_top, bottom);
                float share = 1.0f / (float)larger(1, counted.last - counted.first);
                finish_row(p, sorted + (r - first) * sorted_floats, neutral, is_max, shares, share,
                           y + r * p->out_width);
            }
        }
    }
}

SHARED_KERNEL(aegis_max_pool, pool) { pool_planes(arguments, self, 1); }
SHARED_KERNEL(aegis_average_pool, pool) { pool_planes(arguments, self, 0); }

typedef struct {
    const float *x;
    float *y;
    int64_t planes, count;
} global_pool;

/* Four registers of sums hide the latency of the addition. */
SHARED_KERNEL(aegis_global_average_pool, global_pool) {
    const global_pool *p = arguments;
    range mine = part_of(self, p->planes);
    for (int64_t plane = mine.first; plane < mine.last; plane++) {
        const float *x = p->x + plane * p->count;
        wide sums[4] = {wide_of(0), wide_of(0), wide_of(0), wide_of(0)};
        int64_t i = 0;
        for (; i + 4 * WIDE <= p->count; i += 4 * WIDE)
            UNROLL for (int j = 0; j < 4; j++) sums[j] += wide_load(x + i + j * WIDE);
        for (; i + WIDE <= p->count; i += WIDE) sums[0] += wide_load(x + i);
        if (i < p->count) sums[1] += wide_load_part(x + i, p->count - i);
        p->y[plane] = wide_sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)p->count;
    }
}

SHARED_KERNEL(aegis_global_max_pool, global_pool) {
    const global_pool *p = arguments;
    range mine = part_of(self, p->planes);
    for (int64_t plane = mine.first; plane < mine.last; plane++) {
        const float *x = p->x + plane * p->count;
        wide best = wide_of(-__builtin_inff());
        int64_t i = 0;
        for (; i + WIDE <= p->count; i += WIDE) best = wide_max(best, wide_load(x + i));
        if (i < p->count)
            best = wide_max(best, wide_fill_behind(wide_load_part(x + i, p->count - i), p->count - i,
                                                   -__builtin_inff()));
        p->y[plane] = wide_largest(best);
    }
}
