/* Functions of 16 floats at once. Errors are of the whole function against the exact value. */
#ifndef AEGIS_FUNCTIONS_H
#define AEGIS_FUNCTIONS_H

#include "vector.h"

/* exp(x): x = n ln 2 + r, |r| <= ln 2 / 2, then a polynomial in r and 2^n by its bits, in two
 * factors so that results below 2^-126 come out denormal. Coefficients: Cephes expf (S. Moshier). */
INLINE wide wide_exp(wide x) {
    const wide magic = wide_of(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    wide bounded = wide_at_most(wide_at_least(x, wide_of(-104.0f)), wide_of(89.0f));
    wide n = (bounded * wide_of(1.44269504088896341f) + magic) - magic;
    wide r = multiply_add(n, wide_of(-0.693359375f), bounded);
    r = multiply_add(n, wide_of(2.12194440e-4f), r);
    wide y = wide_of(1.9875691500e-4f);
    y = multiply_add(y, r, wide_of(1.3981999507e-3f));
    y = multiply_add(y, r, wide_of(8.3334519073e-3f));
    y = multiply_add(y, r, wide_of(4.1665795894e-2f));
    y = multiply_add(y, r, wide_of(1.6666665459e-1f));
    y = multiply_add(y, r, wide_of(5.0000001201e-1f));
    y = multiply_add(y, r * r, r) + 1.0f;
    wide known = wide_select(bounded != bounded, wide_of(0), n);
    wide_int power = __builtin_convertvector(known, wide_int), half = power >> 1;
    y = y * (wide)((half + 127) << 23) * (wide)((power - half + 127) << 23);
    return y;
}

/* exp where overflow can not be and denormal results may be 0: x <= 88, and 0 below -87.7. The
 * rounding constant carries the exponent's bias, so that its bits shifted left are 2^n. */
INLINE wide wide_exp_short(wide x) {
    const wide magic = wide_of(12582912.0f + 127.0f);
    wide bounded = wide_at_least(x, wide_of(-88.0f));
    wide shifted = multiply_add(bounded, wide_of(1.44269504088896341f), magic);
    wide n = shifted - magic;
    wide r = multiply_add(n, wide_of(-0.693359375f), bounded);
    r = multiply_add(n, wide_of(2.12194440e-4f), r);
    wide y = wide_of(1.9875691500e-4f);
    y = multiply_add(y, r, wide_of(1.3981999507e-3f));
    y = multiply_add(y, r, wide_of(8.3334519073e-3f));
    y = multiply_add(y, r, wide_of(4.1665795894e-2f));
    y = multiply_add(y, r, wide_of(1.6666665459e-1f));
    y = multiply_add(y, r, wide_of(5.0000001201e-1f));
    y = multiply_add(y, r * r, r) + 1.0f;
    return y * (wide)((wide_int)shifted << 23);
}

INLINE wide wide_magnitude(wide x) { return (wide)((wide_int)x & 0x7fffffff); }
INLINE wide wide_with_sign(wide magnitude, wide x) {
    return (wide)((wide_int)magnitude | ((wide_int)x & (wide_int)wide_of(-0.0f)));
}

/* 1 / (1 + exp(-x)). */
INLINE wide wide_sigmoid(wide x) { return 1.0f / (1.0f + wide_exp_short(wide_at_most(-x, wide_of(88.0f)))); }

/* tanh: below 0.625 an odd polynomial, above 1 - 2 / (exp(2|x|) + 1). Coefficients: Cephes tanhf. */
INLINE wide wide_tanh(wide x) {
    wide z = x * x, m = wide_magnitude(x);
    wide y = wide_of(-5.70498872745e-3f);
    y = multiply_add(y, z, wide_of(2.06390887954e-2f));
    y = multiply_add(y, z, wide_of(-5.37397155531e-2f));
    y = multiply_add(y, z, wide_of(1.33314422036e-1f));
    y = multiply_add(y, z, wide_of(-3.33332819422e-1f));
    y = multiply_add(y * z, x, x);
    wide large = 1.0f - 2.0f / (wide_exp_short(wide_at_most(m + m, wide_of(88.0f))) + 1.0f);
    return wide_select(m < 0.625f, y, wide_with_sign(large, x));
}

/* erf: below 1 x P(x^2) (error 4e-8), above 1 - exp(-Q(x)) (2e-9), both before rounding. P and Q are
 * minimax fits of our own by Lawson's algorithm, on [0, 1] and [0.9, 4]; erf(4) rounds to 1. */
INLINE wide wide_erf(wide x) {
    wide z = x * x, m = wide_at_most(wide_magnitude(x), wide_of(4.0f));
    wide p = wide_of(-0.0005631421809084713f);
    p = multiply_add(p, z, wide_of(0.004917551297694445f));
    p = multiply_add(p, z, wide_of(-0.02671131119132042f));
    p = multiply_add(p, z, wide_of(0.11280179768800735f));
    p = multiply_add(p, z, wide_of(-0.37612324953079224f));
    p = multiply_add(p, z, wide_of(1.1283791065216064f)) * x;
    wide q = wide_of(-0.00019718165276572108f);
    q = multiply_add(q, m, wide_of(0.003055606735870242f));
    q = multiply_add(q, m, wide_of(-0.02227708511054516f));
    q = multiply_add(q, m, wide_of(0.10403735190629959f));
    q = multiply_add(q, m, wide_of(0.63705974817276f));
    q = multiply_add(q, m, wide_of(1.1277495622634888f));
    q = multiply_add(q, m, wide_of(0.00017749550170265138f));
    return wide_select(m < 1.0f, p, wide_with_sign(1.0f - wide_exp_short(-q), x));
}

#endif
