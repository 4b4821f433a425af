/* Quantising floats: level = round_to_even(x / scale) + zero, held in the type's range. */
#ifndef AEGIS_QUANTISE_H
#define AEGIS_QUANTISE_H

#include "byte_results.h"

INLINE void quantise_row(const float *x, int64_t count, float scale, level_range levels, uint8_t *to) {
    int64_t i = 0;
    for (; i + WIDE <= count; i += WIDE)
        store_bytes(to + i, quantised_levels(wide_load(x + i) / scale, levels), WIDE);
    if (i < count)
        store_bytes(to + i, quantised_levels(wide_load_part(x + i, count - i) / scale, levels), count - i);
}

typedef struct { float low, high; } float_range;

/* The range of the floats and 0. */
INLINE float_range range_with_zero(const float *x, int64_t count) {
    wide low = wide_of(0), high = wide_of(0);
    int64_t i = 0;
    for (; i + WIDE <= count; i += WIDE) {
        low = wide_min(low, wide_load(x + i));
        high = wide_max(high, wide_load(x + i));
    }
    if (i < count) {
        low = wide_min(low, wide_load_part(x + i, count - i));
        high = wide_max(high, wide_load_part(x + i, count - i));
    }
    FOLD(low, wide_min)
    FOLD(high, wide_max)
    return (float_range){low[0], high[0]};
}

typedef struct { float scale; uint8_t zero; } byte_grid;

INLINE float_range joined_ranges(float_range a, float_range b) {
    return (float_range){wide_min(wide_of(a.low), wide_of(b.low))[0], wide_max(wide_of(a.high), wide_of(b.high))[0]};
}

/* DynamicQuantizeLinear's grid: 255 steps over the range, 0 on a level of its own. */
INLINE byte_grid grid_over(float_range range) {
    float step = (range.high - range.low) / 255.0f;
    if (!(step > 0)) step = 1; /* nothing but zeros: any scale will do */
    wide zero = __builtin_elementwise_roundeven(wide_at_most(wide_of(-range.low / step), wide_of(255)));
    return (byte_grid){step, (uint8_t)(int32_t)zero[0]};
}
INLINE byte_grid grid_of(const float *x, int64_t count) { return grid_over(range_with_zero(x, count)); }

#endif
