/* Element by element between floats and bytes, and between bytes on different scales. */
#include "functions.h"
#include "quantise.h"
#include "step.h"

/* Scales and zero points hold for the whole tensor, or for each position of an axis: x is
 * [outer][parts][inner], with one scale a part. */
typedef struct {
    const void *x;
    void *y;
    const float *scale;
    const uint8_t *zero; /* NULL: 0 */
    int64_t outer, parts, inner;
    int64_t is_signed; /* the bytes */
    float low, high;
} rescaling;

INLINE float zero_point(const uint8_t *zero, int64_t i, int64_t is_signed) {
    if (!zero) return 0;
    return is_signed ? (float)(int8_t)zero[i] : (float)zero[i];
}

/* A worker's part of each row of `count`, in whole registers but for the row's end. */
INLINE range part_of_row(worker self, int64_t count) {
    range part = part_of(self, ceil_divide(count, WIDE));
    return (range){part.first * WIDE, smaller(count, part.last * WIDE)};
}

SHARED_KERNEL(aegis_quantise, rescaling) {
    const rescaling *q = arguments;
    const float *x = q->x;
    uint8_t *y = q->y;
    range part = part_of_row(self, q->inner);
    for (int64_t o = 0; o < q->outer; o++)
        for (int64_t p = 0; p < q->parts; p++, x += q->inner, y += q->inner)
            quantise_row(x + part.first, part.last - part.first, q->scale[p],
                         range_of_levels(zero_point(q->zero, p, q->is_signed), q->low, q->high), y + part.first);
}

typedef uint8_t wide_unsigned_bytes __attribute__((vector_size(WIDE)));

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

SHARED_KERNEL(aegis_dequantise, rescaling) {
    const rescaling *q = arguments;
    range part = part_of_row(self, q->inner);
    const uint8_t *x = q->x;
    float *y = q->y;
    for (int64_t o = 0; o < q->outer; o++)
        for (int64_t p = 0; p < q->parts; p++, x += q->inner, y += q->inner) {
            wide zero = wide_of(zero_point(q->zero, p, q->is_signed)), scale = wide_of(q->scale[p]);
            for (int64_t i = part.first; i < part.last; i += WIDE)
                row_store(y, i, q->inner, (byte_row_load(x, i, q->inner, q->is_signed) - zero) * scale);
        }
}

/* Levels and zero points are int32: sums of products, biases. */
SHARED_KERNEL(aegis_dequantise_words, rescaling) {
    const rescaling *q = arguments;
    range part = part_of_row(self, q->inner);
    const float *x = q->x; /* their bits */
    const int32_t *zeros = (const int32_t *)(const void *)q->zero;
    float *y = q->y;
    for (int64_t o = 0; o < q->outer; o++)
        for (int64_t p = 0; p < q->parts; p++, x += q->inner, y += q->inner) {
            wide zero = wide_of(zeros ? (float)zeros[p] : 0), scale = wide_of(q->scale[p]);
            for (int64_t i = part.first; i < part.last; i += WIDE) {
                wide levels = __builtin_convertvector((wide_int)row_load(x, i, q->inner), wide);
                row_store(y, i, q->inner, (levels - zero) * scale);
            }
        }
}

/* Levels and zero points of two bytes. */
typedef int16_t wide_shorts __attribute__((vector_size(WIDE * 2)));
typedef uint16_t wide_unsigned_shorts __attribute__((vector_size(WIDE * 2)));

INLINE wide shorts_to_wide(const uint16_t *p, int64_t count, int64_t is_signed) {
    wide_shorts s = {0};
    if (count >= WIDE) __builtin_memcpy(&s, p, sizeof s);
    else
        for (int64_t i = 0; i < count; i++) s[i] = (int16_t)p[i];
    return is_signed ? __builtin_convertvector(s, wide) : __builtin_convertvector((wide_unsigned_shorts)s, wide);
}

SHARED_KERNEL(aegis_dequantise_shorts, rescaling) {
    const rescaling *q = arguments;
    range part = part_of_row(self, q->inner);
    const uint16_t *x = q->x, *zeros = (const uint16_t *)(const void *)q->zero;
    float *y = q->y;
    for (int64_t o = 0; o < q->outer; o++)
        for (int64_t p = 0; p < q->parts; p++, x += q->inner, y += q->inner) {
            wide zero = wide_of(zeros ? shorts_to_wide(zeros + p, 1, q->is_signed)[0] : 0);
            for (int64_t i = part.first; i < part.last; i += WIDE) {
                wide levels = shorts_to_wide(x + i, q->inner - i, q->is_signed);
                row_store(y, i, q->inner, (levels - zero) * wide_of(q->scale[p]));
            }
        }
}

SHARED_KERNEL(aegis_quantise_shorts, rescaling) {
    const rescaling *q = arguments;
    range part = part_of_row(self, q->inner);
    const float *x = q->x;
    const uint16_t *zeros = (const uint16_t *)(const void *)q->zero;
    uint16_t *y = q->y;
    for (int64_t o = 0; o < q->outer; o++)
        for (int64_t p = 0; p < q->parts; p++, x += q->inner, y += q->inner) {
            wide zero = wide_of(zeros ? shorts_to_wide(zeros + p, 1, q->is_signed)[0] : 0);
            for (int64_t i = part.first; i < part.last; i += WIDE) {
                wide level = __builtin_elementwise_roundeven(row_load(x, i, q->inner) / q->scale[p]) + zero;
                level = wide_at_most(wide_at_least(level, wide_of(q->low)), wide_of(q->high));
                wide_int whole = __builtin_convertvector(level, wide_int);
                wide_unsigned_shorts bits = __builtin_convertvector(whole, wide_unsigned_shorts);
                __builtin_memcpy(y + i, &bits, (size_t)smaller(WIDE, q->inner - i) * sizeof *y);
            }
        }
}

typedef struct {
    const float *x;
    uint8_t *y;
    float *scale;
    uint8_t *zero;
    int64_t count;
} dynamic_quantisation;

KERNEL(aegis_quantise_dynamically, dynamic_quantisation) {
    const dynamic_quantisation *q = arguments;
    byte_grid grid = grid_of(q->x, q->count);
    *q->scale = grid.scale;
    *q->zero = grid.zero;
    quantise_row(q->x, q->count, grid.scale, range_of_levels(grid.zero, 0, 255), q->y);
}

enum { RANK = 4 };

/* y = quantised(real a + real b), or their product; shapes as in elementwise.c. */
typedef struct {
    const uint8_t *a, *b;
    uint8_t *y;
    const float *a_scale, *b_scale, *y_scale;
    const uint8_t *a_zero, *b_zero, *y_zero;
    int64_t shape[RANK], a_strides[RANK], b_strides[RANK];
    int64_t is_signed, multiplies;
    float low, high;
} byte_pair;

/* All scales in one factor an operand: (a - za) sa / sy + (b - zb) sb / sy, or the product. */
INLINE void pair_run(const byte_pair *p, const uint8_t *a, const uint8_t *b, uint8_t *y, range part,
                     int64_t count, int64_t is_signed, int64_t multiplies) {
    wide a_zero = wide_of(zero_point(p->a_zero, 0, is_signed)), b_zero = wide_of(zero_point(p->b_zero, 0, is_signed));
    level_range levels = range_of_levels(zero_point(p->y_zero, 0, is_signed), p->low, p->high);
    wide factor = wide_of(multiplies ? *p->a_scale * *p->b_scale / *p->y_scale : *p->a_scale / *p->y_scale);
    wide b_factor = wide_of(*p->b_scale / *p->y_scale), shift = -(a_zero * factor + b_zero * b_factor);
    int a_moves = p->a_strides[RANK - 1] != 0, b_moves = p->b_strides[RANK - 1] != 0;
    wide one_a = wide_of(bytes_to_wide_part(a, 1, is_signed)[0]), one_b = wide_of(bytes_to_wide_part(b, 1, is_signed)[0]);
    for (int64_t i = part.first; i < part.last; i += WIDE) {
        wide x = a_moves ? byte_row_load(a, i, count, is_signed) : one_a;
        wide z = b_moves ? byte_row_load(b, i, count, is_signed) : one_b;
        wide level = multiplies ? (x - a_zero) * (z - b_zero) * factor
                                : multiply_add(x, factor, multiply_add(z, b_factor, shift));
        store_bytes(y + i, quantised_levels(level, levels), count - i);
    }
}

SHARED_KERNEL(aegis_byte_pair, byte_pair) {
    const byte_pair *p = arguments;
    range part = part_of_row(self, p->shape[RANK - 1]);
    const int64_t *n = p->shape, *s = p->a_strides, *t = p->b_strides;
    uint8_t *y = p->y;
    for (int64_t i = 0; i < n[0]; i++)
        for (int64_t j = 0; j < n[1]; j++)
            for (int64_t k = 0; k < n[2]; k++, y += n[3]) {
                const uint8_t *a = p->a + i * s[0] + j * s[1] + k * s[2];
                const uint8_t *b = p->b + i * t[0] + j * t[1] + k * t[2];
                if (p->is_signed && p->multiplies) pair_run(p, a, b, y, part, n[3], 1, 1);
                else if (p->is_signed) pair_run(p, a, b, y, part, n[3], 1, 0);
                else if (p->multiplies) pair_run(p, a, b, y, part, n[3], 0, 1);
                else pair_run(p, a, b, y, part, n[3], 0, 0);
            }
}

/* y = quantised(f(real x)), row by row: parts of a concatenation lie apart in the result. */
enum { MAP_IDENTITY, MAP_LEAKY_RELU, MAP_SIGMOID };

typedef struct {
    const uint8_t *x;
    uint8_t *y;
    const float *x_scale, *y_scale;
    const uint8_t *x_zero, *y_zero;
    int64_t rows, count, y_row;
    int64_t x_is_signed, y_is_signed;
    int64_t function;
    float alpha, low, high;
    int32_t unused;
} byte_map;

INLINE wide mapped(int64_t function, wide x, float alpha) {
    switch (function) {
        case MAP_LEAKY_RELU: return wide_select(x < 0.0f, x * alpha, x);
        case MAP_SIGMOID: return wide_sigmoid(x);
        default: return x;
    }
}

static void map_bytes(const byte_map *m, worker self) {
    range part = part_of_row(self, m->count);
    wide zero = wide_of(zero_point(m->x_zero, 0, m->x_is_signed)), scale = wide_of(*m->x_scale);
    wide y_scale = wide_of(*m->y_scale);
    level_range levels = range_of_levels(zero_point(m->y_zero, 0, m->y_is_signed), m->low, m->high);
    for (int64_t r = 0; r < m->rows; r++) {
        const uint8_t *x = m->x + r * m->count;
        uint8_t *y = m->y + r * m->y_row;
        for (int64_t i = part.first; i < part.last; i += WIDE) {
            wide real = (byte_row_load(x, i, m->count, m->x_is_signed) - zero) * scale;
            wide level = mapped(m->function, real, m->alpha) / y_scale;
            store_bytes(y + i, quantised_levels(level, levels), m->count - i);
        }
    }
}

typedef struct { const byte_map *maps; int64_t count; } byte_maps;

SHARED_KERNEL(aegis_byte_map, byte_maps) {
    const byte_maps *m = arguments;
    for (int64_t i = 0; i < m->count; i++) map_bytes(&m->maps[i], self);
}
