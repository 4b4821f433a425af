/* Matrix products: Y[i] = f(scale * A[i] B[i] + addend_scale * addend), for a batch of i.
 *
 * B is in panels (see tile.h): packed once at load if it is constant, else packed here, once for
 * each matrix of the batch, into the planned workspace.
 *
 *     for each block of rows of A, and each group of panels of B
 *       for each chunk of the depth:  the block's part of A is copied together, row by row
 *         for each panel of the group:  its part of the chunk stays in the first-level cache
 *           for each tile of the block's rows:  ROWS x PANEL sums, kept in Y between chunks
 *
 * (Goto and van de Geijn 2008.) Copied, the rows of a tile are neighbours: in A they lie whole rows
 * apart, often all in the same set of the cache. Workers share the pairs of block and panel.
 *
 * f, if there is one, is taken of a tile that has just been stored and lies in the first-level cache.
 */
#include "panels.h"
#include "step.h"

typedef struct {
    const float *a, *b; /* b: panels, or a plain matrix */
    float *y, *workspace; /* of each worker: a block of A, then a packed B */
    const int64_t *a_offsets, *b_offsets; /* in floats, one a matrix of the batch */
    int64_t batch, rows, columns, depth;
    int64_t a_row, a_step; /* strides of A: between rows, along the depth */
    int64_t b_step, b_column; /* strides of a plain B: along the depth, between columns */
    int64_t b_is_plain;
    epilogue end;
    void (*function)(float *y, int64_t row, int64_t rows, int64_t columns, float p, float q); /* or NULL */
    float p, q; /* its parameters */
} gemm;

/* The longest chunk; floats that a block has of A in one chunk, and of Y in one group, at most. */
enum { CHUNK = PANEL < 64 ? 512 : 160, BLOCK_FLOATS = 64 << 10, GROUP_FLOATS = 128 << 10 };
/* With fewer panels it does not pay to copy A. */
enum { COPIES_FOR_PANELS = 3 };

/* How A is cut. Rows that fit into a single tile meet every panel once: nothing is worth keeping. */
typedef struct { int64_t block, chunk; } cut;

static cut cut_of(int64_t rows, int64_t depth) {
    int64_t tile = even_tile(rows), chunk = larger(1, depth);
    if (rows > tile) chunk = ceil_divide(chunk, ceil_divide(chunk, CHUNK));
    int64_t most = larger(1, BLOCK_FLOATS / (chunk * tile)) * tile;
    int64_t tiles = ceil_divide(ceil_divide(rows, ceil_divide(rows, most)), tile);
    return (cut){larger(1, tiles) * tile, chunk};
}

/* Floats of the part of A that a worker copies together. */
static int64_t copied_floats(cut by, int64_t rows, int64_t columns) {
    return rows > even_tile(rows) && columns > (COPIES_FOR_PANELS - 1) * PANEL ? by.block * by.chunk : 0;
}

/* A stretch of the depth. */
typedef struct { int64_t first, last; int begins, ends; } passage;

/* The rows of A in a passage: those of the block follow each other `row` floats apart. */
typedef struct { const float *first; int64_t row, step; } operand;

INLINE void gemm_tile(const gemm *g, operand a, passage k, const float *panel, const float *ahead, float *y,
                      int64_t row, int64_t column, int rows, int vectors) {
    const float *a_rows[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a_rows[r] = a.first + r * a.row;
    float *kept = y + row * g->columns + column;
    vec sums[ROWS][VECTORS];
    if (k.begins) tile_clear(sums, rows, vectors);
    else tile_load(sums, rows, vectors, kept, g->columns, g->columns - column);
    tile_accumulate(sums, rows, vectors, a_rows, a.step, panel, PANEL, k.last - k.first, ahead);
    if (k.ends) tile_store(&g->end, sums, rows, vectors, y, g->columns, row, column, g->columns - column);
    else tile_keep(sums, rows, vectors, kept, g->columns, g->columns - column);
}

/* A block of rows by one panel, along a passage. */
static void multiply(const gemm *g, operand a, passage k, const float *panel, const float *next, float *y, range rows,
                     int64_t column) {
    int64_t vectors = ceil_divide(smaller(PANEL, g->columns - column), LANES);
    int64_t tile = even_tile(rows.last - rows.first), i = 0;
    for (int64_t row = rows.first; row < rows.last; row += tile, a.first += tile * a.row, i++) {
        const float *ahead = panel_ahead(panel, next, i);
        TILE_DISPATCH(gemm_tile, smaller(tile, rows.last - row), vectors, g, a, k, panel, ahead, y, row, column)
        if (k.ends && g->function)
            g->function(y + row * g->columns + column, g->columns, smaller(tile, rows.last - row),
                        smaller(PANEL, g->columns - column), g->p, g->q);
    }
}

/* A block of rows by a group of panels. */
static void multiply_group(const gemm *g, const float *a, const float *b, float *y, range rows, range panels, cut by,
                           float *copied) {
    int64_t panel_floats = g->depth * PANEL;
    int copies = g->a_step == 1 && panels.last - panels.first >= COPIES_FOR_PANELS && rows.last - rows.first > ROWS;
    for (int64_t first = 0; !first || first < g->depth; first += by.chunk) {
        passage k = {first, smaller(first + by.chunk, g->depth), !first, first + by.chunk >= g->depth};
        operand part = {a + rows.first * g->a_row + first * g->a_step, g->a_row, g->a_step};
        if (copies) {
            for (int64_t r = 0; r < rows.last - rows.first; r++)
                copy_floats(copied + r * by.chunk, part.first + r * part.row, k.last - k.first);
            part = (operand){copied, by.chunk, 1};
        }
        for (int64_t p = panels.first; p < panels.last; p++) {
            const float *panel = b + p * panel_floats + first * PANEL;
            const float *next = p + 1 < panels.last ? panel + panel_floats
                                : k.ends            ? b + panels.last * panel_floats
                                                    : b + panels.first * panel_floats + k.last * PANEL;
            multiply(g, part, k, panel, next, y, rows, p * PANEL);
        }
    }
}

/* Floats of one worker's workspace. */
EXPORT int64_t aegis_gemm_workspace(int64_t rows, int64_t columns, int64_t depth, int64_t b_is_plain) {
    return copied_floats(cut_of(rows, depth), rows, columns) +
           (b_is_plain ? ceil_divide(columns, PANEL) * PANEL * depth : 0);
}

SHARED_KERNEL(aegis_gemm, gemm) {
    const gemm *g = arguments;
    cut by = cut_of(g->rows, g->depth);
    int64_t blocks = ceil_divide(g->rows, by.block), panels = ceil_divide(g->columns, PANEL), packed = -1;
    int64_t group = larger(1, GROUP_FLOATS / (by.block * PANEL));
    float *copied = g->workspace + self.thread * aegis_gemm_workspace(g->rows, g->columns, g->depth, g->b_is_plain);
    float *own = copied + copied_floats(by, g->rows, g->columns);
    range mine = part_of(self, g->batch * blocks * panels);
    for (int64_t unit = mine.first, next; unit < mine.last; unit = next) {
        int64_t i = unit / panels / blocks, first = unit / panels % blocks * by.block, panel = unit % panels;
        next = smaller(mine.last, unit + smaller(group, panels - panel));
        const float *b = g->b + g->b_offsets[i];
        if (g->b_is_plain && g->b_offsets[i] != packed) {
            packed = g->b_offsets[i];
            pack_panels(b, g->b_step, g->b_column, g->depth, g->columns, own);
        }
        multiply_group(g, g->a + g->a_offsets[i], g->b_is_plain ? own : b, g->y + i * g->rows * g->columns,
                       (range){first, smaller(first + by.block, g->rows)}, (range){panel, panel + next - unit}, by,
                       copied);
    }
}

/* For load time: a constant B into panels. */
EXPORT void aegis_pack_panels(const float *b, int64_t b_step, int64_t b_column, int64_t depth,
                              int64_t columns, float *panels) {
    pack_panels(b, b_step, b_column, depth, columns, panels);
}
EXPORT int64_t aegis_panel_columns(void) { return PANEL; }
EXPORT int64_t aegis_tile_rows(void) { return ROWS; }
