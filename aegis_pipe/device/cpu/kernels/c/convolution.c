/* Two-dimensional convolutions of float32 images laid out N, C, H, W.
 *
 * aegis_conv_pixels    1x1, stride 1, no padding, many pixels: pixels lie in the lanes
 * aegis_conv_channels  everything but depthwise: output channels lie in the lanes
 * aegis_conv_depthwise one input and one output channel a group: pixels lie in the lanes
 *
 * The order of every sum is the same in the first two: over kernel rows, kernel columns, channels.
 */
#include "step.h"
#include "tile.h"

typedef struct {
    const float *x, *w, *bias; /* bias: [groups * maps], or NULL */
    float *y, *workspace;
    int64_t batch, groups, depth, maps; /* a group has `depth` input and `maps` output channels */
    int64_t height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width;
    int64_t dilation_height, dilation_width, pad_top, pad_left;
    int64_t copy_height, copy_width; /* of the padded copy in the workspace */
    float low, high;
    int64_t clips;
} convolution;

static epilogue finish(const convolution *c, int64_t group, int64_t addend_row, int64_t addend_column) {
    const float *bias = c->bias ? c->bias + group * c->maps : NULL;
    return (epilogue){bias, addend_row, addend_column, 1, 1, c->low, c->high, c->clips};
}

/* ---- pixels in the lanes -------------------------------------------------------------------
 *
 * Y[maps, pixels] = W[maps, depth] X[depth, pixels]; X is a plain matrix as it lies in memory.
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
    tile_accumulate(sums, rows, vectors, a, ROWS, b, b_step, c->depth);
    tile_store(end, sums, rows, vectors, y, pixels, map, pixel, pixels - pixel);
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

KERNEL(aegis_conv_pixels, convolution) {
    const convolution *c = arguments;
    int64_t pixels = c->out_height * c->out_width;
    int64_t packed_maps = ceil_divide(c->maps, ROWS) * ROWS;
    for (int64_t image = 0; image < c->batch * c->groups; image++) {
        int64_t group = image % c->groups;
        const float *x = c->x + image * c->depth * pixels, *w = c->w + group * packed_maps * c->depth;
        float *y = c->y + image * c->maps * pixels;
        epilogue end = finish(c, group, 1, 0);
        for (int64_t pixel = 0; pixel < pixels; pixel += PANEL) {
            int64_t count = smaller(PANEL, pixels - pixel), vectors = ceil_divide(count, LANES);
            copy_pixels(x + pixel, c->depth, pixels, count, c->workspace);
            for (int64_t map = 0; map < c->maps; map += ROWS)
                TILE_DISPATCH(pixels_tile, smaller(ROWS, c->maps - map), vectors, c, &end, w, c->workspace,
                              PANEL, y, map, pixel, pixels)
        }
    }
}

/* ---- channels in the lanes -----------------------------------------------------------------
 *
 * Each image of each group is copied once to [copy_height][copy_width][depth], with its padding:
 * then a pixel's window is, for each kernel row, one contiguous run of kernel_width * depth floats
 * (with dilation: one run of `depth` a tap), and no tap needs a test.
 *
 *     for each block of pixels (its part of the copy stays in the second-level cache)
 *       for each panel of output channels
 *         for each tile of up to ROWS pixels of the block:
 *           for each run: accumulate;  then turn the tile round and write it to Y[map][pixel]
 *
 * W is packed [maps / PANEL][kernel row][kernel column][depth][PANEL].
 */

enum { PIXEL_BLOCK_FLOATS = 32 << 10 };

INLINE void channels_tile(const convolution *c, const epilogue *end, const float *copy, const float *panel,
                          float *y, int64_t pixel, int64_t map, int rows, int vectors) {
    const float *a[ROWS];
    int64_t out_row = pixel / c->out_width, out_column = pixel % c->out_width;
    UNROLL for (int r = 0; r < rows; r++) {
        a[r] = copy + (out_row * c->stride_height * c->copy_width + out_column * c->stride_width) * c->depth;
        if (++out_column == c->out_width) out_column = 0, out_row++;
    }
    int64_t runs = c->dilation_width == 1 ? 1 : c->kernel_width;
    int64_t length = c->kernel_width / runs * c->depth;
    vec sums[ROWS][VECTORS];
    tile_clear(sums, rows, vectors);
    for (int64_t row = 0; row < c->kernel_height; row++) {
        for (int64_t run = 0; run < runs; run++, panel += length * PANEL) {
            int64_t offset = (row * c->dilation_height * c->copy_width + run * c->dilation_width) * c->depth;
            const float *tap[ROWS];
            UNROLL for (int r = 0; r < rows; r++) tap[r] = a[r] + offset;
            tile_accumulate(sums, rows, vectors, tap, 1, panel, PANEL, length);
        }
    }
    int64_t pixels = c->out_height * c->out_width;
    tile_store_transposed(end, sums, rows, vectors, y, pixels, pixel, map, c->maps - map);
}

/* Turns 8 rows of 8 floats round: three rounds of exchanging ever larger halves. */
INLINE void transpose_8x8(const float *from, int64_t from_row, float *to, int64_t to_row) {
    eight a[8], b[8];
    UNROLL for (int i = 0; i < 8; i++) __builtin_memcpy(&a[i], from + i * from_row, sizeof a[i]);
    UNROLL for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
        UNROLL for (int j = i; j < i + 2; j++) {
            a[j] = __builtin_shufflevector(b[j], b[j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[j + 2] = __builtin_shufflevector(b[j], b[j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    UNROLL for (int i = 0; i < 4; i++) {
        b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        b[i + 4] = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    UNROLL for (int i = 0; i < 8; i++) __builtin_memcpy(to + i * to_row, &b[i], sizeof b[i]);
}

/* One image row of all channels of a group, [depth][width], to [width][depth]. */
static void copy_row(const convolution *c, const float *x, int64_t channel_step, int64_t pixel_step,
                     int64_t width, float *to) {
    int64_t pixel = 0;
    if (pixel_step == 1)
        for (; pixel + 8 <= width; pixel += 8) {
            int64_t channel = 0;
            for (; channel + 8 <= c->depth; channel += 8)
                transpose_8x8(x + channel * channel_step + pixel, channel_step, to + pixel * c->depth + channel,
                              c->depth);
            for (; channel < c->depth; channel++)
                UNROLL for (int i = 0; i < 8; i++)
                    to[(pixel + i) * c->depth + channel] = x[channel * channel_step + pixel + i];
        }
    for (; pixel < width; pixel++)
        for (int64_t channel = 0; channel < c->depth; channel++)
            to[pixel * c->depth + channel] = x[channel * channel_step + pixel * pixel_step];
}

/* One group of one image to [copy_height][copy_width][depth], zeros around it. Of a 1x1 kernel's
 * image only the pixels that it meets are copied: `row_step` and `pixel_step` are its strides. */
static void copy_image(const convolution *c, const float *x, int64_t row_step, int64_t pixel_step) {
    int64_t rows = ceil_divide(c->height, row_step), width = ceil_divide(c->width, pixel_step);
    int64_t left = c->pad_left * c->depth, right = (c->copy_width - c->pad_left - width) * c->depth;
    int64_t row_floats = c->copy_width * c->depth;
    float *to = c->workspace;
    for (int64_t row = 0; row < c->copy_height; row++, to += row_floats) {
        int64_t source = row - c->pad_top;
        if (source < 0 || source >= rows) {
            __builtin_memset(to, 0, (size_t)row_floats * sizeof *to);
            continue;
        }
        int64_t copied = smaller(width, c->copy_width - c->pad_left);
        __builtin_memset(to, 0, (size_t)left * sizeof *to);
        copy_row(c, x + source * row_step * c->width, c->height * c->width, pixel_step, copied, to + left);
        if (right > 0) __builtin_memset(to + row_floats - right, 0, (size_t)right * sizeof *to);
    }
}

KERNEL(aegis_conv_channels, convolution) {
    const convolution *c = arguments;
    convolution met = *c; /* as seen from the copy */
    int64_t row_step = 1, pixel_step = 1;
    if (c->kernel_height == 1 && c->kernel_width == 1 && c->pad_top == 0 && c->pad_left == 0) {
        row_step = c->stride_height, pixel_step = c->stride_width;
        met.stride_height = met.stride_width = 1;
    }
    int64_t pixels = c->out_height * c->out_width, tile = even_tile(pixels);
    int64_t window = c->depth * c->kernel_width * c->stride_height;
    int64_t block = larger(1, PIXEL_BLOCK_FLOATS / larger(1, window * tile)) * tile;
    int64_t panel_floats = c->kernel_height * c->kernel_width * c->depth;
    int64_t packed_maps = ceil_divide(c->maps, PANEL) * PANEL;
    for (int64_t image = 0; image < c->batch * c->groups; image++) {
        int64_t group = image % c->groups;
        epilogue end = finish(c, group, 0, 1);
        const float *w = c->w + group * packed_maps * panel_floats;
        float *y = c->y + image * c->maps * pixels;
        copy_image(c, c->x + image * c->depth * c->height * c->width, row_step, pixel_step);
        for (int64_t first = 0; first < pixels; first += block) {
            int64_t last = smaller(first + block, pixels);
            for (int64_t map = 0; map < c->maps; map += PANEL) {
                int64_t vectors = ceil_divide(smaller(PANEL, c->maps - map), LANES);
                for (int64_t pixel = first; pixel < last; pixel += tile)
                    TILE_DISPATCH(channels_tile, smaller(tile, last - pixel), vectors, &met, &end,
                                  c->workspace, w + map * panel_floats, y, pixel, map)
            }
        }
    }
}

/* ---- depthwise -----------------------------------------------------------------------------
 *
 * A plane is copied with its padding into the workspace, its columns sorted by their remainder
 * modulo the stride: [copy_height][stride_width][copy_width]. Then neighbouring results read
 * neighbouring floats, whatever the stride.
 *
 *     for each plane
 *       for each output row
 *         for each WIDE results:  over the taps, weight * 16 neighbours
 *
 * copy_width has room for a whole last vector; of its results only those inside are written.
 */

/* Columns left .. left + width of a row to their places, zeros elsewhere. */
static void sort_columns(const convolution *c, const float *x, float *to) {
    int64_t stride = c->stride_width, left = c->pad_left, width = c->width;
    __builtin_memset(to, 0, (size_t)(stride * c->copy_width) * sizeof *to);
    if (!x) return;
    if (stride == 1) {
        __builtin_memcpy(to + left, x, (size_t)smaller(width, c->copy_width - left) * sizeof *to);
        return;
    }
    int64_t column = 0;
    if (stride == 2) {
        float *even = to + (left & 1) * c->copy_width + left / 2;
        float *odd = to + (~left & 1) * c->copy_width + (left + 1) / 2;
        for (; column + 2 * WIDE <= width && left + column + 2 * WIDE <= 2 * c->copy_width; column += 2 * WIDE) {
            wide low = wide_load(x + column), high = wide_load(x + column + WIDE);
            wide_store(even + column / 2, __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18,
                                                                  20, 22, 24, 26, 28, 30));
            wide_store(odd + column / 2, __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19,
                                                                 21, 23, 25, 27, 29, 31));
        }
    }
    for (; column < width; column++) {
        int64_t place = (left + column) / stride;
        if (place < c->copy_width) to[(left + column) % stride * c->copy_width + place] = x[column];
    }
}

/* `count` output rows' 16 results from one column on; taps of neighbouring rows share no loads, but
 * the sums of several rows hide each other's latency. */
INLINE void depthwise_strip(const convolution *c, const float *w, float bias, float *y, int64_t row,
                            int64_t column, int count, int64_t kernel_height, int64_t kernel_width) {
    int64_t row_floats = c->stride_width * c->copy_width;
    wide sums[4];
    UNROLL for (int i = 0; i < count; i++) sums[i] = wide_of(0);
    for (int64_t kh = 0; kh < kernel_height; kh++)
        for (int64_t kw = 0; kw < kernel_width; kw++) {
            int64_t tap = kw * c->dilation_width;
            const float *x = c->workspace + (row * c->stride_height + kh * c->dilation_height) * row_floats +
                             tap % c->stride_width * c->copy_width + tap / c->stride_width + column;
            wide weight = wide_of(w[kh * kernel_width + kw]);
            UNROLL for (int i = 0; i < count; i++)
                sums[i] = multiply_add(wide_load(x + i * c->stride_height * row_floats), weight, sums[i]);
        }
    int64_t inside = c->out_width - column;
    UNROLL for (int i = 0; i < count; i++) {
        wide sum = sums[i] + bias;
        if (c->clips) sum = wide_at_most(wide_at_least(sum, wide_of(c->low)), wide_of(c->high));
        float *target = y + (row + i) * c->out_width + column;
        if (inside >= WIDE) wide_store(target, sum);
        else wide_store_part(target, sum, inside);
    }
}

INLINE void depthwise_plane(const convolution *c, const float *w, float bias, float *y,
                            int64_t kernel_height, int64_t kernel_width) {
    for (int64_t column = 0; column < c->out_width; column += WIDE) {
        int64_t row = 0;
        for (; row + 4 <= c->out_height; row += 4)
            depthwise_strip(c, w, bias, y, row, column, 4, kernel_height, kernel_width);
        for (; row < c->out_height; row++)
            depthwise_strip(c, w, bias, y, row, column, 1, kernel_height, kernel_width);
    }
}

KERNEL(aegis_conv_depthwise, convolution) {
    const convolution *c = arguments;
    int64_t row_floats = c->stride_width * c->copy_width;
    for (int64_t plane = 0; plane < c->batch * c->groups; plane++) {
        int64_t channel = plane % c->groups;
        const float *x = c->x + plane * c->height * c->width;
        for (int64_t row = 0; row < c->copy_height; row++) {
            int64_t source = row - c->pad_top;
            int is_inside = source >= 0 && source < c->height;
            sort_columns(c, is_inside ? x + source * c->width : NULL, c->workspace + row * row_floats);
        }
        const float *w = c->w + channel * c->kernel_height * c->kernel_width;
        float *y = c->y + plane * c->out_height * c->out_width;
        float bias = c->bias ? c->bias[channel] : 0;
        /* A 3x3 kernel known to the compiler has its taps unrolled. */
        if (c->kernel_height == 3 && c->kernel_width == 3) depthwise_plane(c, w, bias, y, 3, 3);
        else depthwise_plane(c, w, bias, y, c->kernel_height, c->kernel_width);
    }
}
