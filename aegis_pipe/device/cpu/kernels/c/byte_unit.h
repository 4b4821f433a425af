/* The loop nest of byte products for one instruction; byte_products.c includes this once for each.
 *
 *     UNIT(name)    gives names of their own to what is defined here
 *     UNIT_TARGET   the function attribute that lets the compiler use the instruction
 *     UNIT_LANES    int32 of a register
 *     UNIT_ROWS     rows of a tile
 *     UNIT_PANELS   panels of a tile
 *     UNIT(dot)     adds to each lane of sums the four products of its bytes
 *
 * A tile is rows x panels * 16 sums in registers while the depth runs by, as in tile.h:
 *
 *     for k in fours:  the panels' lines are loaded;
 *                      for each row: a[row][k .. k + 3] is broadcast and multiplied into its sums
 *
 * A tile of few rows has too few sums to hide the latency of the instruction. Then `chains` sums
 * take turns, and are added at the end: integers do not mind the order.
 */

#define UNIT_VECTORS (UNIT_PANELS * BYTE_PANEL / UNIT_LANES)

typedef int32_t UNIT(vector) __attribute__((vector_size(UNIT_LANES * 4)));

UNIT_TARGET INLINE void UNIT(step)(UNIT(vector) sums[UNIT_ROWS][UNIT_VECTORS], const byte_block *p,
                                   const uint8_t *a, const int8_t *b, int64_t k, int rows, int vectors) {
    const int per_panel = BYTE_PANEL / UNIT_LANES;
    UNIT(vector) line[UNIT_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++)
        __builtin_memcpy(&line[v],
                         b + v / per_panel * p->padded_depth * BYTE_PANEL + k * BYTE_PANEL +
                             v % per_panel * UNIT_LANES * 4,
                         sizeof line[v]);
    UNROLL for (int r = 0; r < rows; r++) {
        int32_t four;
        __builtin_memcpy(&four, a + r * p->a_row + k, sizeof four);
        UNIT(vector) x = four - (UNIT(vector)){};
        UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = UNIT(dot)(sums[r][v], x, line[v]);
    }
}

UNIT_TARGET INLINE void UNIT(tile)(const byte_block *p, int64_t row, int64_t panel, int rows, int panels,
                                   int chains) {
    const int vectors = panels * BYTE_PANEL / UNIT_LANES;
    const uint8_t *a = p->a + row * p->a_row;
    const int8_t *b = p->panels + panel * p->padded_depth * BYTE_PANEL;
    UNIT(vector) sums[4][UNIT_ROWS][UNIT_VECTORS];
    UNROLL for (int c = 0; c < chains; c++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++) sums[c][r][v] = (UNIT(vector)){};
    int64_t k = 0;
    for (; k + 4 * (chains - 1) < p->depth; k += 4 * chains)
        UNROLL for (int c = 0; c < chains; c++) UNIT(step)(sums[c], p, a, b, k + 4 * c, rows, vectors);
    for (; k < p->depth; k += 4) UNIT(step)(sums[0], p, a, b, k, rows, vectors);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            UNROLL for (int c = 1; c < chains; c++) sums[0][r][v] += sums[c][r][v];
            __builtin_memcpy(p->sums + (row + r) * BYTE_BLOCK_COLUMNS + panel * BYTE_PANEL + v * UNIT_LANES,
                             &sums[0][r][v], sizeof sums[0][r][v]);
        }
}

UNIT_TARGET INLINE void UNIT(strip)(const byte_block *p, int64_t panel, int panels) {
    int64_t row = 0;
    for (; row + UNIT_ROWS <= p->rows; row += UNIT_ROWS) UNIT(tile)(p, row, panel, UNIT_ROWS, panels, 1);
    for (; row + 4 <= p->rows; row += 4) UNIT(tile)(p, row, panel, UNIT_ROWS < 4 ? UNIT_ROWS : 4, panels, 1);
    switch (p->rows - row) {
        case 3: UNIT(tile)(p, row, panel, 2, panels, 1); UNIT(tile)(p, row + 2, panel, 1, panels, 4); break;
        case 2: UNIT(tile)(p, row, panel, 2, panels, UNIT_ROWS > 2 ? 2 : 1); break;
        case 1: UNIT(tile)(p, row, panel, 1, panels, 4); break;
    }
}

UNIT_TARGET static void UNIT(multiply)(const byte_block *p) {
    int64_t panel = 0;
    for (; panel + UNIT_PANELS <= p->panel_count; panel += UNIT_PANELS) UNIT(strip)(p, panel, UNIT_PANELS);
    for (; panel < p->panel_count; panel++) UNIT(strip)(p, panel, 1);
}

#undef UNIT_VECTORS
#undef UNIT_TARGET
#undef UNIT_LANES
#undef UNIT_ROWS
#undef UNIT_PANELS
#undef UNIT
