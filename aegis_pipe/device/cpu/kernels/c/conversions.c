/* Casts between integers, truth values, float32 and float64.
 *
 * Integers keep their lowest bits; whatever is not 0, NaN among it, is true. Floats lose their fraction.
 * What an int32 (for int64: an int64) can not hold, NaN among it, becomes its lowest value, as x86
 * processors have it; shorter integers take the lowest bits of that.
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

/* 2^31 and 2^63 are floats, the greatest integers below them may not be: `<` decides. */
#define TO_INT32(x) ((x) >= -0x1p31f && (x) < 0x1p31f ? (int32_t)(x) : INT32_MIN)
#define TO_INT64(x) ((x) >= -0x1p63f && (x) < 0x1p63f ? (int64_t)(x) : INT64_MIN)

#define CASTS_OF_FLOATS(name, type)                \
    CAST(name##_int64, type, int64_t, TO_INT64(x)) \
    CAST(name##_int32, type, int32_t, TO_INT32(x)) \
    CAST(name##_int16, type, int16_t, TO_INT32(x)) \
    CAST(name##_uint16, type, uint16_t, TO_INT32(x)) \
    CAST(name##_int8, type, int8_t, TO_INT32(x))   \
    CAST(name##_uint8, type, uint8_t, TO_INT32(x)) \
    CAST(name##_bool, type, uint8_t, x != 0)

CASTS_OF_FLOATS(float32, float)
CASTS_OF_FLOATS(float64, double)
CAST(float32_float64, float, double, x)
CAST(float64_float32, double, float, x)
