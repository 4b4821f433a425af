/* Functions of 16 floats at once. Errors are of the whole function against the exact value. */
#ifndef AEGIS_FUNCTIONS_H
#define AEGIS_FUNCTIONS_H

#include "vector.h"

/* exp(r), |r| <= ln 2 / 2: 1 + r + r^2 P(r), P a minimax fit of our own by Lawson's algorithm; error
 * 3e-9 before rounding. */
INLINE wide exp_of_rest(wide r) {
    wide y = wide_of(0.0013814467238262296f);
    y = multiply_add(y, r, wide_of(0.008368780836462975f));
    y = multiply_add(y, r, wide_of(0.04166839271783829f));
    y = multiply_add(y, r, wide_of(0.1666651964187622f));
    y = multiply_add(y, r, wide_of(0.4999999403953552f));
    y = multiply_add(y, r, wide_of(1.0f));
    return multiply_add(y, r, wide_of(1.0f));
}

/* x - n ln 2 with ln 2 in two parts, the first of few digits, so that its product with n is exact. */
INLINE wide less_logarithms(wide x, wide n) {
    return multiply_add(n, wide_of(2.12194440e-4f), multiply_add(n, wide_of(-0.693359375f), x));
}

/* exp(x): x = n ln 2 + r, then exp(r) and 2^n by its bits; the latter in two factors, so that results
 * below 2^-126 come out denormal and those above 2^127 are not lost. */
INLINE wide wide_exp(wide x) {
    const wide magic = wide_of(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    wide bounded = wide_at_most(wide_at_least(x, wide_of(-104.0f)), wide_of(89.0f));
    wide n = multiply_add(bounded, wide_of(1.44269504088896341f), magic) - magic;
    wide y = exp_of_rest(less_logarithms(bounded, n));
    wide known = wide_select(n != n, wide_of(0), n);
    wide_int power = __builtin_convertvector(known, wide_int), half = power >> 1;
    return y * (wide)((half + 127) << 23) * (wide)((power - half + 127) << 23);
}

/* exp of x <= 89 for use in a sum: inf from 88.4 on and 0 below -87.7 already. The rounding constant
 * carries the exponent's bias, so that its bits shifted left are 2^n. */
INLINE wide wide_exp_short(wide x) {
    const wide magic = wide_of(12582912.0f + 127.0f);
    wide bounded = wide_at_least(x, wide_of(-88.0f));
    wide shifted = multiply_add(bounded, wide_of(1.44269504088896341f), magic);
    return exp_of_rest(less_logarithms(bounded, shifted - magic)) * (wide)((wide_int)shifted << 23);
}

/* log(x) of normal x > 0, or NaN: x = m 2^n with m around 1, log(m) by a polynomial. Coefficients:
 * Cephes logf. */
INLINE wide wide_log(wide x) {
    wide_int bits = (wide_int)x - 0x3f3504f3; /* of sqrt(1/2): m is in [sqrt(1/2), sqrt(2)) */
    wide n = __builtin_convertvector(bits >> 23, wide), r = (wide)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    wide z = r * r, y = wide_of(7.0376836292e-2f);
    y = multiply_add(y, r, wide_of(-1.1514610310e-1f));
    y = multiply_add(y, r, wide_of(1.1676998740e-1f));
    y = multiply_add(y, r, wide_of(-1.2420140846e-1f));
    y = multiply_add(y, r, wide_of(1.4249322787e-1f));
    y = multiply_add(y, r, wide_of(-1.6668057665e-1f));
    y = multiply_add(y, r, wide_of(2.0000714765e-1f));
    y = multiply_add(y, r, wide_of(-2.4999993993e-1f));
    y = multiply_add(y, r, wide_of(3.3333331174e-1f)) * r * z;
    y = multiply_add(n, wide_of(-2.12194440e-4f), y);
    y = multiply_add(z, wide_of(-0.5f), y) + r;
    return wide_select(x != x, x, multiply_add(n, wide_of(0.693359375f), y));
}

INLINE wide wide_magnitude(wide x) { return (wide)((wide_int)x & 0x7fffffff); }
INLINE wide wide_with_sign(wide magnitude, wide x) {
    return (wide)((wide_int)magnitude | ((wide_int)x & (wide_int)wide_of(-0.0f)));
}

/* 1 / (1 + exp(-x)). */
INLINE wide wide_sigmoid(wide x) { return 1.0f / (1.0f + wide_exp_short(wide_at_most(-x, wide_of(89.0f)))); }

/* tanh: below 0.625 an odd polynomial, above 1 - 2 / (exp(2|x|) + 1). Coefficients: Cephes tanhf. */
INLINE wide wide_tanh(wide x) {
    wide z = x * x, m = wide_magnitude(x);
    wide y = wide_of(-5.70498872745e-3f);
    y = multiply_add(y, z, wide_of(2.06390887954e-2f));
    y = multiply_add(y, z, wide_of(-5.37397155531e-2f));
    y = multiply_add(y, z, wide_of(1.33314422036e-1f));
    y = multiply_add(y, z, wide_of(-3.33332819422e-1f));
    y = multiply_add(y * z, x, x);
    wide large = 1.0f - 2.0f / (wide_exp_short(wide_at_most(m + m, wide_of(89.0f))) + 1.0f);
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

/* x times the normal distribution's integral up to x, and its usual approximation. */
INLINE wide wide_gelu(wide x) { return 0.5f * x * (1.0f + wide_erf(x * 0.70710678118654752f)); }
INLINE wide wide_gelu_tanh(wide x) {
    return 0.5f * x * (1.0f + wide_tanh(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

#endif
