/* From sums of bytes to results: what zero points and signs changed is put right, then the sum is
 * written as it is, on a scale as a float, or quantised.
 *
 * With a' = a + move_a as it was multiplied, and za' and zb' the zero points moved likewise:
 *
 *     sum (a' - za') (b' - zb') = sum a'b' - za' (column sum of b') - zb' (row sum of a' - za')
 *
 * Everything but the last term is known before the first product: `correction`.
 */
#ifndef AEGIS_BYTE_RESULTS_H
#define AEGIS_BYTE_RESULTS_H

#include "byte_products.h"

typedef int8_t wide_bytes __attribute__((vector_size(WIDE)));

enum { RESULT_INTEGER, RESULT_FLOAT, RESULT_BYTE };

/* Operands as the model has them; addresses may be NULL for what is left out. */
typedef struct {
    const uint8_t *a_zero;  /* one */
    const uint8_t *b_zero;  /* one, or one a column */
    const float *a_scale, *b_scale, *y_scale;
    const uint8_t *y_zero;
    const int32_t *bias;    /* [columns], added before rescaling */
    const float *addend;    /* [columns], added after */
    int64_t a_is_signed, b_is_signed, y_is_signed;
    int64_t b_zeros, b_scales; /* how many: 0 or 1 or one a column */
    int64_t kind;
    float alpha;
    int32_t has_zeros;      /* whether some zero point of B may be other than where it was moved */
    float low, high;        /* bounds of a fused activation, in levels of the result */
} byte_scales;

/* The same, made ready: arrays are as long as the columns, padded to whole panels. */
typedef struct {
    int32_t *correction, *zeros;
    float *factor;
    const float *addend;
    float y_zero, low, high;
    int64_t kind, has_zeros;
} byte_results;

INLINE int64_t byte_results_size(int64_t columns) { return padded_byte_columns(columns) * 12; }

/* A byte as it is multiplied: A unsigned, B signed. */
INLINE int32_t moved_a(const byte_scales *s, uint8_t a) { return s->a_is_signed ? (a ^ 0x80) : a; }
INLINE int32_t moved_b(const byte_scales *s, uint8_t b) { return (int8_t)(s->b_is_signed ? b : b ^ 0x80); }

INLINE int32_t moved_a_zero(const byte_scales *s) { return moved_a(s, s->a_zero ? *s->a_zero : 0); }

/* `a_scale` is given apart, because it may have been found out only now. */
INLINE byte_results ready_results(const byte_scales *s, const float *a_scale, const uint8_t *a_zero,
                                  const int32_t *column_sums, int64_t depth, int64_t first_column,
                                  int64_t columns, void *workspace) {
    int64_t padded = padded_byte_columns(columns);
    byte_results r = {.kind = s->kind, .has_zeros = s->has_zeros};
    r.correction = workspace;
    r.zeros = r.correction + padded;
    r.factor = (float *)(r.zeros + padded);
    r.addend = s->addend ? s->addend + first_column : NULL;
    int32_t za = moved_a(s, a_zero ? *a_zero : 0);
    float scale = s->kind == RESULT_INTEGER ? 1 : *a_scale;
    for (int64_t c = 0; c < columns; c++) {
        int64_t at = first_column + c;
        int32_t zb = moved_b(s, s->b_zeros ? s->b_zero[s->b_zeros > 1 ? at : 0] : 0);
        uint32_t bias = s->bias ? (uint32_t)s->bias[at] : 0;
        r.correction[c] = (int32_t)(bias - (uint32_t)za * (uint32_t)column_sums[c] +
                                    (uint32_t)za * (uint32_t)zb * (uint32_t)depth);
        r.zeros[c] = zb;
        float factor = s->b_scale ? scale * s->b_scale[s->b_scales > 1 ? at : 0] : scale;
        if (s->alpha != 1) factor *= s->alpha;
        r.factor[c] = s->y_scale ? factor / *s->y_scale : factor;
    }
    for (int64_t c = columns; c < padded; c++) r.correction[c] = 0, r.zeros[c] = 0, r.factor[c] = 0;
    if (s->kind == RESULT_BYTE) {
        uint8_t zero = s->y_zero ? *s->y_zero : 0;
        r.y_zero = s->y_is_signed ? (float)(int8_t)zero : (float)zero;
        r.low = s->low;
        r.high = s->high;
    }
    return r;
}

INLINE wide_int wide_int_load(const int32_t *p) { wide_int v; __builtin_memcpy(&v, p, sizeof v); return v; }

INLINE wide_int right_sums(const byte_results *r, const int32_t *sums, int32_t row_sum, int64_t column) {
    wide_int total = wide_int_load(sums) + wide_int_load(r->correction + column);
    if (r->has_zeros) total -= wide_int_load(r->zeros + column) * row_sum;
    return total;
}

INLINE wide rescaled(const byte_results *r, wide_int sums, int64_t column) {
    return __builtin_convertvector(sums, wide) * wide_load(r->factor + column);
}

/* Rounded to even and saturated; the low byte of each is the result. */
INLINE wide_bytes quantised_levels(wide x, float zero, float low, float high) {
    wide level = __builtin_elementwise_roundeven(x) + zero;
    level = wide_at_most(wide_at_least(level, wide_of(low)), wide_of(high));
    return __builtin_convertvector(__builtin_convertvector(level, wide_int), wide_bytes);
}

INLINE void store_bytes(uint8_t *to, wide_bytes bytes, int64_t count) {
    if (count >= WIDE) __builtin_memcpy(to, &bytes, WIDE);
    else for (int64_t i = 0; i < count; i++) to[i] = (uint8_t)bytes[i];
}

/* Writes results of one row from `column` on, `count` of which are there, 16 at most. */
INLINE void store_results(const byte_results *r, const int32_t *sums, int32_t row_sum, int64_t column,
                          int64_t count, void *row) {
    wide_int total = right_sums(r, sums, row_sum, column);
    if (r->kind == RESULT_BYTE) {
        wide_bytes levels = quantised_levels(rescaled(r, total, column), r->y_zero, r->low, r->high);
        store_bytes((uint8_t *)row + column, levels, count);
    } else if (r->kind == RESULT_FLOAT) {
        wide real = rescaled(r, total, column);
        if (r->addend) real += count >= WIDE ? wide_load(r->addend + column) : wide_load_part(r->addend + column, count);
        float *to = (float *)row + column;
        if (count >= WIDE) wide_store(to, real);
        else wide_store_part(to, real, count);
    } else {
        int32_t *to = (int32_t *)row + column;
        if (count >= WIDE) __builtin_memcpy(to, &total, sizeof total);
        else for (int64_t i = 0; i < count; i++) to[i] = total[i];
    }
}

INLINE int32_t byte_sum(const uint8_t *bytes, int64_t count) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum += bytes[i];
    return (int32_t)sum;
}

#endif
