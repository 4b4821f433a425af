/* Floats of 16 bits, widened to float32 and rounded back: to nearest, ties to even. */
#ifndef AEGIS_HALVES_H
#define AEGIS_HALVES_H

#include "vector.h"

enum { REAL_FLOAT32, REAL_FLOAT16, REAL_BFLOAT16 };

typedef _Float16 wide_halves __attribute__((vector_size(WIDE * 2)));
typedef uint16_t wide_uppers __attribute__((vector_size(WIDE * 2)));
typedef uint32_t wide_bits __attribute__((vector_size(WIDE * 4)));

/* A bfloat16 is the upper half of a float32. */
INLINE float from_bfloat(uint16_t upper) {
    uint32_t bits = (uint32_t)upper << 16;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint16_t to_bfloat(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(x != x ? bits >> 16 | 0x40 : rounded >> 16);
}

/* Reals i .. i + 15 of a row of `count`, zeros behind its end. `kind` is a constant where it matters. */
INLINE wide reals_load(const void *row, int64_t i, int64_t count, int64_t kind) {
    if (kind == REAL_FLOAT32) return row_load(row, i, count);
    wide_uppers halves = {0};
    const uint16_t *from = (const uint16_t *)row + i;
    if (i + WIDE <= count) __builtin_memcpy(&halves, from, sizeof halves);
    else __builtin_memcpy(&halves, from, (size_t)(count - i) * sizeof *from);
    if (kind == REAL_FLOAT16) return __builtin_convertvector((wide_halves)halves, wide);
    return (wide)(__builtin_convertvector(halves, wide_bits) << 16);
}

INLINE void reals_store(void *row, int64_t i, int64_t count, wide x, int64_t kind) {
    if (kind == REAL_FLOAT32) {
        row_store(row, i, count, x);
        return;
    }
    wide_uppers halves;
    if (kind == REAL_FLOAT16) {
        halves = (wide_uppers)__builtin_convertvector(x, wide_halves);
    } else {
        wide_bits bits = (wide_bits)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        wide_bits kept = (wide_bits)wide_select(x != x, (wide)(bits >> 16 | 0x40), (wide)rounded);
        halves = __builtin_convertvector(kept, wide_uppers);
    }
    uint16_t *to = (uint16_t *)row + i;
    if (i + WIDE <= count) __builtin_memcpy(to, &halves, sizeof halves);
    else __builtin_memcpy(to, &halves, (size_t)(count - i) * sizeof *to);
}

INLINE float real_at(const void *row, int64_t i, int64_t kind) {
    switch (kind) {
        case REAL_FLOAT16: return (float)((const _Float16 *)row)[i];
        case REAL_BFLOAT16: return from_bfloat(((const uint16_t *)row)[i]);
        default: return ((const float *)row)[i];
    }
}

#endif
