/* Casts between integers, truth values and floats.
 *
 * Integers keep their lowest bits; whatever is not 0, NaN among it, is true. Floats lose their fraction.
 * What an int32 (for int64: an int64) can not hold, NaN among it, becomes its lowest value, as x86
 * processors have it; shorter integers take the lowest bits of that, a uint32 those of an int64. A uint64
 * takes what it can hold, and else what an int64 would.
 *
 * float16 and bfloat16 are widened to float32 first, and come from it: rounded to nearest, ties to even.
 *
 * Who includes this has defined what every CAST of the lists below becomes, of CAST_RUN.
 */
#include "halves.h"

#define CAST_RUN(name, from, to, expression)                                                 \
    INLINE void cast_##name##_run(const from *source, to *target, int64_t count) {           \
        for (int64_t i = 0; i < count; i++) {                                                \
            from x = source[i];                                                              \
            target[i] = (to)(expression);                                                    \
        }                                                                                    \
    }

#define CASTS_OF(name, type)                             \
    CAST(name##_float32, type, float, x)                 \
    CAST(name##_float64, type, double, x)                \
    CAST(name##_float16, type, _Float16, (float)x)       \
    CAST(name##_bfloat16, type, uint16_t, to_bfloat((float)x)) \
    CAST(name##_int64, type, int64_t, x)                 \
    CAST(name##_int32, type, int32_t, x)                 \
    CAST(name##_int16, type, int16_t, x)                 \
    CAST(name##_uint16, type, uint16_t, x)               \
    CAST(name##_uint64, type, uint64_t, x)               \
    CAST(name##_uint32, type, uint32_t, x)               \
    CAST(name##_uint8, type, uint8_t, x)                 \
    CAST(name##_int8, type, int8_t, x)                   \
    CAST(name##_bool, type, uint8_t, x != 0)

CASTS_OF(int64, int64_t)
CASTS_OF(int32, int32_t)
CASTS_OF(uint64, uint64_t)
CASTS_OF(uint32, uint32_t)
CASTS_OF(int16, int16_t)
CASTS_OF(uint16, uint16_t)
CASTS_OF(uint8, uint8_t)
CASTS_OF(int8, int8_t)
CASTS_OF(bool, uint8_t)

/* 2^31 and 2^63 are floats, the greatest integers below them may not be: `<` decides. */
#define TO_INT32(x) ((x) >= -0x1p31f && (x) < 0x1p31f ? (int32_t)(x) : INT32_MIN)
#define TO_INT64(x) ((x) >= -0x1p63f && (x) < 0x1p63f ? (int64_t)(x) : INT64_MIN)
#define TO_UINT64(x) ((x) >= 0x1p63f && (x) < 0x1p64f ? (uint64_t)(x) : (uint64_t)TO_INT64(x))

#define CASTS_OF_FLOATS(name, type, widened)                 \
    CAST(name##_int64, type, int64_t, TO_INT64(widened(x)))  \
    CAST(name##_int32, type, int32_t, TO_INT32(widened(x)))  \
    CAST(name##_int16, type, int16_t, TO_INT32(widened(x)))  \
    CAST(name##_uint64, type, uint64_t, TO_UINT64(widened(x))) \
    CAST(name##_uint32, type, uint32_t, TO_INT64(widened(x))) \
    CAST(name##_uint16, type, uint16_t, TO_INT32(widened(x))) \
    CAST(name##_int8, type, int8_t, TO_INT32(widened(x)))    \
    CAST(name##_uint8, type, uint8_t, TO_INT32(widened(x)))  \
    CAST(name##_bool, type, uint8_t, widened(x) != 0)

CASTS_OF_FLOATS(float32, float, )
CASTS_OF_FLOATS(float64, double, )
CASTS_OF_FLOATS(float16, _Float16, (float))
CASTS_OF_FLOATS(bfloat16, uint16_t, from_bfloat)
CAST(float32_float64, float, double, x)
CAST(float64_float32, double, float, x)
CAST(float16_float32, _Float16, float, x)
CAST(float32_float16, float, _Float16, x)
CAST(bfloat16_float32, uint16_t, float, from_bfloat(x))
CAST(float32_bfloat16, float, uint16_t, to_bfloat(x))
CAST(float16_bfloat16, _Float16, uint16_t, to_bfloat((float)x))
CAST(bfloat16_float16, uint16_t, _Float16, from_bfloat(x))
CAST(float16_float64, _Float16, double, x)
CAST(bfloat16_float64, uint16_t, double, from_bfloat(x))
CAST(float64_bfloat16, double, uint16_t, to_bfloat((float)x))
