/* Element by element between bytes on different scales, and from floats on a scale of their own. */
#include "functions.h"
#include "levels.h"

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

/* Softmax of bytes: X[outer][count][inner], over the `count`. Zero points of X fall out. */
typedef struct {
    const uint8_t *x;
    uint8_t *y;
    const float *x_scale, *y_scale;
    const uint8_t *y_zero;
    int64_t outer, count, inner;
    int64_t x_is_signed, y_is_signed;
    float low, high;
} byte_softmax;

/* exp(-k scale) for each distance k of two bytes. */
enum { DISTANCES = 256 };

INLINE wide powers_at(const float *powers, wide distance) {
    wide_int at = __builtin_convertvector(distance, wide_int);
    wide v;
    UNROLL for (int i = 0; i < WIDE; i++) v[i] = powers[at[i]];
    return v;
}

/* Behind the end of a row: as far from the largest as can be, and not counted. */
INLINE wide row_powers(const byte_softmax *s, const float *powers, const uint8_t *x, int64_t i, wide largest) {
    wide distance = largest - byte_row_load(x, i, s->count, s->x_is_signed);
    if (i + WIDE <= s->count) return powers_at(powers, distance);
    distance = wide_fill_behind(distance, s->count - i, 0);
    return wide_fill_behind(powers_at(powers, distance), s->count - i, 0);
}

static void softmax_row(const byte_softmax *s, const float *powers, level_range levels, const uint8_t *x, uint8_t *y) {
    wide best = wide_of(-DISTANCES), sum = wide_of(0), y_scale = wide_of(*s->y_scale);
    for (int64_t i = 0; i < s->count; i += WIDE)
        best = wide_max(best, wide_fill_behind(byte_row_load(x, i, s->count, s->x_is_signed),
                                               smaller(WIDE, s->count - i), -DISTANCES));
    wide largest = wide_of(wide_largest(best));
    for (int64_t i = 0; i < s->count; i += WIDE) sum += row_powers(s, powers, x, i, largest);
    wide total = wide_of(wide_sum(sum));
    for (int64_t i = 0; i < s->count; i += WIDE)
        store_bytes(y + i, quantised_levels(row_powers(s, powers, x, i, largest) / total / y_scale, levels), s->count - i);
}

/* Up to 16 neighbouring sums. */
static void softmax_columns(const byte_softmax *s, const float *powers, level_range levels, const uint8_t *x,
                            uint8_t *y, int64_t columns) {
    wide best = wide_of(-DISTANCES), sum = wide_of(0), y_scale = wide_of(*s->y_scale);
    for (int64_t k = 0; k < s->count; k++)
        best = wide_max(best, byte_row_load(x + k * s->inner, 0, columns, s->x_is_signed));
    for (int64_t k = 0; k < s->count; k++)
        sum += powers_at(powers, best - byte_row_load(x + k * s->inner, 0, columns, s->x_is_signed));
    for (int64_t k = 0; k < s->count; k++) {
        wide power = powers_at(powers, best - byte_row_load(x + k * s->inner, 0, columns, s->x_is_signed));
        store_bytes(y + k * s->inner, quantised_levels(power / sum / y_scale, levels), columns);
    }
}

SHARED_KERNEL(aegis_byte_softmax, byte_softmax) {
    const byte_softmax *s = arguments;
    float powers[DISTANCES];
    const wide lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < DISTANCES; i += WIDE) wide_store(powers + i, wide_exp_short(-(lane + (float)i) * *s->x_scale));
    level_range levels = range_of_levels(zero_point(s->y_zero, 0, s->y_is_signed), s->low, s->high);
    int64_t blocks = s->inner == 1 ? 1 : ceil_divide(s->inner, WIDE), whole = s->count * s->inner;
    range mine = part_of(self, s->outer * blocks);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t column = unit % blocks * WIDE, start = unit / blocks * whole + column;
        if (s->inner == 1) softmax_row(s, powers, levels, s->x + start, s->y + start);
        else softmax_columns(s, powers, levels, s->x + start, s->y + start, smaller(WIDE, s->inner - column));
    }
}
