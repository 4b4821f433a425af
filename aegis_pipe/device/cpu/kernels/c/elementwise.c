/* Element by element: functions of one operand, and pairs with broadcasting.
 *
 * `aegis_<function>_rows` is a function in place over rows that are not dense: what another kernel
 * does to its results while they are in cache (see gemm.c), with the bits of the kernel of its own.
 */
#include "step.h"

typedef struct {
    const float *x;
    float *y;
    int64_t count;
    float p, q; /* the function's parameters */
} map;

#define MAP(name, expression)                                                            \
    MAP_RUN(name, expression)                                                            \
    SHARED_KERNEL(aegis_##name, map) {                                                   \
        const map *m = arguments;                                                        \
        range mine = part_of(self, ceil_divide(m->count, WIDE));                         \
        int64_t i = mine.first * WIDE, end = smaller(m->count, mine.last * WIDE);        \
        name##_run(m->x + i, m->y + i, end - i, m->p, m->q);                             \
    }                                                                                    \
    EXPORT void aegis_##name##_rows(float *y, int64_t row, int64_t rows, int64_t columns, float p, float q) { \
        for (int64_t r = 0; r < rows; r++, y += row) name##_run(y, y, columns, p, q);    \
    }

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

#define PAIR(name, expression)                                                           \
    PAIR_RUN(name, expression)                                                           \
    SHARED_KERNEL(aegis_##name, pair) {                                                  \
        const pair *p = arguments;                                                       \
        const int64_t *n = p->shape, *s = p->a_strides, *t = p->b_strides;               \
        runs mine = runs_of(p, self);                                                    \
        for (int64_t run = mine.rows.first; run < mine.rows.last; run++) {               \
            int64_t i = run / n[2] / n[1], j = run / n[2] % n[1], k = run % n[2];        \
            int64_t start = mine.columns.first, count = mine.columns.last - start;       \
            const float *a = p->a + i * s[0] + j * s[1] + k * s[2] + start * s[3];       \
            const float *b = p->b + i * t[0] + j * t[1] + k * t[2] + start * t[3];       \
            if (count > 0) name##_run(a, b, p->y + run * n[3] + start, count, s[3], t[3]); \
        }                                                                                \
    }

#include "elementwise.h"
