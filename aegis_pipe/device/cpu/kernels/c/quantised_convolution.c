/* Two-dimensional convolutions of images of bytes; planar (N, C, H, W) or channels last (N, H, W, C),
 * input and output each for itself.
 *
 * aegis_byte_conv            everything but depthwise: products of bytes
 * aegis_byte_conv_depthwise  one input and one output channel a group: channels in the lanes
 *
 * An image that is planar, signed or padded is copied once, to [copy_height][copy_width][channels] of
 * unsigned bytes with the zero point around it. After that no tap needs a test, and in a window each
 * kernel row of one group is a run (without dilation and groups: one run for all its taps).
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
    int64_t copy_height, copy_width; /* 0: the image can be read where it lies */
    int64_t x_is_planar, y_is_planar;
    byte_scales scales;
} byte_convolution;

/* Sizes of the parts of the workspace; each starts at a multiple of 64. */
INLINE int64_t aligned(int64_t bytes) { return ceil_divide(bytes, 64) * 64; }
INLINE int64_t window_bytes(const byte_convolution *c) { return c->kernel_height * c->kernel_width * c->depth; }
INLINE int64_t copy_bytes(const byte_convolution *c) {
    return aligned(c->copy_height * c->copy_width * c->groups * c->depth);
}
INLINE int64_t rows_bytes(const byte_convolution *c) { return BYTE_ROWS * padded_byte_depth(window_bytes(c)); }

/* For load time. */
EXPORT int64_t aegis_byte_conv_workspace(const byte_convolution *c) {
    return copy_bytes(c) + rows_bytes(c) + byte_results_size(c->maps);
}
EXPORT int64_t aegis_byte_conv_depthwise_workspace(const byte_convolution *c) {
    return copy_bytes(c) + byte_results_size(c->groups);
}

/* How an image is read: channels last, `row` bytes from row to row. */
typedef struct { const uint8_t *pixels; int64_t row; } image;

static image read_image(const byte_convolution *c, int64_t index) {
    int64_t channels = c->groups * c->depth;
    const uint8_t *x = c->x + index * channels * c->height * c->width;
    if (!c->copy_width) return (image){x, c->width * channels};
    int64_t row_bytes = c->copy_width * channels;
    int64_t rows = smaller(c->height, c->copy_height - c->pad_top);
    int64_t columns = smaller(c->width, c->copy_width - c->pad_left);
    uint8_t moved = c->scales.a_is_signed ? 0x80 : 0, zero = (uint8_t)moved_a_zero(&c->scales);
    uint8_t *to = c->workspace;
    /* What lies around the image is the same for all images. */
    if (index == 0) __builtin_memset(to, zero, (size_t)(c->copy_height * row_bytes));
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *target = to + (r + c->pad_top) * row_bytes + c->pad_left * channels;
        if (c->x_is_planar) turn_bytes(x + r * c->width, c->height * c->width, channels, columns, moved, target, channels);
        else copy_moved(x + r * c->width * channels, columns * channels, moved, target);
    }
    return (image){to, row_bytes};
}

/* ---- everything but depthwise ---------------------------------------------------------------
 *
 *     for each block of up to 32 output pixels
 *       their windows are gathered, one a row of A (a 1x1 kernel's may be read where they lie)
 *       for each pair of panels of W:  a block of sums, then results
 *
 * W is packed [groups] panels of [kernel row][kernel column][depth] by maps.
 */

INLINE void gather_window(const byte_convolution *c, const uint8_t *corner, int64_t row_bytes, uint8_t *to) {
    int64_t channels = c->groups * c->depth;
    int is_run = c->dilation_width == 1 && c->groups == 1;
    int64_t runs = is_run ? 1 : c->kernel_width, length = is_run ? c->kernel_width * c->depth : c->depth;
    for (int64_t row = 0; row < c->kernel_height; row++)
        for (int64_t run = 0; run < runs; run++, to += length)
            copy_moved(corner + row * c->dilation_height * row_bytes + run * c->dilation_width * channels, length, 0, to);
}

/* The rows of A of `count` pixels; depth is padded with zeros, which `buffer` has there already. */
static const uint8_t *gather(const byte_convolution *c, image from, int64_t group, int64_t first, int64_t count,
                             uint8_t *buffer) {
    int64_t channels = c->groups * c->depth, padded = padded_byte_depth(window_bytes(c));
    int64_t row = first / c->out_width, column = first % c->out_width;
    for (int64_t i = 0; i < count; i++, buffer += padded) {
        const uint8_t *corner = from.pixels + row * c->stride_height * from.row +
                                column * c->stride_width * channels + group * c->depth;
        gather_window(c, corner, from.row, buffer);
        if (++column == c->out_width) column = 0, row++;
    }
    return buffer - count * padded;
}

/* Whether windows are rows of the image as it lies there. */
INLINE int is_in_place(const byte_convolution *c) {
    return c->kernel_height == 1 && c->kernel_width == 1 && c->stride_height == 1 && c->stride_width == 1 &&
           c->groups == 1 && (!c->copy_width || (c->copy_width == c->width && !c->pad_left && !c->pad_top));
}

/* The rows of A of a block of pixels. In place, the padding of a row is the next one's beginning:
 * what is multiplied with it is zero. It must not lie behind the end of the input, though. */
static void ready_rows(const byte_convolution *c, image from, int64_t group, int64_t first, uint8_t *buffer,
                       byte_block *block) {
    const uint8_t *end = c->x + c->batch * c->groups * c->depth * c->height * c->width;
    const uint8_t *a = from.pixels + first * c->depth;
    int64_t reach = (block->rows - 1) * c->depth + block->padded_depth;
    if (is_in_place(c) && (c->copy_width || reach <= end - a)) {
        block->a = a;
        block->a_row = c->depth;
    } else {
        block->a = gather(c, from, group, first, block->rows, buffer);
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

/* All maps of a group for a block of pixels. `y` is the group's first result of the image. */
static void convolve_block(const byte_convolution *c, byte_block *block, const byte_results *r, const int8_t *panels,
                           int64_t first, char *y) {
    int64_t pixels = c->out_height * c->out_width, size = result_size(r->kind);
    int32_t row_sums[BYTE_ROWS] = {0};
    if (r->has_zeros)
        for (int64_t i = 0; i < block->rows; i++) row_sums[i] = byte_sum(block->a + i * block->a_row, block->depth);
    for (int64_t map = 0; map < c->maps; map += BYTE_BLOCK_COLUMNS) {
        int64_t left = c->maps - map;
        block->panels = panels + map * block->padded_depth;
        block->panel_count = left > BYTE_PANEL ? 2 : 1;
        multiply_bytes(block);
        if (c->y_is_planar) {
            int32_t turned[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
            store_block(r, block, row_sums, map, left, (char *)turned, BYTE_BLOCK_COLUMNS * size);
            store_planes(turned, block->rows, smaller(left, BYTE_BLOCK_COLUMNS), pixels, size,
                         y + (map * pixels + first) * size);
        } else {
            int64_t y_row = c->groups * c->maps * size;
            store_block(r, block, row_sums, map, left, y + first * y_row + map * size, y_row);
        }
    }
}

/* One group of one image. */
static void convolve(const byte_convolution *c, image from, int64_t group, int64_t tile_rows, char *y) {
    int32_t sums[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
    int64_t depth = window_bytes(c), padded = padded_byte_depth(depth), pixels = c->out_height * c->out_width;
    uint8_t *buffer = c->workspace + copy_bytes(c);
    const int8_t *panels = (const int8_t *)c->w + group * byte_panels_size(depth, c->maps);
    const int32_t *column_sums = (const int32_t *)(const void *)(panels + padded * padded_byte_columns(c->maps));
    byte_results r = ready_results(&c->scales, c->scales.a_scale, c->scales.a_zero, column_sums, depth,
                                   group * c->maps, c->maps, buffer + rows_bytes(c));
    byte_block block = {.depth = depth, .padded_depth = padded, .tile_rows = tile_rows, .sums = sums};
    for (int64_t i = 0; i < byte_block_count(pixels); i++) {
        int64_t first = byte_block_start(pixels, i);
        block.rows = byte_block_start(pixels, i + 1) - first;
        ready_rows(c, from, group, first, buffer, &block);
        convolve_block(c, &block, &r, panels, first, y);
    }
}

KERNEL(aegis_byte_conv, byte_convolution) {
    const byte_convolution *c = arguments;
    int64_t pixels = c->out_height * c->out_width, size = result_size(c->scales.kind);
    int64_t tile_rows = begin_byte_products(pixels);
    __builtin_memset(c->workspace + copy_bytes(c), 0, (size_t)rows_bytes(c));
    for (int64_t i = 0; i < c->batch; i++) {
        image from = read_image(c, i);
        for (int64_t group = 0; group < c->groups; group++) {
            int64_t start = i * c->groups * pixels * c->maps + group * c->maps * (c->y_is_planar ? pixels : 1);
            convolve(c, from, group, tile_rows, (char *)c->y + start * size);
        }
    }
    end_byte_products(tile_rows);
}

/* ---- depthwise ------------------------------------------------------------------------------
 *
 * Bytes are multiplied and summed as floats: exactly, because the sums of a window stay below 2^24,
 * and as fast as the machine multiplies floats.
 *
 *     for each 16 channels
 *       for each output row, by up to 32 pixels:  sums of 4 pixels at a time, then results
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

static void depthwise_strip(const byte_convolution *c, image from, const byte_results *r, int64_t channel, char *y) {
    int32_t sums[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
    int64_t channels = smaller(WIDE, c->groups - channel), w_row = padded_byte_columns(c->groups);
    int64_t size = result_size(r->kind), pixels = c->out_height * c->out_width, y_row = c->groups * size;
    const float *w = (const float *)(const void *)c->w + channel;
    int is_3x3 = c->kernel_height == 3 && c->kernel_width == 3 && c->dilation_width == 1;
    byte_block block = {.panel_count = 1, .sums = sums};
    for (int64_t row = 0; row < c->out_height; row++)
        for (int64_t column = 0; column < c->out_width; column += BYTE_ROWS) {
            block.rows = smaller(BYTE_ROWS, c->out_width - column);
            const uint8_t *corner = from.pixels + row * c->stride_height * from.row +
                                    column * c->stride_width * c->groups + channel;
            if (is_3x3 && channels == WIDE && c->stride_width == 1)
                depthwise_run(c, corner, from.row, w, w_row, WIDE, sums, block.rows, 3, 3, 1, 1);
            else if (is_3x3 && channels == WIDE)
                depthwise_run(c, corner, from.row, w, w_row, WIDE, sums, block.rows, 3, 3, c->stride_width, 1);
            else
                depthwise_run(c, corner, from.row, w, w_row, channels, sums, block.rows, c->kernel_height,
                              c->kernel_width, c->stride_width, c->dilation_width);
            int64_t pixel = row * c->out_width + column;
            if (c->y_is_planar) {
                int32_t turned[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
                store_block(r, &block, NULL, channel, channels, (char *)turned, BYTE_BLOCK_COLUMNS * size);
                store_planes(turned, block.rows, channels, pixels, size, y + (channel * pixels + pixel) * size);
            } else {
                store_block(r, &block, NULL, channel, channels, y + pixel * y_row + channel * size, y_row);
            }
        }
}

KERNEL(aegis_byte_conv_depthwise, byte_convolution) {
    const byte_convolution *c = arguments;
    int64_t size = result_size(c->scales.kind);
    uint8_t *after_copy = c->workspace + copy_bytes(c);
    /* Taps are less their zero points already; of the data's the sums of the taps take care. */
    const int32_t *tap_sums = (const int32_t *)(const void *)(c->w + c->kernel_height * c->kernel_width *
                                                              padded_byte_columns(c->groups) * (int64_t)sizeof(float));
    byte_results r = ready_results(&c->scales, c->scales.a_scale, c->scales.a_zero, tap_sums, 0, 0, c->groups, after_copy);
    r.has_zeros = 0;
    for (int64_t i = 0; i < c->batch; i++) {
        image from = read_image(c, i);
        char *y = (char *)c->y + i * c->groups * c->out_height * c->out_width * size;
        for (int64_t channel = 0; channel < c->groups; channel += WIDE) depthwise_strip(c, from, &r, channel, y);
    }
}
