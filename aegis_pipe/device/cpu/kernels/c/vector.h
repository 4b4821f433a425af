/* Vectors of float32, for every instruction set from one source.
 *
 * Two widths. `vec` is one register of the machine: the tiles of matrix products count in it. `wide`
 * is always 16 floats, however many registers that takes: sums that run over lanes use it, so that
 * the order of additions, and with it every bit, is the same on AVX2 and AVX-512.
 *
 * The compiler may not contract a * b + c by itself (-ffp-contract=off); `multiply_add` says where it
 * happens: with one rounding where the machine has the instruction, with two where it has not.
 */
#ifndef AEGIS_VECTOR_H
#define AEGIS_VECTOR_H

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define WIDE 16

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float wide __attribute__((vector_size(WIDE * 4)));
typedef int32_t wide_int __attribute__((vector_size(WIDE * 4)));
typedef float eight __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))
/* Loops over registers must vanish, or the registers become an array on the stack. */
#define UNROLL _Pragma("clang loop unroll(full)")
/* Four turns at once of a long loop whose body is short. */
#define UNROLL_FOUR _Pragma("clang loop unroll_count(4)")
#define EXPORT __attribute__((visibility("default")))

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define multiply_add(a, b, c) __builtin_elementwise_fma(a, b, c)
#else
#define multiply_add(a, b, c) ((a) * (b) + (c))
#endif

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE vec vec_load(const float *p) { vec v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE void vec_store(float *p, vec v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE vec vec_of(float x) { return x - (vec){}; }

INLINE wide wide_load(const float *p) { wide v; __builtin_memcpy(&v, p, sizeof v); return v; }
INLINE void wide_store(float *p, wide v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE wide wide_of(float x) { return x - (wide){}; }

/* The first `count` <= WIDE floats, zeros behind them; neither reads nor writes beyond. */
#if defined(__AVX512F__)
INLINE wide wide_load_part(const float *p, int64_t count) {
    return (wide)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}
INLINE void wide_store_part(float *p, wide v, int64_t count) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
}
#elif defined(__AVX2__)
/* All ones in lane i if first + i < count. */
INLINE __m256i lanes_below(int64_t count, int first) {
    __m256i lane = _mm256_setr_epi32(first, first + 1, first + 2, first + 3, first + 4, first + 5, first + 6, first + 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), lane);
}
INLINE wide wide_load_part(const float *p, int64_t count) {
    eight low = (eight)_mm256_maskload_ps(p, lanes_below(count, 0));
    eight high = (eight)_mm256_maskload_ps(p + 8, lanes_below(count, 8));
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
INLINE void wide_store_part(float *p, wide v, int64_t count) {
    eight low = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
    eight high = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm256_maskstore_ps(p, lanes_below(count, 0), (__m256)low);
    _mm256_maskstore_ps(p + 8, lanes_below(count, 8), (__m256)high);
}
#else
INLINE wide wide_load_part(const float *p, int64_t count) {
    float lanes[WIDE] = {0};
    for (int64_t i = 0; i < count; i++) lanes[i] = p[i];
    return wide_load(lanes);
}
INLINE void wide_store_part(float *p, wide v, int64_t count) {
    float lanes[WIDE];
    wide_store(lanes, v);
    for (int64_t i = 0; i < count; i++) p[i] = lanes[i];
}
#endif

INLINE wide wide_select(wide_int mask, wide yes, wide no) {
    return (wide)((mask & (wide_int)yes) | (~mask & (wide_int)no));
}
/* Replaces the lanes from `count` on. */
INLINE wide wide_fill_behind(wide v, int64_t count, float rest) {
    wide_int lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return wide_select(lane < (wide_int){} + (int32_t)count, v, wide_of(rest));
}
/* Floats i .. i + 15 of a row of `count`; zeros behind its end. */
INLINE wide row_load(const float *row, int64_t i, int64_t count) {
    return i + WIDE <= count ? wide_load(row + i) : wide_load_part(row + i, count - i);
}
INLINE void row_store(float *row, int64_t i, int64_t count, wide v) {
    if (i + WIDE <= count) wide_store(row + i, v);
    else wide_store_part(row + i, v, count - i);
}
/* A NaN in `x` stays; `bound` is never NaN. */
INLINE wide wide_at_least(wide x, wide bound) { return wide_select(x < bound, bound, x); }
INLINE wide wide_at_most(wide x, wide bound) { return wide_select(x > bound, bound, x); }
/* As NumPy's maximum: NaN wins. */
INLINE wide wide_max(wide a, wide b) { return wide_select((a > b) | (a != a), a, b); }
INLINE wide wide_min(wide a, wide b) { return wide_select((a < b) | (a != a), a, b); }

/* Turns eight rows of eight round: three rounds of exchanging ever larger parts. */
INLINE void transpose_eight(eight a[8]) {
    eight b[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
        UNROLL for (int j = i; j < i + 2; j++) {
            a[j] = __builtin_shufflevector(b[j], b[j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[j + 2] = __builtin_shufflevector(b[j], b[j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    UNROLL for (int i = 0; i < 4; i++) {
        b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        b[i + 4] = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    UNROLL for (int i = 0; i < 8; i++) a[i] = b[i];
}
INLINE eight eight_load(const float *p) { eight v; __builtin_memcpy(&v, p, sizeof v); return v; }

/* Every second of 32 floats, from the first on or from the second on. */
INLINE wide wide_even(wide low, wide high) {
    return __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
INLINE wide wide_odd(wide low, wide high) {
    return __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

/* The other way round: the first and the last 16 of 32 floats that come from `even` and `odd` in turn. */
INLINE wide wide_merged_low(wide even, wide odd) {
    return __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
INLINE wide wide_merged_high(wide even, wide odd) {
    return __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* A short row: registers that overlap at its end, so that no element is copied alone. */
INLINE void copy_floats(float *to, const float *from, int64_t count) {
    typedef float four __attribute__((vector_size(16)));
    int64_t i = 0;
    if (count >= WIDE) {
        for (; i + WIDE <= count; i += WIDE) wide_store(to + i, wide_load(from + i));
        if (i < count) wide_store(to + count - WIDE, wide_load(from + count - WIDE));
    } else if (count >= 8) {
        eight first = eight_load(from), last = eight_load(from + count - 8);
        __builtin_memcpy(to, &first, sizeof first);
        __builtin_memcpy(to + count - 8, &last, sizeof last);
    } else if (count >= 4) {
        four first, last;
        __builtin_memcpy(&first, from, sizeof first);
        __builtin_memcpy(&last, from + count - 4, sizeof last);
        __builtin_memcpy(to, &first, sizeof first);
        __builtin_memcpy(to + count - 4, &last, sizeof last);
    } else {
        for (; i < count; i++) to[i] = from[i];
    }
}

/* Lane i with lane i + 8, 4, 2, 1 in turn: the one order of additions, on every machine. */
#define FOLD(v, combine)                                                                              \
    v = combine(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)); \
    v = combine(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)); \
    v = combine(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)); \
    v = combine(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
INLINE wide wide_add(wide a, wide b) { return a + b; }
INLINE float wide_sum(wide v) { FOLD(v, wide_add) return v[0]; }
INLINE float wide_largest(wide v) { FOLD(v, wide_max) return v[0]; }

#endif
