/* What softmax of a row is made of, wherever it is taken. */
#ifndef AEGIS_SOFTMAX_H
#define AEGIS_SOFTMAX_H

#include "functions.h"

/* As row_load, with -inf behind the end: no maximum, and exp(-inf) adds nothing. */
INLINE wide load_power(const float *row, int64_t i, int64_t count) {
    if (i + WIDE <= count) return wide_load(row + i);
    return wide_fill_behind(wide_load_part(row + i, count - i), count - i, -__builtin_inff());
}

/* A NaN may get lost here: the row's sum of powers has it anyway. */
INLINE wide larger_lanes(wide a, wide b) { return wide_select(a > b, a, b); }

INLINE float row_largest(const float *x, int64_t count) {
    wide best = wide_of(-__builtin_inff());
    for (int64_t i = 0; i < count; i += WIDE) best = larger_lanes(best, load_power(x, i, count));
    return wide_largest(best);
}

#endif
