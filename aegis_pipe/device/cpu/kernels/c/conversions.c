/* Casts between integers, truth values and floats, whole tensors at once. */
#include "step.h"

typedef struct {
    const void *x;
    void *y;
    int64_t count;
} conversion;

#define CAST(name, from, to, expression)                                                     \
    CAST_RUN(name, from, to, expression)                                                     \
    SHARED_KERNEL(aegis_cast_##name, conversion) {                                           \
        const conversion *c = arguments;                                                     \
        range mine = part_of(self, c->count);                                                \
        const from *source = c->x;                                                           \
        to *target = c->y;                                                                   \
        cast_##name##_run(source + mine.first, target + mine.first, mine.last - mine.first); \
    }

#include "conversions.h"
