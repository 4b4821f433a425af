/* Comparisons, logic and selection, with broadcasting over four dimensions as in elementwise.c. */
#include "step.h"

enum { RANK = 4 };

typedef struct {
    const void *a, *b;
    uint8_t *y;
    int64_t shape[RANK]; /* of the result; leading ones fill it up */
    int64_t a_strides[RANK], b_strides[RANK]; /* in elements; the last ones are 0 or 1 */
} comparison;

/* Runs of the last dimension; where an operand stays the same in one, the compiler knows it. */
#define COMPARE(name, type, expression)                                                      \
    INLINE void name##_run(const type *a, const type *b, uint8_t *y, int64_t count, int a_step, \
                           int b_step) {                                                     \
        for (int64_t i = 0; i < count; i++) {                                                \
            type p = a[i * a_step], q = b[i * b_step];                                       \
            y[i] = (uint8_t)(expression);                                                    \
        }                                                                                    \
    }                                                                                        \
    SHARED_KERNEL(aegis_##name, comparison) {                                                \
        const comparison *c = arguments;                                                     \
        const int64_t *n = c->shape, *s = c->a_strides, *t = c->b_strides;                   \
        range mine = part_of(self, n[0] * n[1] * n[2]);                                      \
        for (int64_t run = mine.first; run < mine.last; run++) {                             \
            int64_t i = run / n[2] / n[1], j = run / n[2] % n[1], k = run % n[2];            \
            const type *a = (const type *)c->a + i * s[0] + j * s[1] + k * s[2];             \
            const type *b = (const type *)c->b + i * t[0] + j * t[1] + k * t[2];             \
            uint8_t *y = c->y + run * n[3];                                                  \
            if (s[3] && t[3]) name##_run(a, b, y, n[3], 1, 1);                               \
            else if (s[3]) name##_run(a, b, y, n[3], 1, 0);                                  \
            else if (t[3]) name##_run(a, b, y, n[3], 0, 1);                                  \
            else name##_run(a, b, y, n[3], 0, 0);                                            \
        }                                                                                    \
    }

#define COMPARISONS(name, type)                    \
    COMPARE(equal_##name, type, p == q)            \
    COMPARE(greater_##name, type, p > q)           \
    COMPARE(less_##name, type, p < q)              \
    COMPARE(greater_or_equal_##name, type, p >= q) \
    COMPARE(less_or_equal_##name, type, p <= q)

COMPARISONS(float32, float)
COMPARISONS(int64, int64_t)
COMPARISONS(int32, int32_t)
COMPARISONS(uint8, uint8_t)
COMPARISONS(int8, int8_t)

/* Truth values are 0 or 1. */
COMPARE(equal_bool, uint8_t, p == q)
COMPARE(and_bool, uint8_t, p & q)
COMPARE(or_bool, uint8_t, p | q)
COMPARE(xor_bool, uint8_t, p ^ q)

typedef struct {
    const uint8_t *condition;
    const void *a, *b;
    void *y;
    int64_t shape[RANK];
    int64_t condition_strides[RANK], a_strides[RANK], b_strides[RANK]; /* in elements */
} selection;

/* By the size of an element; what it means does not matter. */
#define SELECT(name, type)                                                                   \
    SHARED_KERNEL(aegis_select_##name, selection) {                                          \
        const selection *w = arguments;                                                      \
        const int64_t *n = w->shape, *r = w->condition_strides, *s = w->a_strides, *t = w->b_strides; \
        range mine = part_of(self, n[0] * n[1] * n[2]);                                      \
        for (int64_t run = mine.first; run < mine.last; run++) {                             \
            int64_t i = run / n[2] / n[1], j = run / n[2] % n[1], k = run % n[2];            \
            const uint8_t *c = w->condition + i * r[0] + j * r[1] + k * r[2];                \
            const type *a = (const type *)w->a + i * s[0] + j * s[1] + k * s[2];             \
            const type *b = (const type *)w->b + i * t[0] + j * t[1] + k * t[2];             \
            type *y = (type *)w->y + run * n[3];                                             \
            if (r[3] == 1 && s[3] == 1 && t[3] == 1)                                         \
                for (int64_t x = 0; x < n[3]; x++) y[x] = c[x] ? a[x] : b[x];                \
            else                                                                             \
                for (int64_t x = 0; x < n[3]; x++) y[x] = c[x * r[3]] ? a[x * s[3]] : b[x * t[3]]; \
        }                                                                                    \
    }

SELECT(1, uint8_t)
SELECT(2, uint16_t)
SELECT(4, uint32_t)
SELECT(8, uint64_t)
