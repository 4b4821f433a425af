/* Matrix products: Y[i] = scale * A[i] B[i] + addend_scale * addend, for a batch of i.
 *
 * B is in panels (see tile.h): packed once at load if it is constant, else packed here, once for
 * each matrix of the batch, into the planned workspace.
 *
 *     for each block of rows of A (about 128 KiB: stays in the second-level cache)
 *       for each panel of B (depth * PANEL floats, read once a block)
 *         for each tile of the block's rows:  ROWS x PANEL results
 *
 * Workers share the pairs of block and panel.
 */
#include "step.h"
#include "tile.h"

typedef struct {
    const float *a, *b; /* b: panels, or a plain matrix if `workspace` is there */
    float *y, *workspace;
    const int64_t *a_offsets, *b_offsets; /* in floats, one a matrix of the batch */
    int64_t batch, rows, columns, depth;
    int64_t a_row, a_step; /* strides of A: between rows, along the depth */
    int64_t b_step, b_column; /* strides of a plain B: along the depth, between columns */
    epilogue end;
} gemm;

enum { BLOCK_FLOATS = 32 << 10 };

/* Packs a plain B into panels [columns / PANEL][depth][PANEL]. */
static void pack_panels(const float *b, int64_t b_step, int64_t b_column, int64_t depth, int64_t columns,
                        float *panels) {
    for (int64_t first = 0; first < columns; first += PANEL, b += PANEL * b_column) {
        int64_t count = smaller(PANEL, columns - first);
        if (b_column == 1 && count == PANEL) {
            for (int64_t k = 0; k < depth; k++, panels += PANEL)
                UNROLL for (int v = 0; v < VECTORS; v++)
                    vec_store(panels + v * LANES, vec_load(b + k * b_step + v * LANES));
        } else {
            /* A cache line of depths at a time: if B is transposed, they are neighbours in memory. */
            for (int64_t k = 0; k < depth; k += WIDE) {
                int64_t depths = smaller(WIDE, depth - k);
                for (int64_t c = 0; c < PANEL; c++)
                    for (int64_t i = 0; i < depths; i++)
                        panels[(k + i) * PANEL + c] = c < count ? b[(k + i) * b_step + c * b_column] : 0;
            }
            panels += depth * PANEL;
        }
    }
}

INLINE void gemm_tile(const gemm *g, const float *a, const float *panel, const float *ahead, float *y,
                      int64_t row, int64_t column, int rows, int vectors) {
    const float *a_rows[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a_rows[r] = a + (row + r) * g->a_row;
    vec sums[ROWS][VECTORS];
    tile_clear(sums, rows, vectors);
    tile_accumulate(sums, rows, vectors, a_rows, g->a_step, panel, PANEL, g->depth, ahead);
    tile_store(&g->end, sums, rows, vectors, y, g->columns, row, column, g->columns - column);
}

/* A block of rows by one panel. */
static void multiply(const gemm *g, const float *a, const float *panels, float *y, range rows, int64_t tile,
                     int64_t column) {
    const float *panel = panels + column * g->depth;
    int64_t vectors = ceil_divide(smaller(PANEL, g->columns - column), LANES);
    for (int64_t row = rows.first; row < rows.last; row += tile) {
        const float *ahead = panel_ahead(panel, panel + g->depth * PANEL, (row - rows.first) / tile);
        TILE_DISPATCH(gemm_tile, smaller(tile, rows.last - row), vectors, g, a, panel, ahead, y, row, column)
    }
}

SHARED_KERNEL(aegis_gemm, gemm) {
    const gemm *g = arguments;
    int64_t tile = even_tile(g->rows), packed = -1;
    int64_t block = larger(1, BLOCK_FLOATS / larger(1, g->depth * tile)) * tile;
    int64_t blocks = ceil_divide(g->rows, block), panels = ceil_divide(g->columns, PANEL);
    float *own = g->workspace ? g->workspace + self.index * panels * PANEL * g->depth : NULL;
    range mine = part_of(self, g->batch * blocks * panels);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t i = unit / panels / blocks, first = unit / panels % blocks * block;
        const float *b = g->b + g->b_offsets[i];
        if (own && g->b_offsets[i] != packed) {
            packed = g->b_offsets[i];
            pack_panels(b, g->b_step, g->b_column, g->depth, g->columns, own);
        }
        multiply(g, g->a + g->a_offsets[i], own ? own : b, g->y + i * g->rows * g->columns,
                 (range){first, smaller(first + block, g->rows)}, tile, unit % panels * PANEL);
    }
}

/* For load time: a constant B into panels. */
EXPORT void aegis_pack_panels(const float *b, int64_t b_step, int64_t b_column, int64_t depth,
                              int64_t columns, float *panels) {
    pack_panels(b, b_step, b_column, depth, columns, panels);
}
EXPORT int64_t aegis_panel_columns(void) { return PANEL; }
EXPORT int64_t aegis_tile_rows(void) { return ROWS; }
