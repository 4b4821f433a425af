/* Matrix products: Y[i] = f(scale * A[i] B[i] + addend_scale * addend), for a batch of i.
 *
 * B is in panels (see tile.h): packed once at load if it is constant, else packed here, once for
 * each matrix of the batch, into the planned workspace.
 *
 *     for each block of rows of A
 *       for each stretch of the depth:  the block's part of A may be copied together, chunk by chunk
 *         for each panel of B, for each chunk of the stretch:  its part stays in the first-level cache
 *           for each tile of the block's rows:  ROWS x PANEL sums, held between chunks
 *
 * (Goto and van de Geijn 2008.) That part stays in the second-level cache for all panels, and a panel's
 * sums for all chunks; between stretches they wait in Y. Copied, the rows of a tile are neighbours: in
 * A, and in Y, they lie whole rows apart, often all in the same set of the cache.
 * Workers share the pairs of block and panel.
 *
 * f, if there is one, is taken of a tile that has just been stored and lies in the first-level cache.
 */
#include "panels.h"
#include "step.h"

typedef struct {
    const float *a, *b; /* b: panels, or a plain matrix */
    float *y, *workspace; /* of each worker: a block's sums, a block of A, a packed B */
    const int64_t *a_offsets, *b_offsets; /* in floats, one a matrix of the batch */
    int64_t batch, rows, columns, depth;
    int64_t a_row, a_step; /* strides of A: between rows, along the depth */
    int64_t b_step, b_column; /* strides of a plain B: along the depth, between columns */
    int64_t b_is_plain;
    epilogue end;
    void (*function)(float *y, int64_t row, int64_t rows, int64_t columns, float p, float q); /* or NULL */
    float p, q; /* its parameters */
} gemm;

/* The longest chunk; floats that a block has of A in one stretch, at most; its rows, if there are so many. */
enum { CHUNK = PANEL < 64 ? 512 : 160, BLOCK_FLOATS = 256 << 10, BLOCK_ROWS = 240 };
/* With fewer panels it does not pay to copy A; nor to copy whole rows, unless they are a multiple of so
 * many floats apart: then those of a tile meet in the same sets of the first-level cache. */
enum { COPIES_FOR_PANELS = 3, CROWDED_ROW = 512 };

/* How A is cut. Rows that fit into a single tile meet every panel once: nothing is worth keeping. */
typedef struct { int64_t block, stretch, chunk; } cut;

static cut cut_of(int64_t rows, int64_t depth) {
    int64_t tile = even_tile(rows), chunk = larger(1, depth);
    if (rows > tile) chunk = ceil_divide(chunk, ceil_divide(chunk, CHUNK));
    int64_t chunks = larger(1, ceil_divide(depth, chunk));
    int64_t together = larger(1, BLOCK_FLOATS / (chunk * smaller(rows, BLOCK_ROWS)));
    together = ceil_divide(chunks, ceil_divide(chunks, together));
    int64_t most = larger(1, BLOCK_FLOATS / (chunk * together * tile)) * tile;
    int64_t tiles = ceil_divide(ceil_divide(rows, ceil_divide(rows, most)), tile);
    return (cut){larger(1, tiles) * tile, together * chunk, chunk};
}

/* Where things are in a worker's workspace, in floats. */
typedef struct { int64_t copied, packed, all; } places;

static places places_of(cut by, int64_t rows, int64_t columns, int64_t depth, int64_t b_is_plain) {
    int64_t panels = ceil_divide(columns, PANEL);
    int copies = rows > even_tile(rows) && panels >= COPIES_FOR_PANELS &&
                 (by.stretch < depth || depth % CROWDED_ROW == 0);
    places p = {.copied = by.chunk < depth ? by.block * PANEL : 0};
    p.packed = p.copied + (copies ? ceil_divide(by.block * by.stretch, WIDE) * WIDE : 0);
    p.all = p.packed + (b_is_plain ? panels * PANEL * depth : 0);
    return p;
}

/* A chunk of the depth: of a whole product and of a stretch it may be the first, or the last. */
typedef struct { int64_t first, last; int begins, ends, opens, closes; } passage;

/* The rows of A in a passage: those of the block follow each other `row` floats apart. */
typedef struct { const float *first; int64_t row, step; } operand;

INLINE void gemm_tile(const gemm *g, operand a, passage k, const float *panel, const float *ahead, float *held,
                      float *y, int64_t row, int64_t column, int rows, int vectors) {
    const float *a_rows[ROWS];
    UNROLL for (int r = 0; r < rows; r++) a_rows[r] = a.first + r * a.row;
    float *kept = y + row * g->columns + column;
    int64_t columns = g->columns - column;
    vec sums[ROWS][VECTORS];
    if (k.begins) tile_clear(sums, rows, vectors);
    else if (k.opens) tile_load(sums, rows, vectors, kept, g->columns, columns);
    else tile_load(sums, rows, vectors, held, PANEL, PANEL);
    tile_accumulate(sums, rows, vectors, a_rows, a.step, panel, PANEL, k.last - k.first, ahead);
    if (k.ends) tile_store(&g->end, sums, rows, vectors, y, g->columns, row, column, columns);
    else if (k.closes) tile_keep(sums, rows, vectors, kept, g->columns, columns);
    else tile_keep(sums, rows, vectors, held, PANEL, PANEL);
}

/* A block of rows by one panel, along a passage. */
static void multiply(const gemm *g, operand a, passage k, const float *panel, const float *next, float *held, float *y,
                     range rows, int64_t column) {
    int64_t vectors = ceil_divide(smaller(PANEL, g->columns - column), LANES);
    int64_t tile = even_tile(rows.last - rows.first), i = 0;
    for (int64_t row = rows.first; row < rows.last; row += tile, a.first += tile * a.row, held += tile * PANEL, i++) {
        const float *ahead = panel_ahead(panel, next, i);
        TILE_DISPATCH(gemm_tile, smaller(tile, rows.last - row), vectors, g, a, k, panel, ahead, held, y, row,
                      column)
        if (k.ends && g->function)
            g->function(y + row * g->columns + column, g->columns, smaller(tile, rows.last - row),
                        smaller(PANEL, g->columns - column), g->p, g->q);
    }
}

/* A block's rows of a stretch, chunk behind chunk. */
static void copy_together(const float *from, int64_t row, int64_t rows, int64_t length, int64_t chunk, float *to) {
    for (int64_t r = 0; r < rows; r++, from += row)
        for (int64_t first = 0, count; first < length; first += count) {
            count = smaller(chunk, length - first);
            copy_floats(to + first * rows + r * count, from + first, count);
        }
}

/* A block of rows by some panels; `copied` is NULL if there is no room to copy to. */
static void multiply_panels(const gemm *g, const float *a, const float *b, float *y, range rows, range panels, cut by,
                            float *held, float *copied) {
    int64_t panel_floats = g->depth * PANEL, count = rows.last - rows.first;
    int copies = copied && g->a_step == 1 && panels.last - panels.first >= COPIES_FOR_PANELS && count > ROWS;
    a += rows.first * g->a_row;
    for (int64_t start = 0; !start || start < g->depth; start += by.stretch) {
        int64_t end = smaller(start + by.stretch, g->depth);
        if (copies) copy_together(a + start, g->a_row, count, end - start, by.chunk, copied);
        for (int64_t p = panels.first; p < panels.last; p++) {
            const float *panel = b + p * panel_floats;
            const float *behind = p + 1 < panels.last ? panel + panel_floats + start * PANEL
                                  : end < g->depth    ? b + panels.first * panel_floats + end * PANEL
                                                      : b + panels.last * panel_floats;
            for (int64_t first = start; first == start || first < end; first += by.chunk) {
                int64_t last = smaller(first + by.chunk, end);
                operand part = {a + first * g->a_step, g->a_row, g->a_step};
                if (copies) part = (operand){copied + (first - start) * count, last - first, 1};
                passage k = {first, last, !first, last == g->depth, first == start, last == end};
                multiply(g, part, k, panel + first * PANEL, last < end ? panel + last * PANEL : behind, held, y, rows,
                         p * PANEL);
            }
        }
    }
}

/* Floats of one worker's workspace. */
EXPORT int64_t aegis_gemm_workspace(int64_t rows, int64_t columns, int64_t depth, int64_t b_is_plain) {
    return places_of(cut_of(rows, depth), rows, columns, depth, b_is_plain).all;
}

SHARED_KERNEL(aegis_gemm, gemm) {
    const gemm *g = arguments;
    cut by = cut_of(g->rows, g->depth);
    int64_t blocks = ceil_divide(g->rows, by.block), panels = ceil_divide(g->columns, PANEL), packed = -1;
    places p = places_of(by, g->rows, g->columns, g->depth, g->b_is_plain);
    float *held = g->workspace + self.thread * p.all, *own = held + p.packed;
    range mine = part_of(self, g->batch * blocks * panels);
    for (int64_t unit = mine.first, next; unit < mine.last; unit = next) {
        int64_t i = unit / panels / blocks, first = unit / panels % blocks * by.block, panel = unit % panels;
        next = smaller(mine.last, unit + panels - panel);
        const float *b = g->b + g->b_offsets[i];
        if (g->b_is_plain && g->b_offsets[i] != packed) {
            packed = g->b_offsets[i];
            pack_panels(b, g->b_step, g->b_column, g->depth, g->columns, own);
        }
        multiply_panels(g, g->a + g->a_offsets[i], g->b_is_plain ? own : b, g->y + i * g->rows * g->columns,
                       (range){first, smaller(first + by.block, g->rows)}, (range){panel, panel + next - unit}, by,
                       held, p.copied < p.packed ? held + p.copied : NULL);
    }
}

/* For load time: a constant B into panels. */
EXPORT void aegis_pack_panels(const float *b, int64_t b_step, int64_t b_column, int64_t depth,
                              int64_t columns, float *panels) {
    pack_panels(b, b_step, b_column, depth, columns, panels);
}
EXPORT int64_t aegis_panel_columns(void) { return PANEL; }
EXPORT int64_t aegis_tile_rows(void) { return ROWS; }
