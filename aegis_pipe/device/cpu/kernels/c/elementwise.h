/* Functions of elements, and runs of them: of one operand, and of two.
 *
 * 16 elements at a time; a remainder goes through the same code in a padded register, so a value
 * does not depend on its place. Results may be written over an operand.
 *
 * Who includes this has defined what every MAP and PAIR of the list below becomes, of MAP_RUN and
 * PAIR_RUN.
 */
#include "functions.h"

#define MAP_RUN(name, expression)                                                        \
    INLINE wide name##_of(wide x, wide p, wide q) { (void)p, (void)q; return expression; } \
    INLINE void name##_run(const float *x, float *y, int64_t count, float first, float second) { \
        wide p = wide_of(first), q = wide_of(second);                                    \
        int64_t i = 0, rest = count % WIDE;                                              \
        for (; i < count - rest; i += WIDE)                                              \
            wide_store(y + i, name##_of(wide_load(x + i), p, q));                        \
        if (rest)                                                                        \
            wide_store_part(y + i, name##_of(wide_load_part(x + i, rest), p, q), rest);  \
    }

/* An operand with a step of 0 stays the same; steps are constants wherever this is inlined. */
#define PAIR_RUN(name, expression)                                                       \
    INLINE wide name##_of(wide a, wide b) { return expression; }                         \
    INLINE void name##_stepping(const float *a, const float *b, float *y, int64_t count, int a_step, \
                                int b_step) {                                            \
        wide same_a = wide_of(*a), same_b = wide_of(*b);                                 \
        int64_t i = 0, rest = count % WIDE;                                              \
        for (; i < count - rest; i += WIDE)                                              \
            wide_store(y + i, name##_of(a_step ? wide_load(a + i) : same_a,              \
                                        b_step ? wide_load(b + i) : same_b));            \
        if (rest)                                                                        \
            wide_store_part(y + i,                                                       \
                            name##_of(a_step ? wide_load_part(a + i, rest) : same_a,     \
                                      b_step ? wide_load_part(b + i, rest) : same_b), rest); \
    }                                                                                    \
    INLINE void name##_run(const float *a, const float *b, float *y, int64_t count, int64_t a_step, \
                           int64_t b_step) {                                             \
        if (a_step && b_step) name##_stepping(a, b, y, count, 1, 1);                     \
        else if (a_step) name##_stepping(a, b, y, count, 1, 0);                          \
        else if (b_step) name##_stepping(a, b, y, count, 0, 1);                          \
        else name##_stepping(a, b, y, count, 0, 0);                                      \
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

PAIR(add, a + b)
PAIR(subtract, a - b)
PAIR(multiply, a * b)
PAIR(divide, a / b)
PAIR(maximum, wide_max(a, b))
PAIR(minimum, wide_min(a, b))
PAIR(bias_gelu, wide_gelu(a + b))
PAIR(bias_gelu_tanh, wide_gelu_tanh(a + b))
PAIR(prelu, wide_select(a < 0.0f, a * b, a))
