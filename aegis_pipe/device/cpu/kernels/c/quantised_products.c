/* Products of quantised matrices: Y[i] = A[i] B[i] of bytes, then rescaled (byte_results.h).
 *
 * A is bytes, or floats that are quantised over their own range on the way in. B is in panels,
 * packed once at load if it is constant, else here, once for each matrix of the batch.
 *
 *     for each block of up to 32 rows of A
 *       its rows are made ready: unsigned, padded, their sums taken where they count
 *       for each pair of panels of B:  a block of sums;  for each row: results
 */
#include "byte_images.h"
#include "byte_products.h"
#include "byte_results.h"
#include "quantise.h"
#include "step.h"

typedef struct {
    const void *a;
    const uint8_t *b; /* panels, or a plain matrix if `b_is_plain` */
    void *y;
    uint8_t *workspace;
    const int64_t *a_offsets, *b_offsets; /* elements of A, bytes of B; one a matrix of the batch */
    int64_t batch, rows, columns, depth;
    int64_t b_step, b_column;             /* strides of a plain B */
    int64_t b_is_plain, a_is_float;
    int64_t a_bytes;                      /* of all matrices of A */
    byte_scales scales;
} byte_gemm;

typedef struct {
    uint8_t *rows, *results, *panels;
} working;

/* The panels come last: only a plain B has them. */
static working carve(const byte_gemm *g, uint8_t *workspace) {
    working w;
    w.rows = workspace;
    w.results = w.rows + BYTE_ROWS * padded_byte_depth(g->depth);
    w.panels = w.results + byte_results_size(g->columns);
    return w;
}

EXPORT int64_t aegis_byte_gemm_workspace(int64_t depth, int64_t columns, int64_t b_is_plain) {
    int64_t bytes = BYTE_ROWS * padded_byte_depth(depth) + byte_results_size(columns);
    if (b_is_plain) bytes += byte_panels_size(depth, columns);
    return ceil_divide(bytes, 64) * 64;
}

/* Makes the rows from `first` on ready to be multiplied. Unsigned bytes are, where they lie: the
 * padding of a row is the next one's beginning, and what is multiplied with it is zero. It must not
 * lie behind the end of A, though. */
static void ready_rows(const byte_gemm *g, const void *a, byte_grid grid, int64_t first, uint8_t *buffer,
                       byte_block *block) {
    int64_t padded = block->padded_depth, count = block->rows;
    const uint8_t *bytes = (const uint8_t *)a + first * g->depth, *end = (const uint8_t *)g->a + g->a_bytes;
    int is_unsigned = !g->a_is_float && !g->scales.a_is_signed;
    block->a = bytes;
    block->a_row = g->depth;
    if (is_unsigned && (count - 1) * g->depth + padded <= end - bytes) return;
    for (int64_t r = 0; r < count; r++) {
        uint8_t *to = buffer + r * padded;
        int64_t from = (first + r) * g->depth;
        if (g->a_is_float)
            quantise_row((const float *)a + from, g->depth, grid.scale, range_of_levels(grid.zero, 0, 255), to);
        else copy_moved((const uint8_t *)a + from, g->depth, g->scales.a_is_signed ? 0x80 : 0, to);
        __builtin_memset(to + g->depth, 0, (size_t)(padded - g->depth));
    }
    block->a = buffer;
    block->a_row = padded;
}

/* Columns [first, last) of a block of rows. */
static void multiply_columns(const byte_gemm *g, byte_block *block, const byte_results *r, const int8_t *panels,
                             int64_t first, int64_t last, char *y, int64_t y_row) {
    int32_t row_sums[BYTE_ROWS] = {0};
    if (r->has_zeros)
        for (int64_t i = 0; i < block->rows; i++) row_sums[i] = byte_sum(block->a + i * block->a_row, g->depth);
    for (int64_t column = first; column < last; column += BYTE_BLOCK_COLUMNS) {
        int64_t left = g->columns - column;
        block->panels = panels + column * block->padded_depth;
        block->panel_count = left > BYTE_PANEL ? 2 : 1;
        multiply_bytes(block);
        store_block(r, block, row_sums, column, left, y + column * result_size(r->kind), y_row);
    }
}

/* The panels of a matrix of the batch: as they were packed at load, or packed now. */
static const int8_t *panels_of(const byte_gemm *g, int64_t matrix, const working *w) {
    const uint8_t *b = g->b + g->b_offsets[matrix];
    if (!g->b_is_plain) return (const int8_t *)b;
    int64_t panels_bytes = padded_byte_depth(g->depth) * padded_byte_columns(g->columns);
    pack_byte_panels(b, g->b_step, g->b_column, g->depth, g->columns, g->scales.b_is_signed ? 0 : 0x80,
                     (int8_t *)w->panels, (int32_t *)(void *)(w->panels + panels_bytes));
    return (const int8_t *)w->panels;
}

/* Few blocks of rows are split by columns too, so that a team has something to share. */
enum { UNITS_WANTED = 8 };

SHARED_KERNEL(aegis_byte_gemm, byte_gemm) {
    const byte_gemm *g = arguments;
    working w = carve(g, g->workspace + self.thread * aegis_byte_gemm_workspace(g->depth, g->columns, g->b_is_plain));
    int32_t sums[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
    int64_t y_row = g->columns * result_size(g->scales.kind), padded = padded_byte_depth(g->depth);
    int64_t blocks = byte_block_count(g->rows), pairs = ceil_divide(g->columns, BYTE_BLOCK_COLUMNS);
    int64_t parts = smaller(pairs, ceil_divide(UNITS_WANTED, g->batch * blocks));
    /* One grid for all of A, also where it is a batch. */
    byte_grid grid = {1, 0};
    if (g->a_is_float) grid = grid_of(g->a, g->a_bytes / (int64_t)sizeof(float));
    byte_block block = {.depth = g->depth, .padded_depth = padded, .sums = sums};
    byte_results r = {};
    const int8_t *panels = NULL;
    int64_t packed = -1, matrix = -1, ready = -1;
    range mine = part_of(self, g->batch * blocks * parts);
    block.tile_rows = begin_byte_products(g->rows);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t at = unit / parts, part = unit % parts, first = byte_block_start(g->rows, at % blocks);
        if (at / blocks != matrix) {
            matrix = at / blocks;
            if (g->b_offsets[matrix] != packed) panels = panels_of(g, matrix, &w);
            packed = g->b_offsets[matrix];
            const int32_t *column_sums = (const int32_t *)(const void *)(panels + padded * padded_byte_columns(g->columns));
            r = ready_results(&g->scales, g->a_is_float ? &grid.scale : g->scales.a_scale,
                              g->a_is_float ? &grid.zero : g->scales.a_zero, column_sums, g->depth, 0, g->columns, w.results);
        }
        block.rows = byte_block_start(g->rows, at % blocks + 1) - first;
        const char *a = (const char *)g->a + g->a_offsets[matrix] * (g->a_is_float ? (int64_t)sizeof(float) : 1);
        if (at != ready) ready_rows(g, a, grid, first, w.rows, &block);
        ready = at;
        multiply_columns(g, &block, &r, panels, pairs * part / parts * BYTE_BLOCK_COLUMNS,
                         smaller(g->columns, pairs * (part + 1) / parts * BYTE_BLOCK_COLUMNS),
                         (char *)g->y + (matrix * g->rows + first) * y_row, y_row);
    }
    end_byte_products(block.tile_rows);
}
