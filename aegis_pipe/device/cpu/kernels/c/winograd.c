/* 3x3 convolutions of stride 1 by Winograd's minimal filtering, images with channels last.
 *
 * An m x m tile of results needs (m + 2)^2 multiplications for each pair of channels instead of 9 m^2:
 * 2.25 times fewer for m = 2, 4 times for m = 4 (S. Winograd 1980; A. Lavin and S. Gray 2016,
 * interpolation points 0, 1, -1, and for m = 4 also 2 and -2).
 *
 *     for each block of tiles (workers share the tiles)
 *       V[point][tile][depth] = B^T d B            of each tile's (m + 2)^2 input pixels
 *       for each panel of output channels
 *         for each point:  M[point][tile][PANEL] = V[point] U[point]
 *         Y = A^T M A, and what is fused to it
 *
 * U = G w G^T is computed at load: [maps / PANEL][point][depth][PANEL]. Sums run over the depth in
 * ascending order, and each tile is one worker's: bits depend on nothing else.
 */
#include "step.h"
#include "tile.h"

typedef struct {
    const float *x, *u, *bias, *residual; /* the last two may be NULL */
    float *y, *workspace;
    int64_t batch, height, width, out_height, out_width, depth, maps, pad_top, pad_left;
    int64_t m; /* 2 or 4 */
    int64_t block; /* tiles */
    int64_t workspace_floats; /* of one worker: zeros[depth rounded up], V, M */
    float low, high;
    int64_t clips;
} winograd;

enum { FEW = 4 }; /* register tiles a worker */
enum { POINTS_MAX = 6, SKEW = 16 }; /* SKEW: planes of V and M shall not meet in the same cache set */

INLINE void into_points(const wide d[POINTS_MAX], wide t[POINTS_MAX], int m) {
    if (m == 2) {
        t[0] = d[0] - d[2];
        t[1] = d[1] + d[2];
        t[2] = d[2] - d[1];
        t[3] = d[1] - d[3];
        return;
    }
    wide even = multiply_add(wide_of(-4), d[2], d[4]), odd = multiply_add(wide_of(-4), d[1], d[3]);
    wide narrow = d[4] - d[2], double_odd = 2 * (d[3] - d[1]);
    t[0] = multiply_add(wide_of(4), d[0], multiply_add(wide_of(-5), d[2], d[4]));
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = narrow + double_odd;
    t[4] = narrow - double_odd;
    t[5] = multiply_add(wide_of(4), d[1], multiply_add(wide_of(-5), d[3], d[5]));
}

INLINE void out_of_points(const wide p[POINTS_MAX], wide y[4], int m) {
    wide sum = p[1] + p[2], difference = p[1] - p[2];
    if (m == 2) {
        y[0] = p[0] + sum;
        y[1] = difference - p[3];
        return;
    }
    wide far_sum = p[3] + p[4], far_difference = p[3] - p[4];
    y[0] = p[0] + sum + far_sum;
    y[1] = multiply_add(wide_of(2), far_difference, difference);
    y[2] = multiply_add(wide_of(4), far_sum, sum);
    y[3] = multiply_add(wide_of(8), far_difference, difference) + p[5];
}

/* Where a tile lies: image, first output row and column. */
typedef struct { int64_t image, row, column; } place;

INLINE place place_of(const winograd *c, int64_t tile) {
    int64_t across = ceil_divide(c->out_width, c->m), down = ceil_divide(c->out_height, c->m);
    return (place){tile / across / down, tile / across % down * c->m, tile % across * c->m};
}

/* V of one tile; `v` points at its row in the first plane. */
INLINE void transform_input(const winograd *c, int64_t tile, const float *zeros, float *v, int64_t plane, int m) {
    const float *pixels[POINTS_MAX][POINTS_MAX];
    place at = place_of(c, tile);
    for (int i = 0; i < m + 2; i++)
        for (int j = 0; j < m + 2; j++) {
            int64_t row = at.row + i - c->pad_top, column = at.column + j - c->pad_left;
            int is_inside = row >= 0 && row < c->height && column >= 0 && column < c->width;
            pixels[i][j] = is_inside ? c->x + ((at.image * c->height + row) * c->width + column) * c->depth : zeros;
        }
    for (int64_t k = 0; k < c->depth; k += WIDE) {
        wide half[POINTS_MAX][POINTS_MAX];
        for (int j = 0; j < m + 2; j++) {
            wide column[POINTS_MAX], points[POINTS_MAX];
            UNROLL for (int i = 0; i < m + 2; i++) column[i] = row_load(pixels[i][j], k, c->depth);
            into_points(column, points, m);
            UNROLL for (int i = 0; i < m + 2; i++) half[i][j] = points[i];
        }
        for (int i = 0; i < m + 2; i++) {
            wide points[POINTS_MAX];
            into_points(half[i], points, m);
            UNROLL for (int j = 0; j < m + 2; j++)
                row_store(v + (i * (m + 2) + j) * plane, k, c->depth, points[j]);
        }
    }
}

/* Up to PANEL channels from `map` on of one tile's results; `sums` is its row in the first plane of M. */
INLINE void transform_output(const winograd *c, int64_t tile, int64_t map, const float *sums, int64_t plane, int m) {
    place at = place_of(c, tile);
    int64_t rows = smaller(m, c->out_height - at.row), columns = smaller(m, c->out_width - at.column);
    int64_t last = smaller(map + PANEL, c->maps);
    for (int64_t first = map; first < last; first += WIDE, sums += WIDE) {
        wide half[4][POINTS_MAX];
        for (int j = 0; j < m + 2; j++) {
            wide points[POINTS_MAX], column[4];
            UNROLL for (int i = 0; i < m + 2; i++) points[i] = wide_load(sums + (i * (m + 2) + j) * plane);
            out_of_points(points, column, m);
            UNROLL for (int i = 0; i < m; i++) half[i][j] = column[i];
        }
        /* A panel may be narrower than 16 channels: what is beyond it is another's. */
        wide bias = c->bias ? row_load(c->bias, first, last) : wide_of(0);
        for (int64_t i = 0; i < rows; i++) {
            wide results[4];
            out_of_points(half[i], results, m);
            int64_t line = ((at.image * c->out_height + at.row + i) * c->out_width + at.column) * c->maps;
            for (int64_t j = 0; j < columns; j++) {
                wide sum = results[j] + bias;
                if (c->residual) sum += row_load(c->residual + line + j * c->maps, first, last);
                if (c->clips) sum = wide_at_most(wide_at_least(sum, wide_of(c->low)), wide_of(c->high));
                row_store(c->y + line + j * c->maps, first, last, sum);
            }
        }
    }
}

INLINE void product_tile(const float *v, const float *panel, const float *ahead, float *sums_to, int64_t depth,
                         int64_t row, int rows, int vectors) {
    const float *a[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a[r] = v + (row + r) * depth;
    vec sums[ROWS][VECTORS];
    tile_clear(sums, rows, vectors);
    tile_accumulate(sums, rows, vectors, a, 1, panel, PANEL, depth, ahead);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int s = 0; s < vectors; s++) vec_store(sums_to + (row + r) * PANEL + s * LANES, sums[r][s]);
}

INLINE void convolve(const winograd *original, worker self, int m) {
    const winograd copy = *original, *c = &copy;
    int64_t tiles = c->batch * ceil_divide(c->out_height, m) * ceil_divide(c->out_width, m);
    int64_t points = (m + 2) * (m + 2), panels = ceil_divide(c->maps, PANEL);
    int64_t v_plane = c->block * c->depth + SKEW, m_plane = c->block * PANEL + SKEW;
    float *zeros = c->workspace + self.thread * c->workspace_floats;
    float *v = zeros + ceil_divide(c->depth, WIDE) * WIDE, *sums = v + points * v_plane;
    for (int64_t i = 0; i < c->depth; i++) zeros[i] = 0;
    /* Of many tiles a worker takes whole register tiles; few are shared one by one. */
    int64_t group = tiles < FEW * ROWS * self.count ? 1 : ROWS;
    range groups = part_of(self, ceil_divide(tiles, group));
    int64_t end = smaller(tiles, groups.last * group);
    for (int64_t first = groups.first * group; first < end; first += c->block) {
        int64_t count = smaller(c->block, end - first), tile_rows = even_tile(count);
        for (int64_t t = 0; t < count; t++) transform_input(c, first + t, zeros, v + t * c->depth, v_plane, m);
        for (int64_t p = 0; p < panels; p++) {
            const float *u = c->u + p * points * c->depth * PANEL;
            int64_t vectors = ceil_divide(smaller(PANEL, c->maps - p * PANEL), LANES);
            for (int64_t point = 0; point < points; point++, u += c->depth * PANEL)
                for (int64_t row = 0; row < count; row += tile_rows) {
                    const float *ahead = panel_ahead(u, u + c->depth * PANEL, row / tile_rows);
                    TILE_DISPATCH(product_tile, smaller(tile_rows, count - row), vectors, v + point * v_plane, u,
                                  ahead, sums + point * m_plane, c->depth, row)
                }
            for (int64_t t = 0; t < count; t++)
                transform_output(c, first + t, p * PANEL, sums + t * PANEL, m_plane, m);
        }
    }
}

SHARED_KERNEL(aegis_conv_winograd, winograd) {
    const winograd *c = arguments;
    if (c->m == 2) convolve(c, self, 2);
    else convolve(c, self, 4);
}

/* Floats of a worker's workspace. */
EXPORT int64_t aegis_winograd_workspace(int64_t m, int64_t depth, int64_t block) {
    int64_t points = (m + 2) * (m + 2);
    return ceil_divide(depth, WIDE) * WIDE +
           ceil_divide(points * (block * (depth + PANEL) + 2 * SKEW), WIDE) * WIDE;
}

typedef double weights_row __attribute__((vector_size(LANES * 8)));

/* x / divisor, correctly rounded, for a divisor of 3 times a power of two.

   A product with the reciprocal, put right by what it leaves over, has the bits of a division (Markstein
   1990): the reciprocal of 3 is rounded by a third of its last place only, so that the product is the
   quotient or next to it. A quotient that is exact (a zero keeps its sign) or not finite stays. */
INLINE weights_row over(weights_row x, double divisor) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    typedef int64_t masks __attribute__((vector_size(sizeof(weights_row))));
    weights_row reciprocal = (weights_row){} + 1 / divisor, quotient = x * reciprocal;
    weights_row left = __builtin_elementwise_fma(-quotient, (weights_row){} + divisor, x);
    weights_row right = __builtin_elementwise_fma(left, reciprocal, quotient);
    masks inexact = (left < 0) | (left > 0);
    return (weights_row)(((masks)right & inexact) | ((masks)quotient & ~inexact));
#else
    return x / divisor;
#endif
}

/* One row of G w, for 3 weights of as many maps as there are lanes. */
INLINE void weights_into_points(const weights_row w[3], weights_row g[POINTS_MAX], int64_t m) {
    if (m == 2) {
        g[0] = w[0], g[1] = (w[0] + w[1] + w[2]) / 2, g[2] = (w[0] - w[1] + w[2]) / 2, g[3] = w[2];
        return;
    }
    g[0] = w[0] / 4;
    g[1] = over(-(w[0] + w[1] + w[2]), 6);
    g[2] = over(-(w[0] - w[1] + w[2]), 6);
    g[3] = over(w[0], 24) + over(w[1], 12) + over(w[2], 6);
    g[4] = over(w[0], 24) - over(w[1], 12) + over(w[2], 6);
    g[5] = w[2];
}

/* For load time: weights [maps][depth][3][3] to U. */
EXPORT void aegis_pack_winograd(const float *w, int64_t maps, int64_t depth, int64_t m, float *u) {
    int64_t points = (m + 2) * (m + 2);
    for (int64_t first = 0; first < maps; first += PANEL, u += points * depth * PANEL)
        for (int64_t k = 0; k < depth; k++)
            for (int64_t c = 0; c < PANEL; c += LANES) {
                weights_row taps[9], rows[3][POINTS_MAX], point[POINTS_MAX];
                /* Through memory: a lane of a register takes several times as long to write. */
                float gathered[9][LANES] = {};
                for (int64_t lane = 0; lane < LANES && first + c + lane < maps; lane++)
                    for (int tap = 0; tap < 9; tap++)
                        gathered[tap][lane] = w[((first + c + lane) * depth + k) * 9 + tap];
                for (int tap = 0; tap < 9; tap++)
                    taps[tap] = __builtin_convertvector(vec_load(gathered[tap]), weights_row);
                for (int i = 0; i < 3; i++) weights_into_points(taps + i * 3, rows[i], m);
                for (int64_t j = 0; j < m + 2; j++) {
                    weights_row column[3] = {rows[0][j], rows[1][j], rows[2][j]};
                    weights_into_points(column, point, m);
                    for (int64_t i = 0; i < m + 2; i++)
                        vec_store(u + ((i * (m + 2) + j) * depth + k) * PANEL + c,
                                  __builtin_convertvector(point[i], vec));
                }
            }
}

/* For load time: weights [maps][depth][taps] of one group to [maps / tile][taps][depth][tile]. */
EXPORT void aegis_pack_taps(const float *w, int64_t maps, int64_t depth, int64_t taps, int64_t tile, float *to) {
    for (int64_t first = 0; first < maps; first += tile, to += taps * depth * tile) {
        int64_t count = smaller(tile, maps - first), window = depth * taps;
        /* A cache line of each map at a time: their distance is often one at which lines collide. */
        for (int64_t at = 0; at < window; at += WIDE) {
            float *line[WIDE];
            int64_t lines = smaller(WIDE, window - at);
            for (int64_t i = 0; i < lines; i++)
                line[i] = to + ((at + i) % taps * depth + (at + i) / taps) * tile;
            for (int64_t c = 0; c < tile; c++) {
                const float *from = w + (first + c) * window + at;
                for (int64_t i = 0; i < lines; i++) line[i][c] = c < count ? from[i] : 0;
            }
        }
    }
}
