/* Two-dimensional convolutions of float32 images.
 *
 * aegis_conv_channels  output channels lie in the lanes; images are planar (N, C, H, W) or have their
 *                      channels last (N, H, W, C), input and output each for itself
 * aegis_conv_pixels    planar, 1x1, no padding, many pixels: pixels lie in the lanes
 * aegis_conv_depthwise_pixels, aegis_conv_depthwise_channels
 *                      planar, one input and one output channel a group
 *
 * The order of every sum is the same in the first two: over kernel rows, kernel columns, channels.
 */
#include "columns.h"
#include "images.h"
#include "step.h"
#include "tile.h"

typedef struct {
    const float *x, *w, *bias; /* bias: [groups * maps], or NULL */
    const float *residual; /* added to the result before it is clipped, or NULL */
    float *y, *workspace;
    int64_t batch, groups, depth, maps; /* a group has `depth` input and `maps` output channels */
    int64_t height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t dilation_height, dilation_width, pad_top, pad_left;
    int64_t copy_height, copy_width; /* of the padded copy in the workspace; 0: none is made */
    int64_t block; /* pixels that are done together */
    int64_t chunk; /* floats of a window that are summed in one pass over a block; 0: all */
    int64_t workspace_floats; /* of one worker: with chunks [block][PANEL] sums, then the copy */
    int64_t x_is_planar, y_is_planar;
    float low, high;
    int64_t clips;
} convolution;

/* `image` counts the groups of all images. */
static epilogue finish(const convolution *c, int64_t image, int64_t addend_row, int64_t addend_column) {
    const float *bias = c->bias ? c->bias + image % c->groups * c->maps : NULL;
    int64_t results = c->maps * c->out_height * c->out_width;
    const float *residual = c->residual ? c->residual + image * results : NULL;
    return (epilogue){residual, bias, addend_row, addend_column, 1, 1, c->low, c->high, c->clips};
}

/* ---- pixels in the lanes -------------------------------------------------------------------
 *
 * Y[maps, pixels] = W[maps, depth] X[depth, pixels]; X is a plain matrix as it lies in memory.
 *
 * With a stride the pixels that count are copied next to each other first.
 *
 *     for each PANEL of pixels:  copy [depth][PANEL] next to each other (stays in cache)
 *       for each tile of ROWS output channels
 *
 * W is packed [maps / ROWS][depth][ROWS]: what one tile broadcasts is contiguous.
 */

INLINE void pixels_tile(const convolution *c, const epilogue *end, const float *w, const float *b,
                        int64_t b_step, float *y, int64_t map, int64_t pixel, int64_t pixels, int rows,
                        int vectors) {
    const float *a[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a[r] = w + map * c->depth + r;
    vec sums[ROWS][VECTORS];
    tile_clear(sums, rows, vectors);
    tile_accumulate(sums, rows, vectors, a, ROWS, b, b_step, c->depth, b);
    tile_store(end, sums, rows, vectors, y, pixels, map, pixel, pixels - pixel);
}

/* The pixels that a strided kernel meets, [depth][out_height][out_width]. */
static void thin_image(const convolution *c, const float *x, float *to) {
    for (int64_t channel = 0; channel < c->depth; channel++, x += c->height * c->width)
        for (int64_t row = 0; row < c->out_height; row++, to += c->out_width) {
            const float *from = x + row * c->stride_height * c->width;
            int64_t column = 0;
            if (c->stride_width == 2)
                for (; 2 * (column + WIDE) <= c->width; column += WIDE) {
                    wide low = wide_load(from + 2 * column), high = wide_load(from + 2 * column + WIDE);
                    wide_store(to + column, wide_even(low, high));
                }
            for (; column < c->out_width; column++) to[column] = from[column * c->stride_width];
        }
}

/* Copies `count` <= PANEL pixels of every channel; zeros fill the rest of the last register. */
static void copy_pixels(const float *x, int64_t channels, int64_t pixels, int64_t count, float *panel) {
    for (int64_t k = 0; k < channels; k++, x += pixels, panel += PANEL) {
        if (count == PANEL) {
            UNROLL for (int v = 0; v < VECTORS; v++) vec_store(panel + v * LANES, vec_load(x + v * LANES));
        } else {
            for (int64_t i = 0; i < PANEL; i++) panel[i] = i < count ? x[i] : 0;
        }
    }
}

SHARED_KERNEL(aegis_conv_pixels, convolution) {
    const convolution *c = arguments;
    int64_t pixels = c->out_height * c->out_width, panels = ceil_divide(pixels, PANEL), seen = -1;
    int64_t packed_maps = ceil_divide(c->maps, ROWS) * ROWS;
    int is_strided = c->stride_height > 1 || c->stride_width > 1;
    float *panel = c->workspace + self.thread * c->workspace_floats, *thinned = panel + c->depth * PANEL;
    range mine = part_of(self, c->batch * c->groups * panels);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t image = unit / panels, group = image % c->groups, pixel = unit % panels * PANEL;
        const float *x = c->x + image * c->depth * c->height * c->width;
        const float *w = c->w + group * packed_maps * c->depth;
        if (is_strided) {
            if (image != seen) thin_image(c, x, thinned);
            seen = image;
            x = thinned;
        }
        float *y = c->y + image * c->maps * pixels;
        epilogue end = finish(c, image, 1, 0);
        int64_t count = smaller(PANEL, pixels - pixel), vectors = ceil_divide(count, LANES);
        copy_pixels(x + pixel, c->depth, pixels, count, panel);
        for (int64_t map = 0; map < c->maps; map += ROWS)
            TILE_DISPATCH(pixels_tile, smaller(ROWS, c->maps - map), vectors, c, &end, w, panel, PANEL, y, map,
                          pixel, pixels)
    }
}

/* ---- channels in the lanes -----------------------------------------------------------------
 *
 * Where a window of channels-last pixels lies inside the image it is read in place. Else a block's part
 * of the image is copied first, with its padding, to [rows][copy_width][depth], and no tap needs a
 * test. Either way a pixel's window is, for each kernel row, one contiguous run of kernel_width * depth
 * floats (with dilation: one run of `depth` a tap).
 *
 *     for each block of pixels (what it reads stays in the second-level cache)
 *       for each panel of output channels
 *         for each tile of up to ROWS pixels of the block:
 *           for each run: accumulate;  then write it to Y (to planes: turned round)
 *
 * W is packed [maps / PANEL][kernel row][kernel column][depth][PANEL]. Workers share the pairs of block
 * and panel, and the pixels of those at which their shares meet.
 */

/* Where a block's windows are read; strides in floats between rows and columns of the input. */
typedef struct {
    const float *window; /* of the block's first pixel */
    int64_t row, column;
    int64_t first_row; /* output row of `window` */
} block_source;

/* The part of a window that one pass over a block's pixels sums up: kernel rows from `first` to before
 * `last`, of each of their runs the floats from `start` to before `end`. */
typedef struct {
    int64_t first, last, first_run, last_run, start, end;
    int begins, ends; /* whether nothing, or everything, has been summed before and after */
} window_part;

INLINE void channels_tile(const convolution *c, const epilogue *end, const block_source *from, window_part part,
                          const float *panel, const float *ahead, float *y, int64_t pixel, int64_t map,
                          float *kept, int rows, int vectors) {
    const float *a[ROWS];
    int64_t out_row = pixel / c->out_width, out_column = pixel % c->out_width;
    out_row -= from->first_row;
    UNROLL for (int r = 0; r < rows; r++) {
        a[r] = from->window + out_row * c->stride_height * from->row + out_column * c->stride_width * from->column;
        if (++out_column == c->out_width) out_column = 0, out_row++;
    }
    vec sums[ROWS][VECTORS];
    if (part.begins) tile_clear(sums, rows, vectors);
    else tile_load(sums, rows, vectors, kept, PANEL, PANEL);
    for (int64_t row = part.first; row < part.last; row++) {
        for (int64_t run = part.first_run; run < part.last_run; run++) {
            int64_t offset = row * c->dilation_height * from->row + run * c->dilation_width * from->column;
            int64_t length = part.end - part.start;
            const float *tap[ROWS];
            UNROLL for (int r = 0; r < rows; r++) tap[r] = a[r] + offset + part.start;
            tile_accumulate(sums, rows, vectors, tap, 1, panel, PANEL, length, ahead);
            panel += length * PANEL;
            ahead += length * PANEL;
        }
    }
    int64_t pixels = c->out_height * c->out_width;
    if (!part.ends) tile_keep(sums, rows, vectors, kept, PANEL, PANEL);
    else if (c->y_is_planar) tile_store_transposed(end, sums, rows, vectors, y, pixels, pixel, map, c->maps - map);
    else tile_store(end, sums, rows, vectors, y, c->groups * c->maps, pixel, map, c->maps - map);
}

/* One pass over a block's pixels. `kept` holds the sums of all of them between passes. */
static void channels_pass(const convolution *c, const epilogue *end, const block_source *from, window_part part,
                          const float *panel, float *y, range pixels, int64_t map, float *kept) {
    int64_t tile = even_tile(pixels.last - pixels.first);
    int64_t vectors = ceil_divide(smaller(PANEL, c->maps - map), LANES), i = 0;
    int64_t depth = (part.last - part.first) * (part.last_run - part.first_run) * (part.end - part.start);
    for (int64_t pixel = pixels.first; pixel < pixels.last; pixel += tile, kept += tile * PANEL) {
        const float *ahead = panel_ahead(panel, panel + depth * PANEL, i++);
        TILE_DISPATCH(channels_tile, smaller(tile, pixels.last - pixel), vectors, c, end, from, part, panel, ahead,
                      y, pixel, map, kept)
    }
}

/* A block's results for one panel of output channels. A panel that is too large to be read for each
 * tile anew is taken in chunks, each for all tiles. */
static void channels_block(const convolution *c, const epilogue *end, const block_source *from, const float *panel,
                           float *y, range pixels, int64_t map, float *kept) {
    int is_one_run = c->dilation_width == 1 && from->column == c->depth;
    int64_t runs = is_one_run ? 1 : c->kernel_width;
    int64_t length = is_one_run ? c->kernel_width * c->depth : c->depth;
    if (!c->chunk) {
        window_part all = {0, c->kernel_height, 0, runs, 0, length, 1, 1};
        channels_pass(c, end, from, all, panel, y, pixels, map, kept);
        return;
    }
    for (int64_t row = 0; row < c->kernel_height; row++)
        for (int64_t run = 0; run < runs; run++)
            for (int64_t start = 0; start < length; start += c->chunk) {
                int64_t stop = smaller(length, start + c->chunk);
                window_part part = {row, row + 1, run, run + 1, start, stop,
                                    !row && !run && !start,
                                    row + 1 == c->kernel_height && run + 1 == runs && stop == length};
                channels_pass(c, end, from, part, panel, y, pixels, map, kept);
                panel += (stop - start) * PANEL;
            }
}

/* One row of a group of the image: [columns][depth]. */
static void copy_row(const convolution *c, const float *x, int64_t row, int64_t columns, float *to) {
    if (c->x_is_planar) {
        interleave_row(x + row * c->width, c->height * c->width, c->depth, columns, to);
        return;
    }
    int64_t channels = c->groups * c->depth;
    x += row * c->width * channels;
    if (c->groups == 1) copy_floats(to, x, columns * c->depth);
    else for (int64_t i = 0; i < columns; i++) copy_floats(to + i * c->depth, x + i * channels, c->depth);
}

INLINE void clear_floats(float *to, int64_t count) { __builtin_memset(to, 0, (size_t)count * sizeof *to); }

/* What `rows` output rows from `first` on meet of one group of one image, with its padding. */
static void copy_rows(const convolution *c, const float *x, int64_t first, int64_t rows, float *to) {
    int64_t row_floats = c->copy_width * c->depth;
    int64_t columns = smaller(c->width, c->copy_width - c->pad_left);
    int64_t met = (rows - 1) * c->stride_height + (c->kernel_height - 1) * c->dilation_height + 1;
    for (int64_t i = 0; i < met; i++, to += row_floats) {
        int64_t row = first * c->stride_height - c->pad_top + i;
        if (row < 0 || row >= c->height) {
            clear_floats(to, row_floats);
            continue;
        }
        clear_floats(to, c->pad_left * c->depth);
        copy_row(c, x, row, columns, to + c->pad_left * c->depth);
        clear_floats(to + (c->pad_left + columns) * c->depth, (c->copy_width - c->pad_left - columns) * c->depth);
    }
}

/* Makes the pixels from `first` on of an image of a group ready to be read. */
static block_source read_block(const convolution *c, int64_t image, int64_t first, float *copy) {
    int64_t channels = c->groups * c->depth, pixels = c->height * c->width, group = image % c->groups;
    const float *x = c->x + image / c->groups * channels * pixels + group * (c->x_is_planar ? c->depth * pixels : c->depth);
    if (!c->copy_width) return (block_source){x, c->width * channels, channels, 0};
    int64_t row = first / c->out_width;
    copy_rows(c, x, row, smaller(c->block / c->out_width, c->out_height - row), copy);
    return (block_source){copy, c->copy_width * c->depth, c->depth, row};
}

/* Where a worker begins: at a pixel of a block, for one panel. */
typedef struct { int64_t unit, pixel; } place;

/* The place at which so much of the work is done, counted in registers of sums of one pixel. There are
 * few pairs of block and panel, and they do not weigh the same: a share is cut at tiles instead. */
static place place_of(const convolution *c, int64_t work) {
    int64_t pixels = c->out_height * c->out_width, blocks = ceil_divide(pixels, c->block);
    int64_t panels = ceil_divide(c->maps, PANEL), registers = ceil_divide(c->maps, LANES);
    int64_t image = work / (pixels * registers), rest = work % (pixels * registers);
    int64_t block = rest / (c->block * registers);
    rest -= block * c->block * registers;
    int64_t whole = smaller(c->block, pixels - block * c->block), panel = rest / (whole * VECTORS);
    rest -= panel * whole * VECTORS;
    int64_t pixel = rest / smaller(VECTORS, registers - panel * VECTORS);
    return (place){(image * blocks + block) * panels + panel, smaller(whole, ceil_divide(pixel, ROWS) * ROWS)};
}

SHARED_KERNEL(aegis_conv_channels, convolution) {
    const convolution *c = arguments;
    int64_t pixels = c->out_height * c->out_width, blocks = ceil_divide(pixels, c->block);
    int64_t panels = ceil_divide(c->maps, PANEL), read = -1;
    int64_t panel_floats = c->kernel_height * c->kernel_width * c->depth;
    range mine = part_of(self, c->batch * c->groups * pixels * ceil_divide(c->maps, LANES));
    place begin = place_of(c, mine.first), stop = place_of(c, mine.last);
    block_source from = {};
    float *kept = c->workspace + self.thread * c->workspace_floats;
    for (int64_t unit = begin.unit; unit < stop.unit + (stop.pixel > 0); unit++) {
        int64_t image = unit / panels / blocks, group = image % c->groups;
        int64_t block = unit / panels % blocks * c->block, map = unit % panels * PANEL;
        int64_t first = block + (unit == begin.unit ? begin.pixel : 0);
        int64_t last = unit == stop.unit ? block + stop.pixel : smaller(block + c->block, pixels);
        if (unit / panels != read) {
            read = unit / panels;
            from = read_block(c, image, block, kept + (c->chunk ? c->block * PANEL : 0));
        }
        epilogue end = finish(c, image, 0, 1);
        int64_t results = c->y_is_planar ? image * c->maps * pixels
                                         : image / c->groups * c->groups * c->maps * pixels + group * c->maps;
        if (end.residual) end.residual = c->residual + results;
        const float *panel = c->w + (group * panels * PANEL + map) * panel_floats;
        channels_block(c, &end, &from, panel, c->y + results, (range){first, last}, map, kept);
    }
}

/* ---- depthwise, pixels in the lanes --------------------------------------------------------
 *
 * A plane is copied with its padding into the workspace, its columns sorted by their remainder
 * modulo the stride: [copy_height][stride_width][copy_width]. Then neighbouring results read
 * neighbouring floats, whatever the stride.
 *
 *     for each plane
 *       for each strip of 4 output rows
 *         for each WIDE results of a row:  over the taps, weight * 16 neighbours
 *
 * copy_width has room for a whole last vector; of its results only those inside are written.
 */

/* What a depthwise kernel is like; a constant wherever it is known to the compiler. */
typedef struct { int64_t height, width, stride_height, stride_width, dilation_height, dilation_width; } window;

/* `count` output rows' 16 results from one column on. The sums of several rows hide each other's
 * latency, and with a known window what neighbouring rows share is loaded once. */
INLINE void depthwise_strip(const convolution *c, const float *copied, const float *w, float bias, int64_t plane, int64_t row,
                            int64_t column, int count, window k) {
    int64_t row_floats = k.stride_width * c->copy_width;
    const float *corner = copied + row * k.stride_height * row_floats + column;
    wide sums[4];
    UNROLL for (int i = 0; i < count; i++) sums[i] = wide_of(0);
    for (int64_t kh = 0; kh < k.height; kh++) {
        sorted_tap tap = {0, 0};
        for (int64_t kw = 0; kw < k.width; kw++) {
            const float *x = corner + kh * k.dilation_height * row_floats + tap.remainder * c->copy_width + tap.place;
            tap = next_tap(tap, k.dilation_width, k.stride_width);
            wide weight = wide_of(w[kh * k.width + kw]);
            UNROLL for (int i = 0; i < count; i++)
                sums[i] = multiply_add(wide_load(x + i * k.stride_height * row_floats), weight, sums[i]);
        }
    }
    UNROLL for (int i = 0; i < count; i++) {
        int64_t at = (plane * c->out_height + row + i) * c->out_width;
        wide sum = sums[i] + bias;
        if (c->residual) sum += row_load(c->residual + at, column, c->out_width);
        if (c->clips) sum = wide_at_most(wide_at_least(sum, wide_of(c->low)), wide_of(c->high));
        row_store(c->y + at, column, c->out_width, sum);
    }
}

INLINE void depthwise_plane(const convolution *c, const float *copied, const float *w, float bias, int64_t plane, window k) {
    for (int64_t column = 0; column < c->out_width; column += WIDE) {
        int64_t row = 0;
        for (; row + 4 <= c->out_height; row += 4) depthwise_strip(c, copied, w, bias, plane, row, column, 4, k);
        switch (c->out_height - row) {
            case 3: depthwise_strip(c, copied, w, bias, plane, row, column, 3, k); break;
            case 2: depthwise_strip(c, copied, w, bias, plane, row, column, 2, k); break;
            case 1: depthwise_strip(c, copied, w, bias, plane, row, column, 1, k); break;
        }
    }
}

SHARED_KERNEL(aegis_conv_depthwise_pixels, convolution) {
    const convolution *c = arguments;
    window k = {c->kernel_height, c->kernel_width, c->stride_height,
                c->stride_width, c->dilation_height, c->dilation_width};
    int is_3x3 = k.height == 3 && k.width == 3 && k.dilation_height == 1 && k.dilation_width == 1;
    int64_t row_floats = c->stride_width * c->copy_width;
    int64_t rows = smaller(c->height, c->copy_height - c->pad_top);
    float *copied = c->workspace + self.thread * c->workspace_floats;
    clear_floats(copied, c->copy_height * row_floats);
    range mine = part_of(self, c->batch * c->groups);
    for (int64_t plane = mine.first; plane < mine.last; plane++) {
        int64_t channel = plane % c->groups;
        const float *x = c->x + plane * c->height * c->width;
        for (int64_t row = 0; row < rows; row++)
            sort_columns(x + row * c->width, c->width, c->stride_width, c->pad_left, c->copy_width,
                         copied + (row + c->pad_top) * row_floats);
        const float *w = c->w + channel * c->kernel_height * c->kernel_width;
        float bias = c->bias ? c->bias[channel] : 0;
        if (is_3x3 && k.stride_height == 1 && k.stride_width == 1)
            depthwise_plane(c, copied, w, bias, plane, (window){3, 3, 1, 1, 1, 1});
        else if (is_3x3 && k.stride_height == 2 && k.stride_width == 2)
            depthwise_plane(c, copied, w, bias, plane, (window){3, 3, 2, 2, 1, 1});
        else
            depthwise_plane(c, copied, w, bias, plane, k);
    }
}

/* ---- depthwise, channels in the lanes -------------------------------------------------------
 *
 * For planes too small to fill registers with pixels. WIDE channels at a time are turned round to
 * [height * width][WIDE], copied with their padding to [copy_height][copy_width][WIDE], summed into
 * [out_height * out_width][WIDE], and turned back.
 *
 * W is packed [channels / WIDE][kernel row][kernel column][WIDE].
 */

/* Turns [rows][columns] round to [columns][rows]; rows <= WIDE, in lines of `from_row`, `to_row`. */
static void turn(const float *from, int64_t rows, int64_t from_row, int64_t columns, float *to,
                 int64_t to_row) {
    for (int64_t row = 0; row < rows; row += 8)
        for (int64_t column = 0; column < columns; column += 8) {
            if (row + 8 <= rows && column + 8 <= columns) {
                transpose_8x8(from + row * from_row + column, from_row, to + column * to_row + row, to_row);
            } else {
                for (int64_t c = column; c < smaller(column + 8, columns); c++)
                    for (int64_t r = row; r < smaller(row + 8, rows); r++)
                        to[c * to_row + r] = from[r * from_row + c];
            }
        }
}

/* [pixels][WIDE] to [channels][pixels]. */
static void turn_back(const float *sums, int64_t pixels, int64_t channels, float *y) {
    for (int64_t pixel = 0; pixel < pixels; pixel += 8)
        turn(sums + pixel * WIDE, smaller(8, pixels - pixel), WIDE, channels, y + pixel, pixels);
}

INLINE void depthwise_pixels(const convolution *c, const float *copy, const float *w, wide bias, float *sums,
                             int64_t row, int64_t column, int count, int64_t kernel_height,
                             int64_t kernel_width) {
    wide total[4];
    UNROLL for (int i = 0; i < count; i++) total[i] = wide_of(0);
    for (int64_t kh = 0; kh < kernel_height; kh++)
        for (int64_t kw = 0; kw < kernel_width; kw++) {
            int64_t at = (row * c->stride_height + kh * c->dilation_height) * c->copy_width +
                         column * c->stride_width + kw * c->dilation_width;
            wide weight = wide_load(w + (kh * kernel_width + kw) * WIDE);
            UNROLL for (int i = 0; i < count; i++)
                total[i] = multiply_add(wide_load(copy + (at + i * c->stride_width) * WIDE), weight, total[i]);
        }
    UNROLL for (int i = 0; i < count; i++) {
        wide sum = total[i] + bias;
        if (c->clips) sum = wide_at_most(wide_at_least(sum, wide_of(c->low)), wide_of(c->high));
        wide_store(sums + (row * c->out_width + column + i) * WIDE, sum);
    }
}

INLINE void depthwise_group(const convolution *c, const float *copy, const float *w, wide bias, float *sums,
                            int64_t kernel_height, int64_t kernel_width) {
    for (int64_t row = 0; row < c->out_height; row++) {
        int64_t column = 0;
        for (; column + 4 <= c->out_width; column += 4)
            depthwise_pixels(c, copy, w, bias, sums, row, column, 4, kernel_height, kernel_width);
        switch (c->out_width - column) {
            case 3: depthwise_pixels(c, copy, w, bias, sums, row, column, 3, kernel_height, kernel_width); break;
            case 2: depthwise_pixels(c, copy, w, bias, sums, row, column, 2, kernel_height, kernel_width); break;
            case 1: depthwise_pixels(c, copy, w, bias, sums, row, column, 1, kernel_height, kernel_width); break;
        }
    }
}

SHARED_KERNEL(aegis_conv_depthwise_channels, convolution) {
    const convolution *c = arguments;
    int64_t pixels = c->out_height * c->out_width, taps = c->kernel_height * c->kernel_width;
    int64_t copied_floats = c->copy_height * c->copy_width * WIDE;
    int64_t rows = smaller(c->height, c->copy_height - c->pad_top);
    int64_t columns = smaller(c->width, c->copy_width - c->pad_left);
    float *copy = c->workspace + self.thread * c->workspace_floats;
    float *sums = copy + copied_floats, *turned = sums + pixels * WIDE;
    int64_t parts = ceil_divide(c->groups, WIDE);
    clear_floats(copy, copied_floats);
    range mine = part_of(self, c->batch * parts);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t image = unit / parts, channel = unit % parts * WIDE;
        int64_t channels = smaller(WIDE, c->groups - channel), plane = image * c->groups + channel;
        const float *x = c->x + plane * c->height * c->width, *w = c->w + channel * taps;
        turn(x, channels, c->height * c->width, c->height * c->width, turned, WIDE);
        for (int64_t row = 0; row < rows; row++) {
            int64_t at = (row + c->pad_top) * c->copy_width + c->pad_left;
            copy_floats(copy + at * WIDE, turned + row * c->width * WIDE, columns * WIDE);
        }
        wide bias = wide_of(0);
        if (c->bias) bias = row_load(c->bias, channel, c->groups);
        if (c->kernel_height == 3 && c->kernel_width == 3) depthwise_group(c, copy, w, bias, sums, 3, 3);
        else depthwise_group(c, copy, w, bias, sums, c->kernel_height, c->kernel_width);
        turn_back(sums, pixels, channels, c->y + plane * pixels);
    }
}
