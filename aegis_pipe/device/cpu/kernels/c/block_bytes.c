/* Products with weights of 4 or 8 bits in blocks, as in block_products.c, whose A becomes bytes too.
 *
 * Each block of a row of A is quantised over its own range, 0 in the middle (accuracy_level 4):
 *
 *     scale = max |a| / 127,  level = round_to_even(a * (127 / max |a|))
 *
 * Weights are packed as in block_products.c: they are multiplied as they come, without their zero
 * points, which meet the sum of A's levels. A team quantises A together, and then each has its columns.
 */
#include "byte_dot.h"
#include "byte_results.h"
#include "functions.h"
#include "meeting.h"

enum { TILE_ROWS = 4 };

/* As many groups side by side as registers allow for. */
#define GROUPS_OF(rows) (LANES == 16 ? 4 : 4 / (rows))

typedef struct {
    const float *a;        /* [rows][depth] */
    const int32_t *words;
    const float *scales;
    const uint8_t *zeros;  /* NULL: all are `zero` */
    const float *bias;     /* [columns], or NULL */
    float *y;
    int8_t *levels;        /* of A: [rows][blocks * block] */
    float *a_scales;       /* [rows][blocks], and the sums of levels likewise */
    int32_t *a_sums;
    meeting_place *place;
    int64_t rows, columns, depth, block, bits, zero;
} block_product;

INLINE wide_int words_load(const int32_t *p) { wide_int v; __builtin_memcpy(&v, p, sizeof v); return v; }

INLINE wide_int zeros_load(const block_product *p, int64_t at) {
    typedef uint8_t sixteen __attribute__((vector_size(WIDE)));
    if (!p->zeros) return (int32_t)p->zero - (wide_int){};
    sixteen bytes;
    __builtin_memcpy(&bytes, p->zeros + at, sizeof bytes);
    return __builtin_convertvector(bytes, wide_int);
}

/* ---- units ---------------------------------------------------------------------------------- */

#define UNIT(name) plain_##name
#define UNIT_TARGET
INLINE wide_int plain_dot(wide_int sums, wide_int x, wide_int y) {
    lanes part[3][WIDE / LANES];
    __builtin_memcpy(part[0], &sums, sizeof sums);
    __builtin_memcpy(part[1], &x, sizeof x);
    __builtin_memcpy(part[2], &y, sizeof y);
    UNROLL for (int i = 0; i < WIDE / LANES; i++) part[0][i] = plain_byte_dot(part[0][i], part[1][i], part[2][i]);
    __builtin_memcpy(&sums, part[0], sizeof sums);
    return sums;
}
#include "block_unit.h"

#if defined(__AVX512F__)
#define UNIT(name) vnni_##name
#define UNIT_TARGET __attribute__((target("avx512vnni")))
UNIT_TARGET INLINE wide_int vnni_dot(wide_int sums, wide_int x, wide_int y) {
    return (wide_int)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)x, (__m512i)y);
}
#include "block_unit.h"
#elif defined(__AVX2__)
#define UNIT(name) vnni_##name
#define UNIT_TARGET __attribute__((target("avxvnni")))
UNIT_TARGET INLINE wide_int vnni_dot(wide_int sums, wide_int x, wide_int y) {
    __m256i part[3][2];
    __builtin_memcpy(part[0], &sums, sizeof sums);
    __builtin_memcpy(part[1], &x, sizeof x);
    __builtin_memcpy(part[2], &y, sizeof y);
    UNROLL for (int i = 0; i < 2; i++) part[0][i] = _mm256_dpbusd_avx_epi32(part[0][i], part[1][i], part[2][i]);
    __builtin_memcpy(&sums, part[0], sizeof sums);
    return sums;
}
#include "block_unit.h"
#else
#define vnni_tiles plain_tiles
#endif

/* ---- A -------------------------------------------------------------------------------------- */

/* Of each eight levels the even ones, then the odd ones, if words are of 4 bits. */
INLINE wide_bytes in_order(wide_bytes v, int64_t bits) {
    return bits == 4 ? __builtin_shufflevector(v, v, 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15) : v;
}

static void quantise_block(const block_product *p, int64_t row, int64_t b, int64_t blocks) {
    const float *a = p->a + row * p->depth + b * p->block;
    int64_t count = smaller(p->block, p->depth - b * p->block), at = row * blocks + b;
    int8_t *to = p->levels + at * p->block;
    wide largest = wide_of(0);
    wide_int sum = {0};
    for (int64_t i = 0; i < count; i += WIDE) largest = wide_max(largest, wide_magnitude(row_load(a, i, count)));
    float reach = wide_largest(largest), inverse = reach != 0 ? 127.0f / reach : 0;
    for (int64_t i = 0; i < p->block; i += WIDE) {
        wide x = i < count ? row_load(a, i, count) * inverse : wide_of(0);
        wide_int level = wide_rounded(x);
        wide_bytes bytes = in_order(__builtin_convertvector(level, wide_bytes), p->bits);
        __builtin_memcpy(to + i, &bytes, sizeof bytes);
        sum += level;
    }
    int32_t total = 0;
    UNROLL for (int i = 0; i < WIDE; i++) total += sum[i];
    p->a_scales[at] = reach / 127.0f;
    p->a_sums[at] = total;
}

SHARED_KERNEL(aegis_block_product_of_bytes, block_product) {
    const block_product *p = arguments;
    int64_t blocks = ceil_divide(p->depth, p->block), groups = ceil_divide(p->columns, WIDE);
    range quantised = part_of(self, p->rows * blocks);
    for (int64_t i = quantised.first; i < quantised.last; i++) quantise_block(p, i / blocks, i % blocks, blocks);
    meet_at(p->place, self);
    int64_t tile = ceil_divide(p->rows, ceil_divide(p->rows, TILE_ROWS)), step = GROUPS_OF(tile);
    range mine = part_of(self, ceil_divide(groups, step));
    int has_instruction = byte_unit() > 0;
    for (int64_t unit = mine.first; unit < mine.last; unit++)
        for (int64_t row = 0; row < p->rows; row += tile) {
            /* The last tile may be lower and then takes more groups at a time: the same ones, all the same. */
            int64_t rows = smaller(tile, p->rows - row), last = smaller(groups, (unit + 1) * step);
            for (int64_t group = unit * step; group < last; group += step) {
                if (has_instruction) vnni_tiles(p, row, rows, group, last);
                else plain_tiles(p, row, rows, group, last);
            }
        }
}
