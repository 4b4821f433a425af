/* Inverted residual blocks (Sandler et al. 2018) of images with their channels last: a 1x1 convolution
 * that widens, a depthwise 3x3 one, and a 1x1 one that narrows, each clipped, and another image added.
 *
 *     for each strip of output rows (workers share the rows)
 *       widen the input rows that the strip meets and its predecessor did not
 *       depthwise
 *       narrow
 *
 * so that the wide images, several times as large as what is read and written, exist for a strip only
 * and stay in the second-level cache. Every result is the chain of operations of the three kernels it
 * replaces, and has their bits.
 */
#include "depthwise.h"
#include "step.h"
#include "tile.h"

/* A convolution: packed weights, bias or NULL, and bounds of its results. */
typedef struct {
    const float *w, *bias;
    float low, high;
} layer;

typedef struct {
    const float *x, *residual; /* residual: NULL if nothing is added */
    float *y, *workspace;
    layer widen, depthwise, narrow; /* widen.w: NULL if the depthwise one reads x */
    int64_t batch, height, width, depth, channels, maps, out_height, out_width;
    int64_t stride, pad_top, pad_left;
    int64_t strip; /* output rows */
    int64_t wide_floats, workspace_floats; /* of one worker: rows that were widened, then those of the strip */
} inverted_residual;

/* 1x1 over pixels that follow each other: Y[pixels, maps] = X[pixels, depth] W. */
typedef struct {
    const float *x, *w;
    float *y;
    int64_t pixels, depth, maps;
    epilogue end;
} points;

INLINE void points_tile(const points *p, const float *panel, const float *ahead, int64_t pixel, int64_t map,
                        int rows, int vectors) {
    const float *a[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a[r] = p->x + (pixel + r) * p->depth;
    vec sums[ROWS][VECTORS];
    tile_clear(sums, rows, vectors);
    tile_accumulate(sums, rows, vectors, a, 1, panel, PANEL, p->depth, ahead);
    tile_store(&p->end, sums, rows, vectors, p->y, p->maps, pixel, map, p->maps - map);
}

static void multiply_points(const points *p) {
    int64_t tile = even_tile(p->pixels);
    const float *panel = p->w;
    for (int64_t map = 0; map < p->maps; map += PANEL, panel += p->depth * PANEL) {
        int64_t vectors = ceil_divide(smaller(PANEL, p->maps - map), LANES), i = 0;
        for (int64_t pixel = 0; pixel < p->pixels; pixel += tile) {
            const float *ahead = panel_ahead(panel, panel + p->depth * PANEL, i++);
            TILE_DISPATCH(points_tile, smaller(tile, p->pixels - pixel), vectors, p, panel, ahead, pixel, map)
        }
    }
}

INLINE epilogue finish(layer l, const float *residual) {
    int64_t clips = l.low > -__builtin_inff() || l.high < __builtin_inff();
    return (epilogue){residual, l.bias, 0, 1, 1, 1, l.low, l.high, clips};
}

/* Output rows of one image. */
static void some_rows(const inverted_residual *b, int64_t image, range rows, float *wide_rows) {
    const float *x = b->x + image * b->height * b->width * b->depth;
    int64_t wide_row = b->width * b->channels, results = image * b->out_height * b->out_width * b->maps;
    float *narrow_rows = wide_rows + b->wide_floats;
    int64_t begin = 0, ready = 0; /* the rows that are widened, in `wide_rows` from its start on */
    for (int64_t first = rows.first, last; first < rows.last; first = last) {
        last = smaller(first + b->strip, rows.last);
        int64_t from = larger(0, first * b->stride - b->pad_top);
        int64_t to = smaller(b->height, (last - 1) * b->stride - b->pad_top + 3);
        const float *origin = x;
        if (b->widen.w) {
            if (ready > from)
                __builtin_memmove(wide_rows, wide_rows + (from - begin) * wide_row,
                                  (size_t)((ready - from) * wide_row) * sizeof *wide_rows);
            else ready = from;
            begin = from;
            if (to > ready) {
                points widening = {x + ready * b->width * b->depth, b->widen.w, wide_rows + (ready - from) * wide_row,
                                   (to - ready) * b->width, b->depth, b->channels, finish(b->widen, NULL)};
                multiply_points(&widening);
                ready = to;
            }
            origin = wide_rows - from * wide_row;
        }
        epilogue end = finish(b->depthwise, NULL);
        depthwise middle = {.x = origin, .w = b->depthwise.w, .bias = end.addend, .y = narrow_rows,
                            .channels = b->channels, .height = b->height, .width = b->width,
                            .out_width = b->out_width, .pad_top = b->pad_top, .pad_left = b->pad_left,
                            .first = first, .last = last, .low = end.low, .high = end.high, .clips = end.clips};
        depthwise_3x3(&middle, b->stride);
        int64_t at = results + first * b->out_width * b->maps;
        points narrowing = {narrow_rows, b->narrow.w, b->y + at, (last - first) * b->out_width, b->channels, b->maps,
                            finish(b->narrow, b->residual ? b->residual + at : NULL)};
        multiply_points(&narrowing);
    }
}

SHARED_KERNEL(aegis_inverted_residual, inverted_residual) {
    const inverted_residual *b = arguments;
    range mine = part_of(self, b->batch * b->out_height);
    for (int64_t row = mine.first, next; row < mine.last; row = next) {
        int64_t image = row / b->out_height, first = row % b->out_height;
        next = smaller(mine.last, row + b->out_height - first);
        some_rows(b, image, (range){first, first + next - row}, b->workspace + self.thread * b->workspace_floats);
    }
}
