/* Two-dimensional convolutions of images of bytes; planar (N, C, H, W) or channels last (N, H, W, C),
 * input and output alike.
 *
 * aegis_byte_conv            everything but depthwise: products of bytes
 * aegis_byte_conv_depthwise  one input and one output channel a group: channels in the lanes
 *
 * Planar images are turned round to channels last first, and results turned back.
 */
#include "byte_images.h"
#include "byte_products.h"
#include "byte_results.h"
#include "step.h"

typedef struct {
    const uint8_t *x, *w;
    void *y;
    uint8_t *workspace;
    int64_t batch, groups, depth, maps; /* a group has `depth` input and `maps` output channels */
    int64_t height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t dilation_height, dilation_width, pad_top, pad_left;
    int64_t copy_height, copy_width; /* depthwise: of the rows that are copied; 0: none are */
    int64_t is_planar;
    byte_scales scales;
} byte_convolution;

INLINE int64_t aligned(int64_t bytes) { return ceil_divide(bytes, 64) * 64; }
INLINE int64_t window_bytes(const byte_convolution *c) { return c->kernel_height * c->kernel_width * c->depth; }
INLINE uint8_t moved_by(const byte_convolution *c) { return c->scales.a_is_signed ? 0x80 : 0; }

/* ---- everything but depthwise ---------------------------------------------------------------
 *
 *     for each block of up to 32 output pixels
 *       their windows are gathered, one a row of A (a 1x1 kernel's may be read where they lie)
 *       for each pair of panels of W:  a block of sums, then results
 *
 * W is packed [groups] panels of [kernel row][kernel column][depth] by maps.
 */

/* Parts of a workspace; the image is there for planar ones alone. */
typedef struct { uint8_t *rows, *results, *image; } conv_workspace;

INLINE int64_t rows_bytes(const byte_convolution *c) { return BYTE_ROWS * padded_byte_depth(window_bytes(c)); }
INLINE int64_t image_bytes(const byte_convolution *c) { return c->height * c->width * c->groups * c->depth; }

static conv_workspace carve(const byte_convolution *c, uint8_t *workspace) {
    conv_workspace w = {.rows = workspace};
    w.results = w.rows + rows_bytes(c);
    w.image = w.results + c->groups * byte_results_size(c->maps);
    return w;
}

/* For load time. */
EXPORT int64_t aegis_byte_conv_workspace(const byte_convolution *c) {
    int64_t bytes = rows_bytes(c) + c->groups * byte_results_size(c->maps);
    return aligned(c->is_planar ? bytes + image_bytes(c) : bytes);
}

/* An image with channels last; bytes that are multiplied are its own, `moved`. */
typedef struct { const uint8_t *pixels, *end; uint8_t moved; } image;

static image read_image(const byte_convolution *c, int64_t index, uint8_t *turned) {
    const uint8_t *x = c->x + index * image_bytes(c);
    if (!c->is_planar) return (image){x, c->x + c->batch * image_bytes(c), moved_by(c)};
    int64_t channels = c->groups * c->depth, pixels = c->height * c->width;
    turn_bytes(x, pixels, channels, pixels, moved_by(c), turned, channels);
    return (image){turned, turned + image_bytes(c), 0};
}

/* A run of `taps` taps of `length` bytes each, `step` bytes apart in the image, which goes from tap
 * `first` to tap `last`; what lies outside is zero. */
INLINE void gather_run(const uint8_t *from, int64_t taps, int64_t first, int64_t last, int64_t length,
                       int64_t step, uint8_t moved, uint8_t zero, uint8_t *to) {
    if (first > 0) __builtin_memset(to, zero, (size_t)(smaller(first, taps) * length));
    if (length == step && last > first) copy_moved(from + first * step, (last - first) * length, moved, to + first * length);
    else for (int64_t t = first; t < last; t++) copy_moved(from + t * step, length, moved, to + t * length);
    if (last < taps) __builtin_memset(to + larger(last, 0) * length, zero, (size_t)((taps - larger(last, 0)) * length));
}

/* Taps of one dimension, from `start` on, that lie inside: [first, last), empty if none do. */
typedef struct { int64_t first, last; } span;

INLINE span taps_inside(int64_t start, int64_t kernel, int64_t dilation, int64_t size) {
    int64_t first = start < 0 ? smaller(kernel, ceil_divide(-start, dilation)) : 0;
    int64_t last = start >= size ? 0 : smaller(kernel, ceil_divide(size - start, dilation));
    return (span){first, larger(first, last)};
}

/* The rows of A of `count` pixels; depth is padded with zeros, which `buffer` has there already. */
static void gather(const byte_convolution *c, const image *from, int64_t group, int64_t pixel, int64_t count,
                   uint8_t *buffer) {
    int64_t channels = c->groups * c->depth, padding = padded_byte_depth(window_bytes(c)) - window_bytes(c);
    int64_t line = c->kernel_width * c->depth, row = pixel / c->out_width, column = pixel % c->out_width;
    uint8_t zero = (uint8_t)moved_a_zero(&c->scales);
    for (int64_t i = 0; i < count; i++, buffer += padding) {
        int64_t top = row * c->stride_height - c->pad_top, left = column * c->stride_width - c->pad_left;
        span taps = taps_inside(left, c->kernel_width, c->dilation_width, c->width);
        for (int64_t r = 0; r < c->kernel_height; r++, buffer += line) {
            int64_t y = top + r * c->dilation_height;
            if (y < 0 || y >= c->height) {
                __builtin_memset(buffer, zero, (size_t)line);
                continue;
            }
            const uint8_t *start = from->pixels + (y * c->width + left) * channels + group * c->depth;
            gather_run(start, c->kernel_width, taps.first, taps.last, c->depth, c->dilation_width * channels, from->moved,
                       zero, buffer);
        }
        if (++column == c->out_width) column = 0, row++;
    }
}

/* Whether windows are rows of the image as it lies there. */
INLINE int is_in_place(const byte_convolution *c, const image *from) {
    return c->kernel_height == 1 && c->kernel_width == 1 && c->stride_height == 1 && c->stride_width == 1 &&
           c->groups == 1 && !from->moved && !c->pad_top && !c->pad_left && c->out_width == c->width;
}

/* The rows of A of a block of pixels. In place, the padding of a row is the next one's beginning:
 * what is multiplied with it is zero. It must not lie behind the end of the image, though. */
static void ready_rows(const byte_convolution *c, const image *from, int64_t group, int64_t first, uint8_t *buffer,
                       byte_block *block) {
    const uint8_t *a = from->pixels + first * c->depth;
    int64_t reach = (block->rows - 1) * c->depth + block->padded_depth;
    if (is_in_place(c, from) && reach <= from->end - a) {
        block->a = a;
        block->a_row = c->depth;
    } else {
        gather(c, from, group, first, block->rows, buffer);
        block->a = buffer;
        block->a_row = block->padded_depth;
    }
}

/* Turns a block of results, [rows][BYTE_BLOCK_COLUMNS], round into planes of `pixels`. */
static void store_planes(const void *block, int64_t rows, int64_t columns, int64_t pixels, int64_t size, void *y) {
    if (size == 1) {
        turn_bytes(block, BYTE_BLOCK_COLUMNS, rows, columns, 0, y, pixels);
        return;
    }
    const int32_t *from = block;
    int32_t *to = y;
    for (int64_t column = 0; column < columns; column++)
        for (int64_t row = 0; row < rows; row++)
            to[column * pixels + row] = from[row * BYTE_BLOCK_COLUMNS + column];
}

/* Maps [first_map, last_map) of a group for a block of pixels; `y` is the image's first result. */
static void convolve_block(const byte_convolution *c, byte_block *block, const byte_results *r, int64_t group,
                           int64_t pixel, int64_t first_map, int64_t last_map, char *y) {
    int64_t pixels = c->out_height * c->out_width, size = result_size(r->kind), y_row = c->groups * c->maps * size;
    const int8_t *panels = (const int8_t *)c->w + group * byte_panels_size(block->depth, c->maps);
    int32_t row_sums[BYTE_ROWS] = {0};
    if (r->has_zeros)
        for (int64_t i = 0; i < block->rows; i++) row_sums[i] = byte_sum(block->a + i * block->a_row, block->depth);
    for (int64_t map = first_map; map < last_map; map += BYTE_BLOCK_COLUMNS) {
        int64_t left = c->maps - map, channel = group * c->maps + map;
        block->panels = panels + map * block->padded_depth;
        block->panel_count = left > BYTE_PANEL ? 2 : 1;
        multiply_bytes(block);
        if (c->is_planar) {
            int32_t turned[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
            store_block(r, block, row_sums, map, left, (char *)turned, BYTE_BLOCK_COLUMNS * size);
            store_planes(turned, block->rows, smaller(left, BYTE_BLOCK_COLUMNS), pixels, size,
                         y + (channel * pixels + pixel) * size);
        } else {
            store_block(r, block, row_sums, map, left, y + pixel * y_row + channel * size, y_row);
        }
    }
}

/* Results of all groups made ready, one after the other. */
static byte_results ready_groups(const byte_convolution *c, uint8_t *workspace) {
    int64_t depth = window_bytes(c), sums_at = padded_byte_depth(depth) * padded_byte_columns(c->maps);
    byte_results r = {};
    for (int64_t group = 0; group < c->groups; group++) {
        const uint8_t *sums = c->w + group * byte_panels_size(depth, c->maps) + sums_at;
        r = ready_results(&c->scales, c->scales.a_scale, c->scales.a_zero, (const int32_t *)(const void *)sums, depth,
                          group * c->maps, c->maps, workspace + group * byte_results_size(c->maps));
    }
    return r;
}

/* Few blocks of pixels are split by maps too, so that a team has something to share. */
enum { UNITS_WANTED = 8 };

INLINE int64_t map_parts(const byte_convolution *c, int64_t blocks) {
    int64_t pairs = ceil_divide(c->maps, BYTE_BLOCK_COLUMNS);
    return c->groups > 1 ? 1 : smaller(pairs, ceil_divide(UNITS_WANTED, c->batch * blocks));
}

SHARED_KERNEL(aegis_byte_conv, byte_convolution) {
    const byte_convolution *c = arguments;
    conv_workspace w = carve(c, c->workspace + self.thread * aegis_byte_conv_workspace(c));
    int32_t sums[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
    int64_t depth = window_bytes(c), pixels = c->out_height * c->out_width, size = result_size(c->scales.kind);
    int64_t blocks = byte_block_count(pixels), parts = map_parts(c, blocks);
    int64_t pairs = ceil_divide(c->maps, BYTE_BLOCK_COLUMNS), read = -1, gathered = -1;
    byte_results ready = ready_groups(c, w.results);
    byte_block block = {.depth = depth, .padded_depth = padded_byte_depth(depth), .sums = sums};
    image from = {};
    block.tile_rows = begin_byte_products(pixels);
    __builtin_memset(w.rows, 0, (size_t)rows_bytes(c));
    range mine = part_of(self, c->batch * blocks * parts);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t at = unit / parts, index = at / blocks, part = unit % parts;
        int64_t first = byte_block_start(pixels, at % blocks);
        if (index != read) from = read_image(c, index, w.image);
        read = index;
        block.rows = byte_block_start(pixels, at % blocks + 1) - first;
        int64_t first_map = pairs * part / parts * BYTE_BLOCK_COLUMNS;
        int64_t last_map = smaller(c->maps, pairs * (part + 1) / parts * BYTE_BLOCK_COLUMNS);
        for (int64_t group = 0; group < c->groups; group++) {
            if (c->groups > 1 || at != gathered) ready_rows(c, &from, group, first, w.rows, &block);
            byte_results r = results_at(ready, w.results + group * byte_results_size(c->maps), c->maps);
            convolve_block(c, &block, &r, group, first, first_map, last_map,
                           (char *)c->y + index * pixels * c->groups * c->maps * size);
        }
        gathered = at;
    }
    end_byte_products(block.tile_rows);
}

/* ---- depthwise ------------------------------------------------------------------------------
 *
 * Bytes are multiplied and summed as floats: exactly, because the sums of a window stay below 2^24,
 * and as fast as the machine multiplies floats.
 *
 *     for each block of output rows
 *       what they meet of the image is copied, with its padding (where it needs any)
 *       for each 16 channels, for each output row, by up to 32 pixels:  sums, then results
 *
 * W is packed [taps][channels rounded up to 16], floats less their zero points; behind them the sums
 * over each channel's taps, int32.
 */

INLINE wide bytes_as_floats(const uint8_t *p, int64_t count) {
    typedef uint8_t lanes __attribute__((vector_size(WIDE)));
    lanes bytes = {};
    if (count >= WIDE) __builtin_memcpy(&bytes, p, WIDE);
    else for (int64_t i = 0; i < count; i++) bytes[i] = p[i];
    return __builtin_convertvector(__builtin_convertvector(bytes, wide_int), wide);
}

/* Sums of `count` neighbouring pixels. Where stride and dilation are known to be 1 they share what
 * they load. */
INLINE void depthwise_pixels(const byte_convolution *c, const uint8_t *corner, int64_t row_bytes, const float *w,
                             int64_t w_row, int64_t channels, int32_t *sums, int count, int64_t kernel_height,
                             int64_t kernel_width, int64_t stride, int64_t dilation) {
    wide total[4];
    UNROLL for (int i = 0; i < count; i++) total[i] = wide_of(0);
    for (int64_t row = 0; row < kernel_height; row++, corner += c->dilation_height * row_bytes)
        for (int64_t tap = 0; tap < kernel_width; tap++, w += w_row) {
            wide weight = wide_load(w);
            UNROLL for (int i = 0; i < count; i++) {
                wide x = bytes_as_floats(corner + (i * stride + tap * dilation) * c->groups, channels);
                total[i] = multiply_add(x, weight, total[i]);
            }
        }
    UNROLL for (int i = 0; i < count; i++) {
        wide_int whole = __builtin_convertvector(total[i], wide_int);
        __builtin_memcpy(sums + i * BYTE_BLOCK_COLUMNS, &whole, sizeof whole);
    }
}

/* The same for 3 x 3 taps with stride 1: six columns of pixels serve four sums. */
INLINE void depthwise_3x3(const byte_convolution *c, const uint8_t *corner, int64_t row_bytes, const wide w[9],
                          int32_t *sums) {
    wide total[4];
    UNROLL for (int i = 0; i < 4; i++) total[i] = wide_of(0);
    UNROLL for (int row = 0; row < 3; row++) {
        UNROLL for (int column = 0; column < 6; column++) {
            wide x = bytes_as_floats(corner + row * row_bytes + column * c->groups, WIDE);
            UNROLL for (int i = 0; i < 4; i++)
                if (column >= i && column < i + 3) total[i] = multiply_add(x, w[3 * row + column - i], total[i]);
        }
    }
    UNROLL for (int i = 0; i < 4; i++) {
        wide_int whole = __builtin_convertvector(total[i], wide_int);
        __builtin_memcpy(sums + i * BYTE_BLOCK_COLUMNS, &whole, sizeof whole);
    }
}

/* Sums of up to BYTE_ROWS pixels of an output row. */
INLINE void depthwise_run(const byte_convolution *c, const uint8_t *corner, int64_t row_bytes, const float *w,
                          int64_t w_row, int64_t channels, int32_t *sums, int64_t count, int64_t height,
                          int64_t width, int64_t stride, int64_t dilation) {
    int64_t step = stride * c->groups, i = 0;
    if (height == 3 && width == 3 && stride == 1 && dilation == 1 && c->dilation_height == 1 && channels == WIDE) {
        wide known[9];
        UNROLL for (int tap = 0; tap < 9; tap++) known[tap] = wide_load(w + tap * w_row);
        for (; i + 4 <= count; i += 4)
            depthwise_3x3(c, corner + i * step, row_bytes, known, sums + i * BYTE_BLOCK_COLUMNS);
    }
    for (; i + 4 <= count; i += 4)
        depthwise_pixels(c, corner + i * step, row_bytes, w, w_row, channels, sums + i * BYTE_BLOCK_COLUMNS, 4,
                         height, width, stride, dilation);
    for (; i < count; i++)
        depthwise_pixels(c, corner + i * step, row_bytes, w, w_row, channels, sums + i * BYTE_BLOCK_COLUMNS, 1,
                         height, width, stride, dilation);
}

/* Rows that a window meets, with their padding, channels last. `row` bytes from row to row. */
typedef struct { const uint8_t *pixels; int64_t row; } met_rows;

enum { ROWS_TOGETHER = 4 };

/* Output rows of a block; small images make several blocks too. */
INLINE int64_t block_rows(const byte_convolution *c) {
    return larger(1, smaller(ROWS_TOGETHER, c->out_height / ROWS_TOGETHER));
}

INLINE int64_t met_count(const byte_convolution *c, int64_t rows) {
    return (rows - 1) * c->stride_height + (c->kernel_height - 1) * c->dilation_height + 1;
}

EXPORT int64_t aegis_byte_conv_depthwise_workspace(const byte_convolution *c) {
    int64_t copied = met_count(c, block_rows(c)) * c->copy_width * c->groups;
    return aligned(copied + byte_results_size(c->groups));
}

static void copy_row(const byte_convolution *c, int64_t index, int64_t y, uint8_t zero, uint8_t *to) {
    int64_t left = smaller(c->pad_left, c->copy_width), columns = smaller(c->width, c->copy_width - left);
    if (y < 0 || y >= c->height) left = c->copy_width, columns = 0;
    __builtin_memset(to, zero, (size_t)(left * c->groups));
    const uint8_t *x = c->x + index * image_bytes(c);
    if (columns && c->is_planar)
        turn_bytes(x + y * c->width, c->height * c->width, c->groups, columns, moved_by(c), to + left * c->groups, c->groups);
    else copy_moved(x + y * c->width * c->groups, columns * c->groups, moved_by(c), to + left * c->groups);
    __builtin_memset(to + (left + columns) * c->groups, zero, (size_t)((c->copy_width - left - columns) * c->groups));
}

/* What `rows` output rows from `first` on meet. */
static met_rows read_rows(const byte_convolution *c, int64_t index, int64_t first, int64_t rows, uint8_t *copy) {
    int64_t top = first * c->stride_height - c->pad_top, row_bytes = c->width * c->groups;
    if (!c->copy_width) return (met_rows){c->x + index * image_bytes(c) + top * row_bytes, row_bytes};
    uint8_t zero = (uint8_t)moved_a_zero(&c->scales);
    row_bytes = c->copy_width * c->groups;
    for (int64_t i = 0; i < met_count(c, rows); i++) copy_row(c, index, top + i, zero, copy + i * row_bytes);
    return (met_rows){copy, row_bytes};
}

/* 16 channels of an output row. */
static void depthwise_row(const byte_convolution *c, const uint8_t *met, int64_t row_bytes, const byte_results *r,
                          int64_t channel, int64_t row, char *y) {
    int32_t sums[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
    int64_t channels = smaller(WIDE, c->groups - channel), w_row = padded_byte_columns(c->groups);
    int64_t size = result_size(r->kind), pixels = c->out_height * c->out_width, y_row = c->groups * size;
    const float *w = (const float *)(const void *)c->w + channel;
    int is_3x3 = c->kernel_height == 3 && c->kernel_width == 3 && c->dilation_width == 1;
    byte_block block = {.panel_count = 1, .sums = sums};
    for (int64_t column = 0; column < c->out_width; column += BYTE_ROWS) {
        block.rows = smaller(BYTE_ROWS, c->out_width - column);
        const uint8_t *corner = met + column * c->stride_width * c->groups + channel;
        if (is_3x3 && channels == WIDE && c->stride_width == 1)
            depthwise_run(c, corner, row_bytes, w, w_row, WIDE, sums, block.rows, 3, 3, 1, 1);
        else if (is_3x3 && channels == WIDE)
            depthwise_run(c, corner, row_bytes, w, w_row, WIDE, sums, block.rows, 3, 3, c->stride_width, 1);
        else
            depthwise_run(c, corner, row_bytes, w, w_row, channels, sums, block.rows, c->kernel_height,
                          c->kernel_width, c->stride_width, c->dilation_width);
        int64_t pixel = row * c->out_width + column;
        if (c->is_planar) {
            int32_t turned[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
            store_block(r, &block, NULL, channel, channels, (char *)turned, BYTE_BLOCK_COLUMNS * size);
            store_planes(turned, block.rows, channels, pixels, size, y + (channel * pixels + pixel) * size);
        } else {
            store_block(r, &block, NULL, channel, channels, y + pixel * y_row + channel * size, y_row);
        }
    }
}

SHARED_KERNEL(aegis_byte_conv_depthwise, byte_convolution) {
    const byte_convolution *c = arguments;
    uint8_t *workspace = c->workspace + self.thread * aegis_byte_conv_depthwise_workspace(c);
    int64_t size = result_size(c->scales.kind), rows = block_rows(c), blocks = ceil_divide(c->out_height, rows);
    /* Taps are less their zero points already; of the data's the sums of the taps take care. */
    const int32_t *tap_sums = (const int32_t *)(const void *)(c->w + c->kernel_height * c->kernel_width *
                                                              padded_byte_columns(c->groups) * (int64_t)sizeof(float));
    uint8_t *copy = workspace + byte_results_size(c->groups);
    byte_results r = ready_results(&c->scales, c->scales.a_scale, c->scales.a_zero, tap_sums, 0, 0, c->groups, workspace);
    r.has_zeros = 0;
    range mine = part_of(self, c->batch * blocks);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t index = unit / blocks, first = unit % blocks * rows, last = smaller(first + rows, c->out_height);
        met_rows met = read_rows(c, index, first, last - first, copy);
        char *y = (char *)c->y + index * c->groups * c->out_height * c->out_width * size;
        for (int64_t channel = 0; channel < c->groups; channel += WIDE)
            for (int64_t row = first; row < last; row++)
                depthwise_row(c, met.pixels + (row - first) * c->stride_height * met.row, met.row, &r, channel, row, y);
    }
}
