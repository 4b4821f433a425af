/* Between reals and levels: QuantizeLinear and DequantizeLinear.
 *
 *     level = round_to_even(x / scale) + zero, held in the type's range;  x = (level - zero) scale
 *
 * Reals are floats of 32 or 16 bits, and computed with as float32; levels have 8, 16 or, on the way
 * to reals, 32 bits. The tensor is [outer][axis][inner], with one scale for each block of the axis:
 *
 *     shared by the inner elements    then a block is a run of neighbours with one scale
 *     or one for each of them         then a run is a row of inner elements, and of as many scales
 */
#include "halves.h"
#include "levels.h"

typedef struct {
    const void *x;
    void *y;
    const void *scale, *zero; /* zero: NULL for 0 */
    int64_t outer, axis, block, inner;
    int64_t repeats;   /* the scales are the same for each of `outer` */
    int64_t each;      /* a scale for each of the inner elements */
    int64_t level_size, is_signed;
    int64_t real, scale_real; /* kinds, of halves.h */
    float low, high;
} rescaling;

enum { RUNS_A_WORKER = 8 }; /* fewer are not dealt out whole: each is cut */

/* A stretch of neighbours. Where its levels and reals begin, and which scale is its first. */
typedef struct { int64_t start, count, scale; range part; } run;

INLINE int64_t runs_of_outer(const rescaling *q) { return q->each ? q->axis : ceil_divide(q->axis, q->block); }

INLINE run run_at(const rescaling *q, worker self, int is_whole, int64_t index) {
    int64_t per_outer = runs_of_outer(q), outer = index / per_outer, i = index % per_outer;
    int64_t blocks = ceil_divide(q->axis, q->block), before = q->repeats ? 0 : outer * blocks;
    run r;
    if (q->each) {
        r = (run){.start = (outer * q->axis + i) * q->inner, .count = q->inner, .scale = (before + i / q->block) * q->inner};
    } else {
        int64_t first = i * q->block, last = smaller(first + q->block, q->axis);
        r = (run){.start = (outer * q->axis + first) * q->inner, .count = (last - first) * q->inner, .scale = before + i};
    }
    r.part = is_whole ? (range){0, r.count} : part_of_row(self, r.count);
    return r;
}

/* Scale and zero point of elements i .. i + 15 of a run. */
INLINE wide scales_of(const rescaling *q, const run *r, int64_t i) {
    const char *scales = (const char *)q->scale + r->scale * (q->scale_real == REAL_FLOAT32 ? 4 : 2);
    return reals_load(scales, i, r->count, q->scale_real);
}
INLINE wide zeros_of(const rescaling *q, const run *r, int64_t i, int64_t size) {
    if (!q->zero) return wide_of(0);
    return levels_load((const char *)q->zero + r->scale * size, i, r->count, size, q->is_signed);
}

INLINE wide to_real(wide level, wide scale, wide zero) { return (level - zero) * scale; }

INLINE void dequantise_run(const rescaling *q, const run *r, int64_t size, int64_t real, int each) {
    const char *x = (const char *)q->x + r->start * size;
    char *y = (char *)q->y + r->start * (real == REAL_FLOAT32 ? 4 : 2);
    wide scale = wide_of(0), zero = wide_of(0);
    if (!each) {
        scale = wide_of(real_at(q->scale, r->scale, q->scale_real));
        if (q->zero) zero = wide_of(level_at(q->zero, r->scale, size, q->is_signed));
    }
    for (int64_t i = r->part.first; i < r->part.last; i += WIDE) {
        if (each) scale = scales_of(q, r, i), zero = zeros_of(q, r, i, size);
        wide level = levels_load(x, i, r->count, size, q->is_signed);
        reals_store(y, i, r->count, to_real(level, scale, zero), real);
    }
}

/* Bounds are whole numbers, so it makes no difference that they come before the rounding. */
INLINE void store_levels(char *y, int64_t i, int64_t count, wide real, wide zero, const rescaling *q, int64_t size) {
    wide level = wide_at_most(wide_at_least(real, q->low - zero), q->high - zero);
    wide_int whole = wide_rounded(level) + __builtin_convertvector(zero, wide_int);
    if (size == 1) {
        store_bytes((uint8_t *)y + i, __builtin_convertvector(whole, wide_bytes), count - i);
    } else {
        wide_unsigned_shorts bits = __builtin_convertvector(whole, wide_unsigned_shorts);
        __builtin_memcpy(y + 2 * i, &bits, (size_t)smaller(WIDE, count - i) * 2);
    }
}

INLINE void quantise_run(const rescaling *q, const run *r, int64_t size, int64_t real, int each) {
    const char *x = (const char *)q->x + r->start * (real == REAL_FLOAT32 ? 4 : 2);
    char *y = (char *)q->y + r->start * size;
    wide scale = wide_of(0), zero = wide_of(0);
    if (!each) {
        scale = wide_of(real_at(q->scale, r->scale, q->scale_real));
        if (q->zero) zero = wide_of(level_at(q->zero, r->scale, size, q->is_signed));
    }
    for (int64_t i = r->part.first; i < r->part.last; i += WIDE) {
        if (each) {
            /* Behind the end of a row nothing is divided by 0. */
            scale = wide_fill_behind(scales_of(q, r, i), smaller(WIDE, r->count - i), 1);
            zero = zeros_of(q, r, i, size);
        }
        store_levels(y, i, r->count, reals_load(x, i, r->count, real) / scale, zero, q, size);
    }
}

#define EACH_RUN(run_function, size, real)                                                   \
    for (int64_t i = mine.first; i < mine.last; i++) {                                        \
        run r = run_at(q, self, is_whole, i);                                                 \
        if (q->each) run_function(q, &r, size, real, 1);                                      \
        else run_function(q, &r, size, real, 0);                                              \
    }

#define EACH_KIND(run_function, size)                                                         \
    switch (q->real) {                                                                        \
        case REAL_FLOAT16: EACH_RUN(run_function, size, REAL_FLOAT16) break;                  \
        case REAL_BFLOAT16: EACH_RUN(run_function, size, REAL_BFLOAT16) break;                \
        default: EACH_RUN(run_function, size, REAL_FLOAT32) break;                            \
    }

SHARED_KERNEL(aegis_quantise, rescaling) {
    const rescaling *q = arguments;
    int64_t runs = q->outer * runs_of_outer(q);
    int is_whole = runs >= RUNS_A_WORKER * self.count;
    range mine = is_whole ? part_of(self, runs) : (range){0, runs};
    if (q->level_size == 1) EACH_KIND(quantise_run, 1)
    else EACH_KIND(quantise_run, 2)
}

SHARED_KERNEL(aegis_dequantise, rescaling) {
    const rescaling *q = arguments;
    int64_t runs = q->outer * runs_of_outer(q);
    int is_whole = runs >= RUNS_A_WORKER * self.count;
    range mine = is_whole ? part_of(self, runs) : (range){0, runs};
    if (q->level_size == 1) EACH_KIND(dequantise_run, 1)
    else if (q->level_size == 2) EACH_KIND(dequantise_run, 2)
    else EACH_KIND(dequantise_run, 4)
}
