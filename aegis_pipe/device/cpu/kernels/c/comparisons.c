/* Comparisons, logic and selection, with broadcasting over four dimensions as in elementwise.c. */
#include "step.h"

enum { RANK = 4 };

typedef struct {
    const void *a, *b;
    uint8_t *y;
    int64_t shape[RANK]; /* of the result; leading ones fill it up */
    int64_t a_strides[RANK], b_strides[RANK]; /* in elements; the last ones are 0 or 1 */
} comparison;

#define COMPARE(name, type, expression)                                                      \
    COMPARE_RUN(name, type, expression)                                                      \
    SHARED_KERNEL(aegis_##name, comparison) {                                                \
        const comparison *c = arguments;                                                     \
        const int64_t *n = c->shape, *s = c->a_strides, *t = c->b_strides;                   \
        range mine = part_of(self, n[0] * n[1] * n[2]);                                      \
        for (int64_t run = mine.first; run < mine.last; run++) {                             \
            int64_t i = run / n[2] / n[1], j = run / n[2] % n[1], k = run % n[2];            \
            const type *a = (const type *)c->a + i * s[0] + j * s[1] + k * s[2];             \
            const type *b = (const type *)c->b + i * t[0] + j * t[1] + k * t[2];             \
            name##_run(a, b, c->y + run * n[3], n[3], s[3], t[3]);                           \
        }                                                                                    \
    }

typedef struct {
    const uint8_t *condition;
    const void *a, *b;
    void *y;
    int64_t shape[RANK];
    int64_t condition_strides[RANK], a_strides[RANK], b_strides[RANK]; /* in elements */
} selection;

#define SELECT(name, type)                                                                   \
    SELECT_RUN(name, type)                                                                   \
    SHARED_KERNEL(aegis_select_##name, selection) {                                          \
        const selection *w = arguments;                                                      \
        const int64_t *n = w->shape, *r = w->condition_strides, *s = w->a_strides, *t = w->b_strides; \
        range mine = part_of(self, n[0] * n[1] * n[2]);                                      \
        for (int64_t run = mine.first; run < mine.last; run++) {                             \
            int64_t i = run / n[2] / n[1], j = run / n[2] % n[1], k = run % n[2];            \
            const uint8_t *c = w->condition + i * r[0] + j * r[1] + k * r[2];                \
            const type *a = (const type *)w->a + i * s[0] + j * s[1] + k * s[2];             \
            const type *b = (const type *)w->b + i * t[0] + j * t[1] + k * t[2];             \
            select_##name##_run(c, a, b, (type *)w->y + run * n[3], n[3], r[3], s[3], t[3]); \
        }                                                                                    \
    }

#include "comparisons.h"
