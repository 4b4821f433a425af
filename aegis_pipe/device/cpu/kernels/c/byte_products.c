/* Byte products with the best instructions that the processor has: the units.
 *
 * plain  multiplies pairs of 16-bit integers: every processor
 * vnni   one instruction for four products and their sum: AVX512-VNNI, or AVX-VNNI
 * amx    one for 16 x 16 sums of 64 products; pays from a few rows on
 *
 * The libraries are compiled for levels of x86-64, and none of these levels holds vnni or amx. So
 * their functions carry the instructions in an attribute of their own, and the library's user
 * chooses a unit after loading (docs/decisions/0004).
 */
#include "byte_dot.h"
#include "byte_products.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { PLAIN, VNNI, AMX };

/* ---- plain ---------------------------------------------------------------------------------- */

#define UNIT(name) plain_##name
#define UNIT_TARGET
#define UNIT_LANES LANES
#if defined(__AVX512F__)
#define UNIT_ROWS 8
#elif defined(__AVX2__) || defined(__aarch64__)
#define UNIT_ROWS 4
#else
#define UNIT_ROWS 2
#endif
#define UNIT_PANELS 1

INLINE lanes plain_dot(lanes sums, lanes x, lanes line) { return plain_byte_dot(sums, x, line); }
#include "byte_unit.h"

/* ---- vnni ----------------------------------------------------------------------------------- */

#if defined(__AVX512F__)
#define HAS_VNNI 1
#define UNIT(name) vnni_##name
#define UNIT_TARGET __attribute__((target("avx512vnni")))
#define UNIT_LANES 16
#define UNIT_ROWS 8
#define UNIT_PANELS 2
typedef int32_t vnni_lanes __attribute__((vector_size(64)));
UNIT_TARGET INLINE vnni_lanes vnni_dot(vnni_lanes sums, vnni_lanes x, vnni_lanes line) {
    return (vnni_lanes)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)x, (__m512i)line);
}
#include "byte_unit.h"
#elif defined(__AVX2__)
#define HAS_VNNI 1
#define UNIT(name) vnni_##name
#define UNIT_TARGET __attribute__((target("avxvnni")))
#define UNIT_LANES 8
#define UNIT_ROWS 6
#define UNIT_PANELS 1
typedef int32_t vnni_lanes __attribute__((vector_size(32)));
UNIT_TARGET INLINE vnni_lanes vnni_dot(vnni_lanes sums, vnni_lanes x, vnni_lanes line) {
    return (vnni_lanes)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)x, (__m256i)line);
}
#include "byte_unit.h"
#else
#define HAS_VNNI 0
#endif

/* ---- amx ------------------------------------------------------------------------------------
 *
 * Tiles 0 to 3 hold the sums of up to 2 x 2 tiles of 16 x 16, tiles 4 and 5 rows of A, tiles 6 and
 * 7 lines of two panels. All tiles of rows are equally high; if two overlap, both write the same.
 */

#if defined(__AVX512F__)
#define AMX_TARGET __attribute__((target("amx-tile,amx-int8")))
enum { TILE_HEIGHT = 16, AMX_PAYS_ROWS = 4 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_configuration;

AMX_TARGET static void amx_begin(int64_t tile_rows) {
    tile_configuration c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = 64;
        c.rows[i] = (uint8_t)(i < 6 ? tile_rows : TILE_HEIGHT);
    }
    _tile_loadconfig(&c);
}

AMX_TARGET static void amx_end(void) { _tile_release(); }

AMX_TARGET INLINE void amx_tiles(const byte_block *p, int two_high, int two_wide) {
    const uint8_t *a = p->a, *below = p->a + (p->rows - p->tile_rows) * p->a_row;
    const int8_t *b = p->panels, *beside = b + p->padded_depth * BYTE_PANEL;
    const int64_t line = BYTE_PANEL * 4;
    int32_t *low = p->sums + (p->rows - p->tile_rows) * BYTE_BLOCK_COLUMNS;
    _tile_zero(0);
    if (two_wide) _tile_zero(1);
    if (two_high) _tile_zero(2);
    if (two_high && two_wide) _tile_zero(3);
    for (int64_t k = 0; k < p->padded_depth; k += BYTE_DEPTH) {
        _tile_loadd(4, a + k, p->a_row);
        _tile_loadd(6, b + k * BYTE_PANEL, line);
        _tile_dpbusd(0, 4, 6);
        if (two_high) {
            _tile_loadd(5, below + k, p->a_row);
            _tile_dpbusd(2, 5, 6);
        }
        if (two_wide) {
            _tile_loadd(7, beside + k * BYTE_PANEL, line);
            _tile_dpbusd(1, 4, 7);
        }
        if (two_high && two_wide) _tile_dpbusd(3, 5, 7);
    }
    const int64_t row_bytes = BYTE_BLOCK_COLUMNS * sizeof(int32_t);
    _tile_stored(0, p->sums, row_bytes);
    if (two_wide) _tile_stored(1, p->sums + BYTE_PANEL, row_bytes);
    if (two_high) _tile_stored(2, low, row_bytes);
    if (two_high && two_wide) _tile_stored(3, low + BYTE_PANEL, row_bytes);
}

AMX_TARGET static void amx_multiply(const byte_block *p) {
    int two_high = p->rows > p->tile_rows, two_wide = p->panel_count > 1;
    if (two_high && two_wide) amx_tiles(p, 1, 1);
    else if (two_high) amx_tiles(p, 1, 0);
    else if (two_wide) amx_tiles(p, 0, 1);
    else amx_tiles(p, 0, 0);
}
#endif

/* ---- choosing ------------------------------------------------------------------------------- */

static int unit = PLAIN;

#if defined(__AVX512F__)
/* The tiles' registers are large: Linux lends them to a process that asks. */
static int asks_for_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

static int machine_unit(void) {
#if defined(__AVX512F__)
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & 1u << 11)) return PLAIN;
    const unsigned amx_tile_int8 = 1u << 24 | 1u << 25;
    return (d & amx_tile_int8) == amx_tile_int8 && asks_for_tiles() ? AMX : VNNI;
#elif defined(__AVX2__)
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) ? VNNI : PLAIN;
#else
    return PLAIN;
#endif
}

/* Takes the best unit up to `highest` that this build and this processor have, and returns it.
 * For load time: no kernel may be running. */
EXPORT int64_t aegis_choose_byte_unit(int64_t highest) {
    int best = machine_unit();
    unit = best < highest ? best : (int)highest;
    return unit;
}

int64_t byte_unit(void) { return unit; }

int64_t begin_byte_products(int64_t rows) {
#if defined(__AVX512F__)
    if (unit == AMX && rows >= AMX_PAYS_ROWS) {
        int64_t tile_rows = smaller(rows, TILE_HEIGHT);
        amx_begin(tile_rows);
        return tile_rows;
    }
#endif
    (void)rows;
    return 0;
}

void end_byte_products(int64_t tile_rows) {
#if defined(__AVX512F__)
    if (tile_rows) amx_end();
#endif
    (void)tile_rows;
}

void multiply_bytes(const byte_block *block) {
#if defined(__AVX512F__)
    if (block->tile_rows) {
        amx_multiply(block);
        return;
    }
#endif
#if HAS_VNNI
    if (unit != PLAIN) {
        vnni_multiply(block);
        return;
    }
#endif
    plain_multiply(block);
}

void pack_byte_panels(const uint8_t *b, int64_t b_step, int64_t b_column, int64_t depth, int64_t columns,
                      uint8_t moved, int8_t *panels, int32_t *column_sums) {
    int64_t padded = padded_byte_depth(depth);
    for (int64_t first = 0; first < columns; first += BYTE_PANEL, panels += padded * BYTE_PANEL) {
        int64_t count = smaller(BYTE_PANEL, columns - first);
        int32_t sums[BYTE_PANEL] = {0};
        __builtin_memset(panels, 0, (size_t)(padded * BYTE_PANEL));
        for (int64_t k = 0; k < depth; k++) {
            const uint8_t *from = b + k * b_step + first * b_column;
            int8_t *to = panels + k / 4 * 4 * BYTE_PANEL + k % 4;
            for (int64_t c = 0; c < count; c++) {
                int8_t value = (int8_t)(from[c * b_column] ^ moved);
                to[c * 4] = value;
                sums[c] += value;
            }
        }
        __builtin_memcpy(column_sums + first, sums, sizeof sums);
    }
}

/* For load time: a constant B into panels, the sums of its columns behind them. */
EXPORT void aegis_pack_byte_panels(const uint8_t *b, int64_t b_step, int64_t b_column, int64_t depth,
                                   int64_t columns, int64_t is_unsigned, int8_t *panels) {
    int32_t *sums = (int32_t *)(void *)(panels + padded_byte_depth(depth) * padded_byte_columns(columns));
    pack_byte_panels(b, b_step, b_column, depth, columns, is_unsigned ? 0x80 : 0, panels, sums);
}
EXPORT int64_t aegis_byte_panels_size(int64_t depth, int64_t columns) { return byte_panels_size(depth, columns); }
