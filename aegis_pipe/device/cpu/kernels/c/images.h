/* Images turned round: planes to pixels with their channels side by side. */
#ifndef AEGIS_IMAGES_H
#define AEGIS_IMAGES_H

#include "vector.h"

INLINE void transpose_8x8(const float *from, int64_t from_row, float *to, int64_t to_row) {
    eight turned[8];
    UNROLL for (int i = 0; i < 8; i++) turned[i] = eight_load(from + i * from_row);
    transpose_eight(turned);
    UNROLL for (int i = 0; i < 8; i++) __builtin_memcpy(to + i * to_row, &turned[i], sizeof turned[i]);
}

/* 8 columns of fewer than 8 channels. Every column is stored as 8 floats, whose end the next one
 * overwrites: the row must go on for 8 columns more. */
INLINE void interleave_few(const float *x, int64_t plane, int64_t depth, float *to) {
    eight turned[8];
    UNROLL for (int i = 0; i < 8; i++) turned[i] = i < depth ? eight_load(x + i * plane) : (eight){};
    transpose_eight(turned);
    UNROLL for (int i = 0; i < 8; i++) __builtin_memcpy(to + i * depth, &turned[i], sizeof turned[i]);
}

/* A row of `depth` planes, [depth][columns], to [columns][depth]. */
static inline void interleave_row(const float *x, int64_t plane, int64_t depth, int64_t columns, float *to) {
    int64_t column = 0;
    for (; column + 8 <= columns; column += 8) {
        int64_t channel = 0;
        for (; channel + 8 <= depth; channel += 8)
            transpose_8x8(x + channel * plane + column, plane, to + column * depth + channel, depth);
        if (depth < 8 && column + 16 <= columns) {
            interleave_few(x + column, plane, depth, to + column * depth);
            continue;
        }
        for (; channel < depth; channel++)
            UNROLL for (int i = 0; i < 8; i++)
                to[(column + i) * depth + channel] = x[channel * plane + column + i];
    }
    for (; column < columns; column++)
        for (int64_t channel = 0; channel < depth; channel++)
            to[column * depth + channel] = x[channel * plane + column];
}

#endif
