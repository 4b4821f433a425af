/* Levels of 8, 16 and 32 bits, widened to float32. */
#ifndef AEGIS_LEVELS_H
#define AEGIS_LEVELS_H

#include "quantise.h"
#include "step.h"

typedef uint8_t wide_unsigned_bytes __attribute__((vector_size(WIDE)));
typedef int16_t wide_shorts __attribute__((vector_size(WIDE * 2)));
typedef uint16_t wide_unsigned_shorts __attribute__((vector_size(WIDE * 2)));

INLINE float zero_point(const uint8_t *zero, int64_t i, int64_t is_signed) {
    if (!zero) return 0;
    return is_signed ? (float)(int8_t)zero[i] : (float)zero[i];
}

/* A worker's part of each row of `count`, in whole registers but for the row's end. */
INLINE range part_of_row(worker self, int64_t count) {
    range part = part_of(self, ceil_divide(count, WIDE));
    return (range){part.first * WIDE, smaller(count, part.last * WIDE)};
}

INLINE wide bytes_to_wide(const uint8_t *p, int64_t is_signed) {
    wide_bytes b;
    __builtin_memcpy(&b, p, sizeof b);
    return is_signed ? __builtin_convertvector(b, wide) : __builtin_convertvector((wide_unsigned_bytes)b, wide);
}
/* The first `count` < WIDE bytes; zeros behind them. */
INLINE wide bytes_to_wide_part(const uint8_t *p, int64_t count, int64_t is_signed) {
    uint8_t part[WIDE] = {0};
    for (int64_t i = 0; i < count; i++) part[i] = p[i];
    return bytes_to_wide(part, is_signed);
}
INLINE wide byte_row_load(const uint8_t *row, int64_t i, int64_t count, int64_t is_signed) {
    return i + WIDE <= count ? bytes_to_wide(row + i, is_signed)
                             : bytes_to_wide_part(row + i, count - i, is_signed);
}

INLINE wide short_row_load(const uint16_t *row, int64_t i, int64_t count, int64_t is_signed) {
    wide_shorts s = {0};
    if (i + WIDE <= count) __builtin_memcpy(&s, row + i, sizeof s);
    else __builtin_memcpy(&s, row + i, (size_t)(count - i) * sizeof *row);
    return is_signed ? __builtin_convertvector(s, wide) : __builtin_convertvector((wide_unsigned_shorts)s, wide);
}

/* Levels i .. i + 15 of a row of `count`, each of `size` bytes: 1, 2, or 4 if they are signed. */
INLINE wide levels_load(const void *row, int64_t i, int64_t count, int64_t size, int64_t is_signed) {
    switch (size) {
        case 1: return byte_row_load(row, i, count, is_signed);
        case 2: return short_row_load(row, i, count, is_signed);
        default: return __builtin_convertvector((wide_int)row_load(row, i, count), wide);
    }
}

INLINE float level_at(const void *levels, int64_t i, int64_t size, int64_t is_signed) {
    switch (size) {
        case 1: return zero_point(levels, i, is_signed);
        case 2: return is_signed ? (float)((const int16_t *)levels)[i] : (float)((const uint16_t *)levels)[i];
        default: return (float)((const int32_t *)levels)[i];
    }
}

#endif
