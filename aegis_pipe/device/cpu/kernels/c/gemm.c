/* Matrix products: Y[i] = scale * A[i] B[i] + addend_scale * addend, for a batch of i.
 *
 * B is in panels (see tile.h): packed once at load if it is constant, else packed here, once for
 * each matrix of the batch, into the planned workspace.
 *
 *     for each block of rows of A
 *       for each panel of B
 *         for each chunk of the depth:  what is met of A and the panel stays in the second-level cache
 *           for each tile of the block's rows:  ROWS x PANEL sums, put aside between chunks
 *
 * Workers share the pairs of block and panel.
 */
#include "step.h"
#include "tile.h"

typedef struct {
    const float *a, *b; /* b: panels, or a plain matrix */
    float *y, *workspace; /* of each worker: sums put aside, then a packed B */
    const int64_t *a_offsets, *b_offsets; /* in floats, one a matrix of the batch */
    int64_t batch, rows, columns, depth;
    int64_t a_row, a_step; /* strides of A: between rows, along the depth */
    int64_t b_step, b_column; /* strides of a plain B: along the depth, between columns */
    int64_t b_is_plain;
    epilogue end;
} gemm;

/* Floats of A that a block meets in one chunk, and the longest chunk. */
enum { BLOCK_FLOATS = 64 << 10, CHUNK = 512 };

/* How A is cut. Rows that fit into a single tile meet every panel once: nothing is worth keeping. */
typedef struct { int64_t block, chunk; } cut;

static cut cut_of(int64_t rows, int64_t depth) {
    int64_t tile = even_tile(rows), chunk = larger(1, depth);
    if (rows > tile) chunk = ceil_divide(chunk, ceil_divide(chunk, CHUNK));
    int64_t most = larger(1, BLOCK_FLOATS / (chunk * tile)) * tile;
    int64_t tiles = ceil_divide(ceil_divide(rows, ceil_divide(rows, most)), tile);
    return (cut){larger(1, tiles) * tile, chunk};
}

/* Floats of the sums that a worker puts aside. */
static int64_t kept_floats(cut by, int64_t depth) { return by.chunk < depth ? by.block * PANEL : 0; }

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

/* A stretch of the depth. */
typedef struct { int64_t first, last; int begins, ends; } passage;

INLINE void gemm_tile(const gemm *g, const float *a, passage k, const float *panel, const float *ahead, float *kept,
                      float *y, int64_t row, int64_t column, int rows, int vectors) {
    const float *a_rows[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a_rows[r] = a + (row + r) * g->a_row + k.first * g->a_step;
    vec sums[ROWS][VECTORS];
    if (k.begins) tile_clear(sums, rows, vectors);
    else tile_load(sums, rows, vectors, kept);
    tile_accumulate(sums, rows, vectors, a_rows, g->a_step, panel, PANEL, k.last - k.first, ahead);
    if (k.ends) tile_store(&g->end, sums, rows, vectors, y, g->columns, row, column, g->columns - column);
    else tile_keep(sums, rows, vectors, kept);
}

/* A block of rows by one panel. */
static void multiply(const gemm *g, const float *a, const float *panel, float *y, range rows, cut by,
                     int64_t column, float *kept) {
    int64_t vectors = ceil_divide(smaller(PANEL, g->columns - column), LANES);
    int64_t tile = even_tile(rows.last - rows.first);
    for (int64_t first = 0; first < g->depth; first += by.chunk) {
        passage k = {first, smaller(first + by.chunk, g->depth), !first, first + by.chunk >= g->depth};
        float *aside = kept;
        for (int64_t row = rows.first; row < rows.last; row += tile, aside += tile * PANEL) {
            const float *ahead = panel_ahead(panel, panel + by.chunk * PANEL, (row - rows.first) / tile);
            TILE_DISPATCH(gemm_tile, smaller(tile, rows.last - row), vectors, g, a, k, panel, ahead, aside, y, row,
                          column)
        }
        panel += by.chunk * PANEL;
    }
}

/* Floats of one worker's workspace. */
EXPORT int64_t aegis_gemm_workspace(int64_t rows, int64_t columns, int64_t depth, int64_t b_is_plain) {
    return kept_floats(cut_of(rows, depth), depth) + (b_is_plain ? ceil_divide(columns, PANEL) * PANEL * depth : 0);
}

SHARED_KERNEL(aegis_gemm, gemm) {
    const gemm *g = arguments;
    cut by = cut_of(g->rows, g->depth);
    int64_t blocks = ceil_divide(g->rows, by.block), panels = ceil_divide(g->columns, PANEL), packed = -1;
    float *kept = g->workspace + self.thread * aegis_gemm_workspace(g->rows, g->columns, g->depth, g->b_is_plain);
    float *own = kept + kept_floats(by, g->depth);
    range mine = part_of(self, g->batch * blocks * panels);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t i = unit / panels / blocks, first = unit / panels % blocks * by.block, column = unit % panels * PANEL;
        const float *b = g->b + g->b_offsets[i];
        if (g->b_is_plain && g->b_offsets[i] != packed) {
            packed = g->b_offsets[i];
            pack_panels(b, g->b_step, g->b_column, g->depth, g->columns, own);
        }
        multiply(g, g->a + g->a_offsets[i], (g->b_is_plain ? own : b) + column * g->depth,
                 g->y + i * g->rows * g->columns, (range){first, smaller(first + by.block, g->rows)}, by, column, kept);
    }
}

/* For load time: a constant B into panels. */
EXPORT void aegis_pack_panels(const float *b, int64_t b_step, int64_t b_column, int64_t depth,
                              int64_t columns, float *panels) {
    pack_panels(b, b_step, b_column, depth, columns, panels);
}
EXPORT int64_t aegis_panel_columns(void) { return PANEL; }
EXPORT int64_t aegis_tile_rows(void) { return ROWS; }
