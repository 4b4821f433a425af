/* Rows of an image made ready for windows that stride along them. */
#ifndef AEGIS_COLUMNS_H
#define AEGIS_COLUMNS_H

#include "vector.h"

/* Writes row[width] to [stride][room], sorted by the columns' remainder modulo the stride, `left`
 * columns from the start; touches nothing else. Then the columns that neighbouring windows meet
 * with the same tap are neighbours, whatever the stride. */
INLINE void sort_columns(const float *row, int64_t width, int64_t stride, int64_t left, int64_t room, float *to) {
    int64_t column = 0;
    if (stride == 1) {
        copy_floats(to + left, row, width);
        return;
    }
    if (stride == 2) {
        float *even = to + (left & 1) * room + left / 2;
        float *odd = to + (~left & 1) * room + (left + 1) / 2;
        for (; column + 2 * WIDE <= width; column += 2 * WIDE) {
            wide low = wide_load(row + column), high = wide_load(row + column + WIDE);
            wide_store(even + column / 2, wide_even(low, high));
            wide_store(odd + column / 2, wide_odd(low, high));
        }
        for (; column + 2 <= width; column += 2) {
            even[column / 2] = row[column];
            odd[column / 2] = row[column + 1];
        }
    }
    for (; column < width; column++) {
        int64_t place = left + column;
        to[place % stride * room + place / stride] = row[column];
    }
}

/* Where a tap's columns lie in a sorted row. */
typedef struct { int64_t remainder, place; } sorted_tap;

/* The tap `dilation` columns on; divisions would cost more than the loads they serve. */
INLINE sorted_tap next_tap(sorted_tap tap, int64_t dilation, int64_t stride) {
    tap.remainder += dilation;
    while (tap.remainder >= stride) tap.remainder -= stride, tap.place++;
    return tap;
}

#endif
