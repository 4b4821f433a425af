/* Sums, means and extremes of float32 along a stretch of neighbouring dimensions.
 *
 *     X[outer][length][inner]  ->  Y[outer][inner]
 *
 * With inner > 1 the lanes are neighbouring results, and the length runs by. With inner = 1 they are
 * neighbouring elements: 16 partial sums, folded at the end in one order. Either way the length is
 * cut into chunks whose sums are added up, so that errors grow with the chunk and not the length.
 */
#include "functions.h"
#include "step.h"

enum { CHUNK = 4096 };

typedef struct {
    const float *x;
    float *y;
    int64_t outer, length, inner;
    float divisor; /* of a mean; else 1 */
} reduction;

INLINE wide as_it_is(wide x) { return x; }
INLINE wide squared(wide x) { return x * x; }
INLINE wide finish_none(wide x, float divisor) { (void)divisor; return x; }
INLINE wide finish_mean(wide x, float divisor) { return x / divisor; }
INLINE wide finish_root(wide x, float divisor) { (void)divisor; return __builtin_elementwise_sqrt(x); }

/* `nothing` is what nothing adds up to: 0, -inf, inf. */
#define REDUCTION(name, before, combine, nothing, finish)                                             \
    INLINE wide name##_columns(const reduction *r, const float *x, int64_t columns) {                \
        wide total = wide_of(nothing);                                                                 \
        for (int64_t start = 0; start < r->length; start += CHUNK) {                                 \
            wide part = wide_of(nothing);                                                              \
            int64_t end = smaller(r->length, start + CHUNK);                                         \
            if (columns == WIDE)                                                                     \
                for (int64_t k = start; k < end; k++)                                                \
                    part = combine(part, before(wide_load(x + k * r->inner)));                       \
            else                                                                                     \
                for (int64_t k = start; k < end; k++)                                                \
                    part = combine(part, before(wide_load_part(x + k * r->inner, columns)));         \
            total = combine(total, part);                                                            \
        }                                                                                            \
        return total;                                                                                \
    }                                                                                                \
    INLINE float name##_row(const reduction *r, const float *x) {                                    \
        wide total = wide_of(nothing);                                                                 \
        for (int64_t start = 0; start < r->length; start += CHUNK) {                                 \
            wide part = wide_of(nothing);                                                              \
            int64_t k = start, end = smaller(r->length, start + CHUNK), rest = (end - start) % WIDE;  \
            for (; k < end - rest; k += WIDE) part = combine(part, before(wide_load(x + k)));        \
            if (rest)                                                                                \
                part = combine(part, wide_fill_behind(before(wide_load_part(x + k, rest)), rest, nothing)); \
            total = combine(total, part);                                                            \
        }                                                                                            \
        FOLD(total, combine)                                                                         \
        return total[0];                                                                             \
    }                                                                                                \
    SHARED_KERNEL(aegis_reduce_##name, reduction) {                                                  \
        const reduction *r = arguments;                                                              \
        if (r->inner == 1) {                                                                         \
            range mine = part_of(self, r->outer);                                                    \
            for (int64_t i = mine.first; i < mine.last; i++)                                         \
                r->y[i] = finish(wide_of(name##_row(r, r->x + i * r->length)), r->divisor)[0];       \
            return;                                                                                  \
        }                                                                                            \
        int64_t blocks = ceil_divide(r->inner, WIDE);                                                \
        range mine = part_of(self, r->outer * blocks);                                               \
        for (int64_t i = mine.first; i < mine.last; i++) {                                           \
            int64_t row = i / blocks, column = i % blocks * WIDE;                                    \
            int64_t columns = smaller(WIDE, r->inner - column);                                      \
            wide total = name##_columns(r, r->x + row * r->length * r->inner + column, columns);     \
            row_store(r->y + row * r->inner, column, r->inner, finish(total, r->divisor));           \
        }                                                                                            \
    }

REDUCTION(sum, as_it_is, wide_add, 0, finish_none)
REDUCTION(mean, as_it_is, wide_add, 0, finish_mean)
REDUCTION(max, as_it_is, wide_max, -__builtin_inff(), finish_none)
REDUCTION(min, as_it_is, wide_min, __builtin_inff(), finish_none)
REDUCTION(square_sum, squared, wide_add, 0, finish_none)
REDUCTION(length, squared, wide_add, 0, finish_root)
REDUCTION(magnitude_sum, wide_magnitude, wide_add, 0, finish_none)
