/* Panels of a matrix that is not constant: [columns / PANEL][depth][PANEL], see tile.h. */
#ifndef AEGIS_PANELS_H
#define AEGIS_PANELS_H

#include "tile.h"

/* One panel of a matrix whose columns lie along memory, `column` floats apart: eight by eight. */
INLINE void pack_columns(const float *b, int64_t column, int64_t depth, int64_t count, float *panel) {
    int64_t whole = count / 8 * 8, deep = depth / 8 * 8;
    for (int64_t k = 0; count < PANEL && k < depth; k++)
        UNROLL for (int v = 0; v < VECTORS; v++) vec_store(panel + k * PANEL + v * LANES, vec_of(0));
    for (int64_t c = 0; c < whole; c += 8)
        for (int64_t k = 0; k < deep; k += 8) {
            eight turned[8];
            UNROLL for (int i = 0; i < 8; i++) turned[i] = eight_load(b + (c + i) * column + k);
            transpose_eight(turned);
            UNROLL for (int i = 0; i < 8; i++)
                __builtin_memcpy(panel + (k + i) * PANEL + c, &turned[i], sizeof turned[i]);
        }
    for (int64_t c = 0; c < count; c++)
        for (int64_t k = c < whole ? deep : 0; k < depth; k++) panel[k * PANEL + c] = b[c * column + k];
}

/* Packs a plain B. */
static void pack_panels(const float *b, int64_t b_step, int64_t b_column, int64_t depth, int64_t columns,
                        float *panels) {
    for (int64_t first = 0; first < columns; first += PANEL, b += PANEL * b_column, panels += depth * PANEL) {
        int64_t count = smaller(PANEL, columns - first);
        if (b_step == 1) {
            pack_columns(b, b_column, depth, count, panels);
        } else if (b_column == 1) {
            for (int64_t k = 0; k < depth; k++)
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    int64_t rest = count - v * LANES;
                    vec row = rest > 0 ? tile_row_load(b + k * b_step, v, count) : vec_of(0);
                    vec_store(panels + k * PANEL + v * LANES, row);
                }
        } else {
            for (int64_t k = 0; k < depth; k++)
                for (int64_t c = 0; c < PANEL; c++)
                    panels[k * PANEL + c] = c < count ? b[k * b_step + c * b_column] : 0;
        }
    }
}

#endif
