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

INLINE int64_t result_size(int64_t kind) { return kind == RESULT_BYTE ? 1 : 4; }

/* Where levels lie: bounds as distances from the zero point. */
typedef struct { float low, high; uint8_t zero; } level_range;

INLINE level_range range_of_levels(float zero, float low, float high) {
    return (level_range){low - zero, high - zero, (uint8_t)(int32_t)zero};
}

/* The same, made ready: arrays are as long as the columns, padded to whole panels. */
typedef struct {
    int32_t *correction, *zeros;
    float *factor;
    const float *addend;
    level_range levels;
    int64_t kind, has_zeros;
} byte_results;

INLINE int64_t byte_results_size(int64_t columns) { return padded_byte_columns(columns) * 12; }

/* A byte as it is multiplied: A unsigned, B signed. */
INLINE int32_t moved_a(const byte_scales *s, uint8_t a) { return s->a_is_signed ? (a ^ 0x80) : a; }
INLINE int32_t moved_b(const byte_scales *s, uint8_t b) { return (int8_t)(s->b_is_signed ? b : b ^ 0x80); }

INLINE int32_t moved_a_zero(const byte_scales *s) { return moved_a(s, s->a_zero ? *s->a_zero : 0); }

/* Results of other columns that were made ready in this place. */
INLINE byte_results results_at(byte_results r, void *workspace, int64_t columns) {
    int64_t padded = padded_byte_columns(columns);
    r.correction = workspace;
    r.zeros = r.correction + padded;
    r.factor = (float *)(r.zeros + padded);
    return r;
}

/* `a_scale` is given apart, because it may have been found out only now. */
INLINE byte_results ready_results(const byte_scales *s, const float *a_scale, const uint8_t *a_zero,
                                  const int32_t *column_sums, int64_t depth, int64_t first_column,
                                  int64_t columns, void *workspace) {
    int64_t padded = padded_byte_columns(columns);
    byte_results r = results_at((byte_results){.kind = s->kind, .has_zeros = s->has_zeros}, workspace, columns);
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
        r.levels = range_of_levels(s->y_is_signed ? (float)(int8_t)zero : (float)zero, s->low, s->high);
    }
    return r;
}

INLINE wide_int wide_int_load(const int32_t *p) { wide_int v; __builtin_memcpy(&v, p, sizeof v); return v; }

/* To the nearest integer, the even one of two; x fits into 32 bits. */
INLINE wide_int wide_rounded(wide x) {
#if defined(__AVX512F__)
    return (wide_int)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    typedef int32_t eight_int __attribute__((vector_size(32)));
    eight low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    eight high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    eight_int a = (eight_int)_mm256_cvtps_epi32((__m256)low), b = (eight_int)_mm256_cvtps_epi32((__m256)high);
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    return __builtin_convertvector(__builtin_elementwise_roundeven(x), wide_int);
#endif
}

/* Saturated and rounded to even. Bounds are whole numbers, so it makes no difference that they come
 * before the rounding; the zero point is added last, to bytes. */
INLINE wide_bytes quantised_levels(wide x, level_range r) {
    wide level = wide_at_most(wide_at_least(x, wide_of(r.low)), wide_of(r.high));
    return __builtin_convertvector(wide_rounded(level), wide_bytes) + (int8_t)r.zero;
}

/* The first `count` of 16 bytes. */
INLINE void store_bytes(uint8_t *to, wide_bytes bytes, int64_t count) {
    if (count >= WIDE) {
        __builtin_memcpy(to, &bytes, WIDE);
        return;
    }
#if defined(__AVX512F__)
    _mm_mask_storeu_epi8(to, (__mmask16)((1u << count) - 1), (__m128i)bytes);
#else
    for (int64_t i = 0; i < count; i++) to[i] = (uint8_t)bytes[i];
#endif
}

INLINE void store_integers(int32_t *to, wide_int v, int64_t count) {
    if (count >= WIDE) __builtin_memcpy(to, &v, sizeof v);
    else for (int64_t i = 0; i < count; i++) to[i] = v[i];
}

INLINE void store_floats(float *to, wide v, int64_t count) {
    if (count >= WIDE) wide_store(to, v);
    else wide_store_part(to, v, count);
}

/* Results of `rows` rows from `column` on, `count` of which are there, 16 at most; `y` is where the
 * first goes. `kind` and `has_zeros` are constants wherever this is inlined. */
INLINE void store_strip(const byte_results *r, const int32_t *sums, const int32_t *row_sums, int64_t rows,
                        int64_t column, int64_t count, char *y, int64_t y_row, int64_t kind, int has_zeros) {
    wide_int correction = wide_int_load(r->correction + column), zeros = wide_int_load(r->zeros + column);
    wide factor = wide_load(r->factor + column), addend = wide_of(0);
    /* Bytes may lie anywhere, as far as the compiler knows: what they could change is read before. */
    const level_range levels = r->levels;
    if (r->addend) addend = count >= WIDE ? wide_load(r->addend + column) : wide_load_part(r->addend + column, count);
    for (int64_t i = 0; i < rows; i++, sums += BYTE_BLOCK_COLUMNS, y += y_row) {
        wide_int total = wide_int_load(sums) + correction;
        if (has_zeros) total -= zeros * row_sums[i];
        if (kind == RESULT_INTEGER) {
            store_integers((int32_t *)(void *)y, total, count);
            continue;
        }
        wide real = __builtin_convertvector(total, wide) * factor;
        if (kind == RESULT_FLOAT) store_floats((float *)(void *)y, real + addend, count);
        else store_bytes((uint8_t *)y, quantised_levels(real, levels), count);
    }
}

/* Results of a block of sums; `left` columns there are from `column` on; `y` is where the first goes. */
INLINE void store_block(const byte_results *r, const byte_block *block, const int32_t *row_sums, int64_t column,
                        int64_t left, char *y, int64_t y_row) {
    int64_t panel_bytes = BYTE_PANEL * result_size(r->kind);
    for (int64_t part = 0; part < block->panel_count;
         part++, column += BYTE_PANEL, left -= BYTE_PANEL, y += panel_bytes) {
        const int32_t *sums = block->sums + part * BYTE_PANEL;
        int64_t rows = block->rows;
#define STRIP(kind)                                                                             \
    if (r->has_zeros) store_strip(r, sums, row_sums, rows, column, left, y, y_row, kind, 1);     \
    else store_strip(r, sums, row_sums, rows, column, left, y, y_row, kind, 0)
        switch (r->kind) {
            case RESULT_INTEGER: STRIP(RESULT_INTEGER); break;
            case RESULT_FLOAT: STRIP(RESULT_FLOAT); break;
            default: STRIP(RESULT_BYTE); break;
        }
#undef STRIP
    }
}

INLINE int32_t byte_sum(const uint8_t *bytes, int64_t count) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum += bytes[i];
    return (int32_t)sum;
}

#endif
