/* Transposed convolutions of up to three spatial dimensions, [image][channel][depth][height][width].
 *
 * Every input column adds to output columns that are a stride apart. Output rows are summed up with
 * their columns sorted by the remainder modulo the stride, [stride][room]: there, what a tap adds to
 * neighbours lies side by side.
 *
 *     for each strip of output rows of a block of maps
 *       for each tap (plane, row):  the input rows that it takes to this strip, as panels
 *         for each tap (column)
 *           for each panel:  tiles of the product weights x panel, added to the sorted rows
 *       write the rows, columns in their order
 *
 * Workers share the strips. What a result is the sum of is added in the order of the taps.
 */
#include "step.h"
#include "tile.h"

enum { PLANE, ROW, COLUMN, AXES };

typedef struct {
    const float *x, *weights, *bias; /* bias: NULL for none */
    float *y, *workspace; /* of each worker: sorted rows, then panels */
    int64_t images, groups, depth, maps; /* depth: input channels of a group, maps: its output channels */
    int64_t size[AXES], out_size[AXES], kernel[AXES], stride[AXES], dilation[AXES], pad[AXES]; /* pad: before */
    int64_t weight_group, weight_tap, weight_map, weight_depth; /* strides of the weights in floats */
} transposed_convolution;

/* Maps of a block; floats of its sorted rows and of the panels that a strip should not exceed. */
enum { BLOCK_MAPS = 48, STRIP_FLOATS = 32 << 10 };

typedef struct { int64_t maps, rows, room, panels; } strip_cut; /* room: floats of a sorted row's remainder */

static strip_cut cut_of(const transposed_convolution *t) {
    int64_t stride = t->stride[COLUMN], width = t->size[COLUMN];
    int64_t summed = width + (t->kernel[COLUMN] - 1) * t->dilation[COLUMN] / stride;
    int64_t written = (t->out_size[COLUMN] - 1 + t->pad[COLUMN]) / stride + 1;
    int64_t maps = smaller(t->maps, BLOCK_MAPS), room = larger(summed, written);
    int64_t floats = larger(maps * t->stride[ROW] * stride * room, t->depth * width);
    int64_t input_rows = larger(1, STRIP_FLOATS / floats);
    int64_t rows = smaller(t->out_size[ROW], input_rows * t->stride[ROW]);
    input_rows = ceil_divide(rows, t->stride[ROW]);
    return (strip_cut){maps, rows, room, ceil_divide(input_rows * width, PANEL)};
}

INLINE int64_t sorted_floats(const transposed_convolution *t, strip_cut by) {
    return by.maps * by.rows * t->stride[COLUMN] * by.room;
}
static int64_t worker_floats(const transposed_convolution *t, strip_cut by) {
    return sorted_floats(t, by) + by.panels * t->depth * PANEL;
}
EXPORT int64_t aegis_transposed_convolution_workspace(const transposed_convolution *t) {
    return 4 * worker_floats(t, cut_of(t));
}

/* One unit of work. */
typedef struct {
    const float *x, *weights; /* of the image's group; of the block's first map */
    float *sorted, *panels;
    int64_t plane, maps; /* output plane */
    range rows; /* output rows */
    strip_cut by;
} strip;

/* [depth][count] floats, `plane` apart, to panels [count / PANEL][depth][PANEL], padded with zeros. */
static void pack_positions(const float *x, int64_t plane, int64_t depth, int64_t count, float *panels) {
    for (int64_t first = 0; first < count; first += PANEL)
        for (int64_t k = 0; k < depth; k++, panels += PANEL) {
            const float *from = x + k * plane + first;
            if (first + PANEL <= count) {
                UNROLL for (int v = 0; v < VECTORS; v++) vec_store(panels + v * LANES, vec_load(from + v * LANES));
            } else {
                for (int64_t i = 0; i < PANEL; i++) panels[i] = first + i < count ? from[i] : 0;
            }
        }
}

INLINE void add_floats(float *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i += WIDE) row_store(to, i, count, row_load(to, i, count) + row_load(from, i, count));
}

/* Where the products of one tap go: row 0 is that of the strip's first packed position. */
typedef struct { float *to; int64_t map_floats, row_floats, width, count; } destination;

/* Multiplies `rows` maps' weights with a panel and adds the results of the positions from `first` on. */
INLINE void transposed_tile(const transposed_convolution *t, const float *weights, const float *panel,
                            const destination *d, int64_t first, int64_t map, int rows, int vectors) {
    const float *a[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a[r] = weights + (map + r) * t->weight_map;
    vec sums[ROWS][VECTORS];
    float results[ROWS * PANEL];
    tile_clear(sums, rows, vectors);
    tile_accumulate(sums, rows, vectors, a, t->weight_depth, panel, PANEL, t->depth, panel);
    tile_keep(sums, rows, vectors, results, PANEL, PANEL);
    int64_t last = smaller(first + PANEL, d->count);
    for (int64_t position = first; position < last;) {
        int64_t row = position / d->width, column = position % d->width;
        int64_t count = smaller(d->width - column, last - position);
        float *to = d->to + map * d->map_floats + row * d->row_floats + column;
        UNROLL for (int r = 0; r < rows; r++)
            add_floats(to + r * d->map_floats, results + r * PANEL + position - first, count);
        position += count;
    }
}

/* Adds what the taps of one (plane, row) bring to a strip from input plane `plane`. */
static void add_taps(const transposed_convolution *t, const strip *s, int64_t plane, int64_t tap_plane, int64_t tap_row) {
    int64_t width = t->size[COLUMN], stride = t->stride[ROW], image = t->size[PLANE] * t->size[ROW] * width;
    int64_t ahead = t->pad[ROW] - tap_row * t->dilation[ROW];
    int64_t first = ceil_divide(larger(0, s->rows.first + ahead), stride);
    int64_t last = smaller(t->size[ROW], ceil_divide(larger(0, s->rows.last + ahead), stride));
    if (first >= last) return;
    int64_t row_floats = t->stride[COLUMN] * s->by.room, count = (last - first) * width;
    float *to = s->sorted + (first * stride - ahead - s->rows.first) * row_floats;
    pack_positions(s->x + (plane * t->size[ROW] + first) * width, image, t->depth, count, s->panels);
    for (int64_t column = 0; column < t->kernel[COLUMN]; column++) {
        int64_t shift = column * t->dilation[COLUMN];
        int64_t tap = (tap_plane * t->kernel[ROW] + tap_row) * t->kernel[COLUMN] + column;
        destination d = {to + shift % t->stride[COLUMN] * s->by.room + shift / t->stride[COLUMN],
                         s->by.rows * row_floats, stride * row_floats, width, count};
        const float *weights = s->weights + tap * t->weight_tap, *panel = s->panels;
        int64_t tile = even_tile(s->maps);
        for (int64_t position = 0; position < count; position += PANEL, panel += t->depth * PANEL) {
            int64_t vectors = ceil_divide(smaller(PANEL, count - position), LANES);
            for (int64_t map = 0; map < s->maps; map += tile)
                TILE_DISPATCH(transposed_tile, smaller(tile, s->maps - map), vectors, t, weights, panel, &d, position, map)
        }
    }
}

/* Writes row[width] from sorted columns, `left` columns from their start. */
static void write_row(const float *sorted, int64_t room, int64_t stride, int64_t left, int64_t width, float *row) {
    int64_t column = 0;
    if (stride == 1) {
        copy_floats(row, sorted + left, width);
        return;
    }
    if (stride == 2) {
        const float *even = sorted + (left & 1) * room + left / 2;
        const float *odd = sorted + (~left & 1) * room + (left + 1) / 2;
        for (; column + 2 * WIDE <= width; column += 2 * WIDE) {
            wide a = wide_load(even + column / 2), b = wide_load(odd + column / 2);
            wide_store(row + column, wide_merged_low(a, b));
            wide_store(row + column + WIDE, wide_merged_high(a, b));
        }
    }
    for (int64_t remainder = 0; remainder < stride; remainder++) {
        int64_t place = left + column + remainder;
        const float *from = sorted + place % stride * room + place / stride;
        for (int64_t c = column + remainder; c < width; c += stride) row[c] = *from++;
    }
}

static void run_strip(const transposed_convolution *t, const strip *s, const float *bias, float *y) {
    int64_t row_floats = t->stride[COLUMN] * s->by.room, map_floats = s->by.rows * row_floats;
    for (int64_t map = 0; map < s->maps; map++) {
        wide start = wide_of(bias ? bias[map] : 0);
        for (int64_t i = 0; i < map_floats; i += WIDE) row_store(s->sorted + map * map_floats, i, map_floats, start);
    }
    for (int64_t tap = 0; tap < t->kernel[PLANE]; tap++) {
        int64_t reached = s->plane + t->pad[PLANE] - tap * t->dilation[PLANE], plane = reached / t->stride[PLANE];
        if (reached < 0 || reached % t->stride[PLANE] || plane >= t->size[PLANE]) continue;
        for (int64_t tap_row = 0; tap_row < t->kernel[ROW]; tap_row++) add_taps(t, s, plane, tap, tap_row);
    }
    int64_t width = t->out_size[COLUMN], out_image = t->out_size[PLANE] * t->out_size[ROW] * width;
    for (int64_t map = 0; map < s->maps; map++)
        for (int64_t row = s->rows.first; row < s->rows.last; row++)
            write_row(s->sorted + map * map_floats + (row - s->rows.first) * row_floats, s->by.room, t->stride[COLUMN],
                      t->pad[COLUMN], width, y + map * out_image + (s->plane * t->out_size[ROW] + row) * width);
}

SHARED_KERNEL(aegis_transposed_convolution, transposed_convolution) {
    const transposed_convolution *t = arguments;
    strip_cut by = cut_of(t);
    int64_t image = t->size[PLANE] * t->size[ROW] * t->size[COLUMN];
    int64_t out_image = t->out_size[PLANE] * t->out_size[ROW] * t->out_size[COLUMN];
    int64_t blocks = ceil_divide(t->maps, by.maps), strips = ceil_divide(t->out_size[ROW], by.rows);
    float *own = t->workspace + self.thread * worker_floats(t, by);
    range mine = part_of(self, t->images * t->groups * blocks * t->out_size[PLANE] * strips);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t first_row = unit % strips * by.rows, plane = unit / strips % t->out_size[PLANE];
        int64_t block = unit / strips / t->out_size[PLANE], first_map = block % blocks * by.maps;
        int64_t pair = block / blocks, group = pair % t->groups, channel = group * t->maps + first_map;
        strip s = {t->x + pair * t->depth * image,
                   t->weights + group * t->weight_group + first_map * t->weight_map,
                   own, own + sorted_floats(t, by), plane, smaller(by.maps, t->maps - first_map),
                   {first_row, smaller(first_row + by.rows, t->out_size[ROW])}, by};
        run_strip(t, &s, t->bias ? t->bias + channel : NULL,
                  t->y + (pair * t->maps + first_map) * out_image);
    }
}
