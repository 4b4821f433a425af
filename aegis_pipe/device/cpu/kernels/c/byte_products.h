/* Products of bytes: sums[rows][columns] = A B, exactly, in int32.
 *
 * A is uint8, rows along memory. B is int8, in panels of 16 columns whose depth goes by fours,
 * because that is what the instructions for bytes take:
 *
 *     [columns / 16][depth / 4][16][4]      64 bytes a line: a register of AVX-512, a row of an AMX
 *                                           tile; other machines take it in parts
 *
 * The depth is padded with zeros to a multiple of 64. Rows of A have to be readable that far, but
 * what lies there does not count. Signed A and unsigned B are moved by 128 on the way in; what that
 * and the zero points change is put right with the sums of B's columns and A's rows (byte_results.h).
 *
 * Integers do not round: whatever instructions do the work, the results are the same. (pmaddubsw
 * saturates its sums of two products, therefore none of the units uses it.)
 */
#ifndef AEGIS_BYTE_PRODUCTS_H
#define AEGIS_BYTE_PRODUCTS_H

#include "vector.h"

enum {
    BYTE_PANEL = 16,       /* columns of a panel */
    BYTE_DEPTH = 64,       /* the padded depth is a multiple of this */
    BYTE_ROWS = 32,        /* of a block of results, at most */
    BYTE_BLOCK_COLUMNS = 2 * BYTE_PANEL,
};

typedef struct {
    const uint8_t *a;
    int64_t a_row;         /* bytes from row to row */
    const int8_t *panels;  /* one or two, next to each other */
    int64_t depth, padded_depth;
    int64_t rows, panel_count;
    int64_t tile_rows;     /* what `begin_byte_products` returned */
    int32_t *sums;         /* [rows][BYTE_BLOCK_COLUMNS] */
} byte_block;

/* Whether there is an instruction for bytes: 0 if not. */
int64_t byte_unit(void);

/* A kernel calls these before its first and after its last product. `rows` is the number of rows
 * that it has in all; blocks are then cut by `byte_block_start`. */
int64_t begin_byte_products(int64_t rows);
void end_byte_products(int64_t tile_rows);
void multiply_bytes(const byte_block *block);

INLINE int64_t padded_byte_depth(int64_t depth) { return ceil_divide(depth, BYTE_DEPTH) * BYTE_DEPTH; }
INLINE int64_t padded_byte_columns(int64_t columns) { return ceil_divide(columns, BYTE_PANEL) * BYTE_PANEL; }

/* Block i of `rows` rows goes from start(i) to start(i + 1). Blocks are as even as can be: then all
 * have at least 16 rows, or there is only one. */
INLINE int64_t byte_block_count(int64_t rows) { return ceil_divide(rows, BYTE_ROWS); }
INLINE int64_t byte_block_start(int64_t rows, int64_t i) { return rows * i / byte_block_count(rows); }

/* Packs B; `moved` is 0x80 if it is unsigned. Writes the sums of its columns too. */
void pack_byte_panels(const uint8_t *b, int64_t b_step, int64_t b_column, int64_t depth, int64_t columns,
                      uint8_t moved, int8_t *panels, int32_t *column_sums);

/* Bytes of packed panels with the sums of their columns behind them. */
INLINE int64_t byte_panels_size(int64_t depth, int64_t columns) {
    return padded_byte_columns(columns) * (padded_byte_depth(depth) + (int64_t)sizeof(int32_t));
}

#endif
