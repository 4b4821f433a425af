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
static working carve(const byte_gemm *g) {
    working w;
    w.rows = g->workspace;
    w.results = w.rows + BYTE_ROWS * padded_byte_depth(g->depth);
    w.panels = w.results + byte_results_size(g->columns);
    return w;
}

EXPORT int64_t aegis_byte_gemm_workspace(int64_t depth, int64_t columns, int64_t b_is_plain) {
    int64_t bytes = BYTE_ROWS * padded_byte_depth(depth) + byte_results_size(columns);
    return b_is_plain ? bytes + byte_panels_size(depth, columns) : bytes;
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

/* One block of rows against all panels. */
static void multiply_rows(const byte_gemm *g, byte_block *block, const byte_results *r, const int8_t *panels,
                          char *y, int64_t y_row) {
    int32_t row_sums[BYTE_ROWS] = {0};
    if (r->has_zeros)
        for (int64_t i = 0; i < block->rows; i++) row_sums[i] = byte_sum(block->a + i * block->a_row, g->depth);
    for (int64_t column = 0; column < g->columns; column += BYTE_BLOCK_COLUMNS) {
        int64_t left = g->columns - column;
        block->panels = panels + column * block->padded_depth;
        block->panel_count = left > BYTE_PANEL ? 2 : 1;
        multiply_bytes(block);
        store_block(r, block, row_sums, column, left, y + column * result_size(r->kind), y_row);
    }
}

static void multiply_matrix(const byte_gemm *g, const void *a, byte_grid grid, const int8_t *panels, char *y,
                            int64_t y_row, const working *w) {
    int32_t sums[BYTE_ROWS * BYTE_BLOCK_COLUMNS] __attribute__((aligned(64)));
    int64_t padded = padded_byte_depth(g->depth);
    const int32_t *column_sums = (const int32_t *)(const void *)(panels + padded * padded_byte_columns(g->columns));
    const float *a_scale = g->a_is_float ? &grid.scale : g->scales.a_scale;
    const uint8_t *a_zero = g->a_is_float ? &grid.zero : g->scales.a_zero;
    byte_results r = ready_results(&g->scales, a_scale, a_zero, column_sums, g->depth, 0, g->columns, w->results);
    byte_block block = {.depth = g->depth, .padded_depth = padded, .sums = sums};
    block.tile_rows = begin_byte_products(g->rows);
    for (int64_t i = 0; i < byte_block_count(g->rows); i++) {
        int64_t first = byte_block_start(g->rows, i);
        block.rows = byte_block_start(g->rows, i + 1) - first;
        ready_rows(g, a, grid, first, w->rows, &block);
        multiply_rows(g, &block, &r, panels, y + first * y_row, y_row);
    }
    end_byte_products(block.tile_rows);
}

KERNEL(aegis_byte_gemm, byte_gemm) {
    const byte_gemm *g = arguments;
    working w = carve(g);
    int64_t y_row = g->columns * result_size(g->scales.kind);
    int64_t panels_bytes = padded_byte_depth(g->depth) * padded_byte_columns(g->columns);
    byte_grid grid = {1, 0};
    /* One grid for all of A, also where it is a batch. */
    if (g->a_is_float) grid = grid_of(g->a, g->a_bytes / (int64_t)sizeof(float));
    for (int64_t i = 0; i < g->batch; i++) {
        const uint8_t *b = g->b + g->b_offsets[i];
        if (g->b_is_plain) {
            if (i == 0 || g->b_offsets[i] != g->b_offsets[i - 1])
                pack_byte_panels(b, g->b_step, g->b_column, g->depth, g->columns, g->scales.b_is_signed ? 0 : 0x80,
                                 (int8_t *)w.panels, (int32_t *)(void *)(w.panels + panels_bytes));
            b = w.panels;
        }
        const char *a = (const char *)g->a + g->a_offsets[i] * (g->a_is_float ? 4 : 1);
        multiply_matrix(g, a, grid, (const int8_t *)b, (char *)g->y + i * g->rows * y_row, y_row, &w);
    }
}
