/* Products with weights of 4 or 8 bits, quantised in blocks: Y = A W' + bias,
 *
 *     W[column][k] = (level[column][k] - zero[column][k / block]) * scale[column][k / block]
 *
 * Weights are packed once at load, 16 columns in the lanes; a word of 32 bits is 8 or 4 levels of one
 * column, successive along the depth:
 *
 *     words[groups][words of a column][16], scales and zeros[groups][blocks][16]
 *
 * Few rows of A: levels become floats in registers, and each block's sum is scaled. Many rows: a
 * chunk of a panel is unpacked for all of them, and the tiles of matrix products run over it.
 */
#include "step.h"
#include "tile.h"

enum {
    FEW_ROWS = 12,
    TILE_ROWS = 4,        /* of a tile whose weights are unpacked in registers */
    CHUNK = 512,          /* depth that is unpacked for many rows, at least a block */
    UNIT = PANEL > WIDE ? PANEL : WIDE,
};

typedef struct {
    const float *a;       /* [rows][depth] */
    const int32_t *words;
    const float *scales;
    const void *zeros;    /* bytes or floats; NULL: all are `zero` */
    const float *bias;    /* [columns], or NULL */
    float *y, *workspace;
    int64_t rows, columns, depth, block;
    int64_t bits, zeros_are_floats;
    float zero;
} block_product;

INLINE wide_int words_load(const int32_t *p) { wide_int v; __builtin_memcpy(&v, p, sizeof v); return v; }

INLINE wide zeros_load(const block_product *p, int64_t at) {
    typedef uint8_t sixteen __attribute__((vector_size(WIDE)));
    if (!p->zeros) return wide_of(p->zero);
    if (p->zeros_are_floats) return wide_load((const float *)p->zeros + at);
    sixteen bytes;
    __builtin_memcpy(&bytes, (const uint8_t *)p->zeros + at, sizeof bytes);
    return __builtin_convertvector(bytes, wide);
}

/* Level i of each word, less the zero point; four bits may come from a table, zero point and all. */
INLINE wide level(wide_int word, int i, int bits, int has_table, wide table, wide zero) {
#if defined(__AVX512F__)
    if (bits == 4) {
        wide v = (wide)_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)word, (unsigned)(4 * i)), (__m512)table);
        return has_table ? v : v - zero;
    }
#endif
    (void)has_table, (void)table;
    return __builtin_convertvector((word >> (bits * i)) & ((1 << bits) - 1), wide) - zero;
}

INLINE wide table_of(const block_product *p, int has_table) {
    wide levels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return has_table ? levels - p->zero : levels;
}

/* Level i of each group's word by what stands at depth k of each row. */
INLINE void add_level(wide sums[TILE_ROWS][4], const float *const a[TILE_ROWS], const wide_int word[4], int64_t k,
                      int i, const wide *zeros, wide table, int rows, int groups, int bits, int has_table) {
    UNROLL for (int g = 0; g < groups; g++) {
        wide weight = level(word[g], i, bits, has_table, table, zeros[g]);
        UNROLL for (int r = 0; r < rows; r++) sums[r][g] = multiply_add(wide_of(a[r][k]), weight, sums[r][g]);
    }
}

/* A tile of `rows` x `groups` of 16 columns. */
INLINE void few_tile(const block_product *p, int64_t row, int64_t group, int rows, int groups, int bits,
                     int has_table) {
    const int per_word = 32 / bits;
    int64_t blocks = ceil_divide(p->depth, p->block), words_a_block = p->block / per_word;
    const int64_t last_word = (blocks * words_a_block - 1) * WIDE;
    const wide table = table_of(p, has_table);
    const float *a[TILE_ROWS];
    const int32_t *words[4];
    wide totals[TILE_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++) a[r] = p->a + (row + r) * p->depth;
    UNROLL for (int g = 0; g < groups; g++) words[g] = p->words + (group + g) * blocks * words_a_block * WIDE;
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int g = 0; g < groups; g++) totals[r][g] = wide_of(0);
    for (int64_t b = 0; b < blocks; b++) {
        wide sums[TILE_ROWS][4], zeros[4];
        UNROLL for (int g = 0; g < groups; g++) {
            zeros[g] = zeros_load(p, ((group + g) * blocks + b) * WIDE);
            UNROLL for (int r = 0; r < rows; r++) sums[r][g] = wide_of(0);
        }
        int64_t k = b * p->block, end = smaller(p->depth, k + p->block), at = b * words_a_block * WIDE;
        wide_int word[4];
        for (; k + per_word <= end; k += per_word, at += WIDE) {
            UNROLL for (int g = 0; g < groups; g++) word[g] = words_load(words[g] + at);
            UNROLL for (int i = 0; i < per_word; i++)
                add_level(sums, a, word, k + i, i, zeros, table, rows, groups, bits, has_table);
        }
        UNROLL for (int g = 0; g < groups; g++) word[g] = words_load(words[g] + smaller(at, last_word));
        for (int i = 0; k + i < end; i++)
            add_level(sums, a, word, k + i, i, zeros, table, rows, groups, bits, has_table);
        UNROLL for (int g = 0; g < groups; g++) {
            wide scale = wide_load(p->scales + ((group + g) * blocks + b) * WIDE);
            UNROLL for (int r = 0; r < rows; r++) totals[r][g] = multiply_add(scale, sums[r][g], totals[r][g]);
        }
    }
    UNROLL for (int g = 0; g < groups; g++) {
        int64_t column = (group + g) * WIDE;
        wide bias = p->bias ? row_load(p->bias, column, p->columns) : wide_of(0);
        UNROLL for (int r = 0; r < rows; r++)
            row_store(p->y + (row + r) * p->columns, column, p->columns, totals[r][g] + bias);
    }
}

/* As many groups side by side as registers allow for. */
#define GROUPS_OF(rows) (LANES == 16 ? 4 : 4 / (rows))

#define FEW(rows_, bits_, has_table_)                                                                  \
    if (last - group >= GROUPS_OF(rows_)) few_tile(p, row, group, rows_, GROUPS_OF(rows_), bits_, has_table_); \
    else                                                                                               \
        for (; group < last; group++) few_tile(p, row, group, rows_, 1, bits_, has_table_);

#define FEW_ROWS_OF(bits_, has_table_)                    \
    switch (rows) {                                       \
        case 1: FEW(1, bits_, has_table_) break;          \
        case 2: FEW(2, bits_, has_table_) break;          \
        case 3: FEW(3, bits_, has_table_) break;          \
        default: FEW(4, bits_, has_table_) break;         \
    }

/* Groups [group, last), at most GROUPS_OF(rows), by `rows` rows. */
static void few_rows(const block_product *p, int64_t row, int64_t rows, int64_t group, int64_t last) {
    if (p->bits == 8) FEW_ROWS_OF(8, 0)
    else if (p->zeros) FEW_ROWS_OF(4, 0)
    else FEW_ROWS_OF(4, 1)
}

static void multiply_few(const block_product *p, worker self) {
    int64_t groups = ceil_divide(p->columns, WIDE);
    int64_t tiles = ceil_divide(p->rows, TILE_ROWS), tile = ceil_divide(p->rows, tiles), step = GROUPS_OF(tile);
    range mine = part_of(self, ceil_divide(groups, step));
    for (int64_t unit = mine.first; unit < mine.last; unit++)
        for (int64_t row = 0; row < p->rows; row += tile) {
            /* The last tile may be lower and then takes more groups at a time: the same ones, all the same. */
            int64_t rows = smaller(tile, p->rows - row), last = smaller(groups, (unit + 1) * step);
            for (int64_t group = unit * step; group < last; group += step) few_rows(p, row, rows, group, last);
        }
}

/* Weights of a group at depths [first, last), whole words but for the end, into panels of the unit. */
INLINE void unpack(const block_product *p, int64_t group, range k, int64_t place, float *to, int bits) {
    const int per_word = 32 / bits, part = PANEL < WIDE ? PANEL : WIDE;
    int64_t blocks = ceil_divide(p->depth, p->block), words = blocks * p->block / per_word;
    wide table = table_of(p, 0), zero = wide_of(0), scale = wide_of(0);
    for (int64_t depth = k.first; depth < k.last; depth += per_word) {
        if (depth % p->block == 0) {
            int64_t at = (group * blocks + depth / p->block) * WIDE;
            zero = zeros_load(p, at);
            scale = wide_load(p->scales + at);
        }
        wide_int word = words_load(p->words + (group * words + depth / per_word) * WIDE);
        for (int i = 0; i < smaller(per_word, k.last - depth); i++) {
            float lanes[WIDE];
            wide_store(lanes, level(word, i, bits, 0, table, zero) * scale);
            UNROLL for (int h = 0; h < WIDE; h += part) {
                float *panel = to + (place + h) / PANEL * (k.last - k.first) * PANEL + (place + h) % PANEL;
                __builtin_memcpy(panel + (depth + i - k.first) * PANEL, lanes + h, (size_t)part * sizeof(float));
            }
        }
    }
}

INLINE void many_tile(const block_product *p, const epilogue *end, const float *panel, float *kept, range k,
                      int64_t row, int64_t column, int rows, int vectors) {
    const float *a[ROWS];
    vec sums[ROWS][VECTORS];
    UNROLL for (int r = 0; r < rows; r++) a[r] = p->a + (row + r) * p->depth + k.first;
    if (k.first) tile_load(sums, rows, vectors, kept, PANEL, PANEL);
    else tile_clear(sums, rows, vectors);
    tile_accumulate(sums, rows, vectors, a, 1, panel, PANEL, k.last - k.first, panel);
    if (k.last < p->depth) tile_keep(sums, rows, vectors, kept, PANEL, PANEL);
    else tile_store(end, sums, rows, vectors, p->y, p->columns, row, column, p->columns - column);
}

static int64_t chunk_of(int64_t block) { return larger(CHUNK, block); }

/* Floats of one worker's workspace: a chunk of a unit's panels, and its sums put aside. */
EXPORT int64_t aegis_block_product_workspace(int64_t rows, int64_t block) {
    return rows <= FEW_ROWS ? 0 : (chunk_of(block) + rows) * UNIT;
}

static void multiply_many(const block_product *p, worker self) {
    float *panels = p->workspace + self.thread * aegis_block_product_workspace(p->rows, p->block);
    float *kept = panels + chunk_of(p->block) * UNIT;
    epilogue end = {.addend = p->bias, .addend_column = 1, .scale = 1, .addend_scale = 1};
    int64_t tile = even_tile(p->rows), chunk = chunk_of(p->block);
    range mine = part_of(self, ceil_divide(p->columns, UNIT));
    for (int64_t unit = mine.first; unit < mine.last; unit++)
        for (range k = {0, smaller(chunk, p->depth)}; k.first < p->depth;
             k = (range){k.last, smaller(k.last + chunk, p->depth)}) {
            int64_t last = smaller(p->columns, (unit + 1) * UNIT);
            for (int64_t column = unit * UNIT; column < last; column += WIDE) {
                if (p->bits == 4) unpack(p, column / WIDE, k, column % UNIT, panels, 4);
                else unpack(p, column / WIDE, k, column % UNIT, panels, 8);
            }
            for (int64_t column = unit * UNIT; column < last; column += PANEL) {
                const float *panel = panels + column % UNIT * (k.last - k.first);
                float *aside = kept + column % UNIT * p->rows;
                int64_t vectors = ceil_divide(smaller(PANEL, last - column), LANES);
                for (int64_t row = 0; row < p->rows; row += tile, aside += tile * PANEL)
                    TILE_DISPATCH(many_tile, smaller(tile, p->rows - row), vectors, p, &end, panel, aside, k, row,
                                  column)
            }
        }
}

SHARED_KERNEL(aegis_block_product, block_product) {
    const block_product *p = arguments;
    if (p->rows <= FEW_ROWS) multiply_few(p, self);
    else multiply_many(p, self);
}
