/* Element by element: functions of one operand, and pairs with broadcasting.
 *
 * 16 elements at a time; a remainder goes through the same code in a padded register, so a value
 * does not depend on its place. Results may be written over an operand.
 *
 * `aegis_<function>_rows` is a function in place over rows that are not dense: what another kernel
 * does to its results while they are in cache (see gemm.c), with the bits of the kernel of its own.
 */
#include "functions.h"
#include "step.h"

typedef struct {
    const float *x;
    float *y;
    int64_t count;
    float p, q; /* the function's parameters */
} map;

#define MAP(name, expression)                                                            \
    INLINE wide name##_of(wide x, wide p, wide q) { (void)p, (void)q; return expression; } \
    SHARED_KERNEL(aegis_##name, map) {                                                   \
        const map *m = arguments;                                                        \
        wide p = wide_of(m->p), q = wide_of(m->q);                                       \
        range mine = part_of(self, ceil_divide(m->count, WIDE));                         \
        int64_t i = mine.first * WIDE, end = smaller(m->count, mine.last * WIDE), rest = (end - i) % WIDE; \
        for (; i < end - rest; i += WIDE)                                                \
            wide_store(m->y + i, name##_of(wide_load(m->x + i), p, q));                  \
        if (rest)                                                                        \
            wide_store_part(m->y + i, name##_of(wide_load_part(m->x + i, rest), p, q), rest); \
    }                                                                                    \
    EXPORT void aegis_##name##_rows(float *y, int64_t row, int64_t rows, int64_t columns, float p, float q) { \
        for (int64_t r = 0; r < rows; r++, y += row)                                     \
            for (int64_t i = 0; i < columns; i += WIDE)                                  \
                row_store(y, i, columns, name##_of(row_load(y, i, columns), wide_of(p), wide_of(q))); \
    }

MAP(relu, wide_at_least(x, wide_of(0)))
MAP(leaky_relu, wide_select(x < 0.0f, x * p, x))
MAP(clip, wide_at_most(wide_at_least(x, p), q))
MAP(sigmoid, wide_sigmoid(x))
MAP(tanh, wide_tanh(x))
MAP(exp, wide_exp(x))
MAP(erf, wide_erf(x))
MAP(gelu, wide_gelu(x))
MAP(gelu_tanh, wide_gelu_tanh(x))
/* p * x + q, held in [0, 1]. */
MAP(hard_sigmoid, wide_at_most(wide_at_least(x * p + q, wide_of(0)), wide_of(1)))
MAP(hard_swish, x * wide_at_most(wide_at_least(x * (1.0f / 6.0f) + 0.5f, wide_of(0)), wide_of(1)))
MAP(swish, x * wide_sigmoid(p * x))
MAP(square, x * x)
MAP(sqrt, __builtin_elementwise_sqrt(x))
MAP(negate, -x)
MAP(magnitude, wide_magnitude(x))
MAP(reciprocal, 1.0f / x)

enum { RANK = 4 };

typedef struct {
    const float *a, *b;
    float *y;
    int64_t shape[RANK]; /* of the result; leading ones fill it up */
    int64_t a_strides[RANK], b_strides[RANK]; /* in floats; the last ones are 0 or 1 */
} pair;

/* A worker's part: runs of the last dimension, or a part of each if there are few. */
typedef struct { range rows, columns; } runs;

INLINE runs runs_of(const pair *p, worker self) {
    int64_t count = p->shape[0] * p->shape[1] * p->shape[2], length = p->shape[3];
    if (count >= 8 * self.count) return (runs){part_of(self, count), {0, length}};
    range part = part_of(self, ceil_divide(length, WIDE));
    return (runs){{0, count}, {part.first * WIDE, smaller(length, part.last * WIDE)}};
}

/* One run of the last dimension; `a_step` and `b_step` are constants wherever this is inlined. */
#define PAIR(name, expression)                                                           \
    INLINE wide name##_of(wide a, wide b) { return expression; }                         \
    INLINE void name##_run(const float *a, const float *b, float *y, int64_t count, int a_step, \
                           int b_step) {                                                 \
        wide same_a = wide_of(*a), same_b = wide_of(*b);                                 \
        int64_t i = 0, rest = count % WIDE;                                              \
        for (; i < count - rest; i += WIDE)                                              \
            wide_store(y + i, name##_of(a_step ? wide_load(a + i) : same_a,              \
                                        b_step ? wide_load(b + i) : same_b));            \
        if (rest)                                                                        \
            wide_store_part(y + i,                                                       \
                            name##_of(a_step ? wide_load_part(a + i, rest) : same_a,  \
                                      b_step ? wide_load_part(b + i, rest) : same_b), rest); \
    }                                                                                    \
    SHARED_KERNEL(aegis_##name, pair) {                                                  \
        const pair *p = arguments;                                                       \
        const int64_t *n = p->shape, *s = p->a_strides, *t = p->b_strides;               \
        runs mine = runs_of(p, self);                                                    \
        for (int64_t run = mine.rows.first; run < mine.rows.last; run++) {               \
            int64_t i = run / n[2] / n[1], j = run / n[2] % n[1], k = run % n[2];        \
            int64_t start = mine.columns.first, count = mine.columns.last - start;       \
            const float *a = p->a + i * s[0] + j * s[1] + k * s[2] + start * s[3];       \
            const float *b = p->b + i * t[0] + j * t[1] + k * t[2] + start * t[3];       \
            float *y = p->y + run * n[3] + start;                                        \
            if (count <= 0) continue;                                                    \
            if (s[3] && t[3]) name##_run(a, b, y, count, 1, 1);                          \
            else if (s[3]) name##_run(a, b, y, count, 1, 0);                             \
            else if (t[3]) name##_run(a, b, y, count, 0, 1);                             \
            else name##_run(a, b, y, count, 0, 0);                                       \
        }                                                                                \
    }

PAIR(add, a + b)
PAIR(subtract, a - b)
PAIR(multiply, a * b)
PAIR(divide, a / b)
PAIR(maximum, wide_max(a, b))
PAIR(minimum, wide_min(a, b))
PAIR(bias_gelu, wide_gelu(a + b))
PAIR(bias_gelu_tanh, wide_gelu_tanh(a + b))
PAIR(prelu, wide_select(a < 0.0f, a * b, a))
