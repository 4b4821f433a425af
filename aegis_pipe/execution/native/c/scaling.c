/* What folding does to weights: each row times a factor, in one pass.

   Products of double, rounded once: the bits of `(weights.astype(float64) * factors).astype(float32)`. */

#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { LANES = 8 };

typedef float floats __attribute__((vector_size(LANES * sizeof(float))));
typedef double doubles __attribute__((vector_size(LANES * sizeof(double))));
typedef uint32_t words __attribute__((vector_size(LANES * sizeof(uint32_t))));

static const uint32_t EXPONENT = 0x7F800000u; /* all ones: infinite, or no number */

/* to[r, i] = from[r, i] * factors[r]; returns 1 if all results are finite, else 0. */
EXPORT int64_t aegis_scale_rows(const float *from, const double *factors, int64_t rows, int64_t length,
                                float *to) {
    words unsound = {};
    uint32_t bits, rest_unsound = 0;
    for (int64_t row = 0; row < rows; row++) {
        double factor = factors[row];
        int64_t i = 0;
        for (; i + LANES <= length; i += LANES) {
            floats x;
            memcpy(&x, from + i, sizeof x);
            x = __builtin_convertvector(__builtin_convertvector(x, doubles) * factor, floats);
            words held;
            memcpy(&held, &x, sizeof held);
            unsound |= (words)((held & EXPONENT) == EXPONENT);
            memcpy(to + i, &x, sizeof x);
        }
        for (; i < length; i++) {
            to[i] = (float)((double)from[i] * factor);
            memcpy(&bits, to + i, sizeof bits);
            rest_unsound |= (bits & EXPONENT) == EXPONENT;
        }
        from += length, to += length;
    }
    for (int lane = 0; lane < LANES; lane++) rest_unsound |= unsound[lane];
    return rest_unsound == 0;
}
