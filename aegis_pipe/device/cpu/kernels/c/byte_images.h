/* Images of bytes: copies of short runs, planes turned round to channels last and back. */
#ifndef AEGIS_BYTE_IMAGES_H
#define AEGIS_BYTE_IMAGES_H

#include "vector.h"

typedef uint8_t sixteen_bytes __attribute__((vector_size(16)));

INLINE sixteen_bytes sixteen_load(const uint8_t *p) { sixteen_bytes v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE void sixteen_store(uint8_t *p, sixteen_bytes v) { __builtin_memcpy(p, &v, sizeof v); }

/* A run, each byte changed by `moved`; stores overlap at its end, so that none is copied alone. */
INLINE void copy_moved(const uint8_t *from, int64_t count, uint8_t moved, uint8_t *to) {
    int64_t i = 0;
    if (count >= 16) {
        for (; i + 16 <= count; i += 16) sixteen_store(to + i, sixteen_load(from + i) ^ moved);
        if (i < count) sixteen_store(to + count - 16, sixteen_load(from + count - 16) ^ moved);
    } else {
        for (; i < count; i++) to[i] = from[i] ^ moved;
    }
}

/* Rows i and i + 8 are interleaved byte by byte; four rounds of this turn 16 rows of 16 round. */
INLINE void interleave_rows(const sixteen_bytes from[16], sixteen_bytes to[16]) {
    UNROLL for (int i = 0; i < 8; i++) {
        to[2 * i] = __builtin_shufflevector(from[i], from[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
}
INLINE void transpose_sixteen(sixteen_bytes a[16]) {
    sixteen_bytes b[16];
    interleave_rows(a, b);
    interleave_rows(b, a);
    interleave_rows(a, b);
    interleave_rows(b, a);
}

/* The first `count` of 16. */
INLINE void few_store(uint8_t *p, sixteen_bytes v, int64_t count) {
    if (count == 8) __builtin_memcpy(p, &v, 8);
    else for (int64_t i = 0; i < count; i++) p[i] = v[i];
}

/* Turns [rows][columns] round to [columns][rows], bytes changed by `moved`. */
static inline void turn_bytes(const uint8_t *from, int64_t from_row, int64_t rows, int64_t columns, uint8_t moved,
                              uint8_t *to, int64_t to_row) {
    for (int64_t row = 0; row < rows; row += 16)
        for (int64_t column = 0; column < columns; column += 16) {
            const uint8_t *corner = from + row * from_row + column;
            uint8_t *target = to + column * to_row + row;
            sixteen_bytes a[16];
            if (row + 16 <= rows && column + 16 <= columns) {
                UNROLL for (int i = 0; i < 16; i++) a[i] = sixteen_load(corner + i * from_row) ^ moved;
                transpose_sixteen(a);
                UNROLL for (int i = 0; i < 16; i++) sixteen_store(target + i * to_row, a[i]);
                continue;
            }
            if (column + 16 <= columns) {
                int64_t count = rows - row;
                UNROLL for (int i = 0; i < 16; i++) a[i] = (i < count ? sixteen_load(corner + i * from_row) : (sixteen_bytes){}) ^ moved;
                transpose_sixteen(a);
                /* Whole registers as long as what they write too far lies in the rows behind. */
                int overlaps = to_row == count && column + 32 <= columns;
                UNROLL for (int i = 0; i < 16; i++) {
                    if (overlaps) sixteen_store(target + i * to_row, a[i]);
                    else few_store(target + i * to_row, a[i], count);
                }
                continue;
            }
            for (int64_t c = 0; c < smaller(16, columns - column); c++)
                for (int64_t r = 0; r < smaller(16, rows - row); r++)
                    target[c * to_row + r] = corner[r * from_row + c] ^ moved;
        }
}

#endif
