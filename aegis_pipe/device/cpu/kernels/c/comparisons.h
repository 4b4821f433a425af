/* Comparisons, logic and selection: runs of elements.
 *
 * Who includes this has defined what every COMPARE and SELECT of the lists below becomes, of
 * COMPARE_RUN and SELECT_RUN.
 */
#include "vector.h"

/* Where an operand stays the same in a run, the compiler knows it. */
#define COMPARE_RUN(name, type, expression)                                                  \
    INLINE void name##_stepping(const type *a, const type *b, uint8_t *y, int64_t count,     \
                                int a_step, int b_step) {                                    \
        for (int64_t i = 0; i < count; i++) {                                                \
            type p = a[i * a_step], q = b[i * b_step];                                       \
            y[i] = (uint8_t)(expression);                                                    \
        }                                                                                    \
    }                                                                                        \
    INLINE void name##_run(const type *a, const type *b, uint8_t *y, int64_t count,          \
                           int64_t a_step, int64_t b_step) {                                 \
        if (a_step && b_step) name##_stepping(a, b, y, count, 1, 1);                         \
        else if (a_step) name##_stepping(a, b, y, count, 1, 0);                              \
        else if (b_step) name##_stepping(a, b, y, count, 0, 1);                              \
        else name##_stepping(a, b, y, count, 0, 0);                                          \
    }

#define SELECT_RUN(name, type)                                                               \
    INLINE void select_##name##_run(const uint8_t *c, const type *a, const type *b, type *y, \
                                    int64_t count, int64_t c_step, int64_t a_step,           \
                                    int64_t b_step) {                                        \
        if (c_step == 1 && a_step == 1 && b_step == 1)                                       \
            for (int64_t x = 0; x < count; x++) y[x] = c[x] ? a[x] : b[x];                   \
        else                                                                                 \
            for (int64_t x = 0; x < count; x++) y[x] = c[x * c_step] ? a[x * a_step] : b[x * b_step]; \
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

/* By the size of an element; what it means does not matter. */
SELECT(1, uint8_t)
SELECT(2, uint16_t)
SELECT(4, uint32_t)
SELECT(8, uint64_t)
