/* Sums of four products of bytes in each lane, with the instructions that every processor has.
 *
 * Bytes 0 and 2 of each lane, widened to 16 bits, make one pair, bytes 1 and 3 the other.
 */
#ifndef AEGIS_BYTE_DOT_H
#define AEGIS_BYTE_DOT_H

#include "vector.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef int32_t lanes __attribute__((vector_size(LANES * 4)));
typedef int16_t pairs __attribute__((vector_size(LANES * 4)));
typedef uint16_t unsigned_pairs __attribute__((vector_size(LANES * 4)));

INLINE lanes add_pairs(lanes sums, pairs x, pairs y) {
#if defined(__AVX512F__)
    return sums + (lanes)_mm512_madd_epi16((__m512i)x, (__m512i)y);
#elif defined(__AVX2__)
    return sums + (lanes)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#elif defined(__x86_64__)
    return sums + (lanes)_mm_madd_epi16((__m128i)x, (__m128i)y);
#else
    /* A product of a uint8 and an int8 fits into 16 bits; the sum of two does not. */
    return (lanes)vpadalq_s16((int32x4_t)sums, (int16x8_t)(x * y));
#endif
}

INLINE lanes plain_byte_dot(lanes sums, lanes x, lanes line) {
    unsigned_pairs a = (unsigned_pairs)x;
    pairs b = (pairs)line, even = (pairs)((unsigned_pairs)b << 8) >> 8, odd = b >> 8;
    return add_pairs(add_pairs(sums, (pairs)(a & 0xff), even), (pairs)(a >> 8), odd);
}

#endif
