/* Casts between integers, truth values and float32, where C says what comes out.
 *
 * Integers keep their lowest bits; whatever is not 0, NaN among it, is true.
 */
#include "step.h"

typedef struct {
    const void *x;
    void *y;
    int64_t count;
} conversion;

#define CAST(name, from, to, expression)                                                     \
    SHARED_KERNEL(aegis_cast_##name, conversion) {                                           \
        const conversion *c = arguments;                                                     \
        range mine = part_of(self, c->count);                                                \
        const from *source = c->x;                                                           \
        to *target = c->y;                                                                   \
        for (int64_t i = mine.first; i < mine.last; i++) {                                   \
            from x = source[i];                                                              \
            target[i] = (to)(expression);                                                    \
        }                                                                                    \
    }

#define CASTS_OF(name, type)                       \
    CAST(name##_float32, type, float, x)           \
    CAST(name##_int64, type, int64_t, x)           \
    CAST(name##_int32, type, int32_t, x)           \
    CAST(name##_uint8, type, uint8_t, x)           \
    CAST(name##_int8, type, int8_t, x)             \
    CAST(name##_bool, type, uint8_t, x != 0)

CASTS_OF(int64, int64_t)
CASTS_OF(int32, int32_t)
CASTS_OF(uint8, uint8_t)
CASTS_OF(int8, int8_t)
CASTS_OF(bool, uint8_t)
CAST(float32_bool, float, uint8_t, x != 0)
