/* Tiles of products with levels in blocks, of bytes; block_bytes.c includes this once for each unit.
 *
 *     UNIT(name)     gives names of their own to what is defined here
 *     UNIT_TARGET    the function attribute that lets the compiler use the instruction
 *     UNIT(dot)      adds to each lane of sums the four products of its bytes, unsigned by signed
 *
 * A tile is rows x groups of 16 columns. A word of 8 levels is two operands: its even and its odd ones,
 * in which order A was quantised. The products of a block are exact; then they are scaled.
 */

UNIT_TARGET INLINE wide_int UNIT(broadcast)(const int8_t *four) {
    int32_t bits;
    __builtin_memcpy(&bits, four, sizeof bits);
    return bits - (wide_int){};
}

UNIT_TARGET INLINE void UNIT(tile)(const block_product *p, int64_t row, int64_t group, int rows, int groups, int bits) {
    const int halves = bits == 4 ? 2 : 1, chains = rows == 1 ? halves : 1;
    int64_t blocks = ceil_divide(p->depth, p->block), words = p->block * bits / 32, depth = blocks * p->block;
    const int8_t *a = p->levels + row * depth;
    const int32_t *from = p->words + group * blocks * words * WIDE;
    wide totals[TILE_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int g = 0; g < groups; g++) totals[r][g] = wide_of(0);
    for (int64_t b = 0; b < blocks; b++) {
        wide_int sums[2][TILE_ROWS][4];
        UNROLL for (int c = 0; c < chains; c++)
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int g = 0; g < groups; g++) sums[c][r][g] = (wide_int){};
        for (int64_t w = 0; w < words; w++, a += 4 * halves, from += WIDE)
            UNROLL for (int g = 0; g < groups; g++) {
                wide_int word = words_load(from + g * blocks * words * WIDE);
                UNROLL for (int h = 0; h < halves; h++) {
                    wide_int part = bits == 4 ? word >> (4 * h) & 0x0f0f0f0f : word;
                    int c = chains == 1 ? 0 : h;
                    UNROLL for (int r = 0; r < rows; r++)
                        sums[c][r][g] = UNIT(dot)(sums[c][r][g], part, UNIT(broadcast)(a + r * depth + 4 * h));
                }
            }
        UNROLL for (int g = 0; g < groups; g++) {
            int64_t at = ((group + g) * blocks + b) * WIDE;
            wide_int zero = zeros_load(p, at);
            wide scale = wide_load(p->scales + at);
            UNROLL for (int r = 0; r < rows; r++) {
                int64_t mine = (row + r) * blocks + b;
                wide_int sum = sums[0][r][g] - zero * p->a_sums[mine];
                if (chains == 2) sum += sums[1][r][g];
                totals[r][g] = multiply_add(scale * p->a_scales[mine], __builtin_convertvector(sum, wide), totals[r][g]);
            }
        }
    }
    UNROLL for (int g = 0; g < groups; g++) {
        int64_t column = (group + g) * WIDE;
        wide bias = p->bias ? row_load(p->bias, column, p->columns) : wide_of(0);
        UNROLL for (int r = 0; r < rows; r++)
            row_store(p->y + (row + r) * p->columns, column, p->columns, totals[r][g] + bias);
    }
}

#define TILES(rows_, bits_)                                                                                 \
    if (last - group >= GROUPS_OF(rows_)) UNIT(tile)(p, row, group, rows_, GROUPS_OF(rows_), bits_);         \
    else                                                                                                    \
        for (; group < last; group++) UNIT(tile)(p, row, group, rows_, 1, bits_);

#define TILES_OF(bits_)                           \
    switch (rows) {                               \
        case 1: TILES(1, bits_) break;            \
        case 2: TILES(2, bits_) break;            \
        case 3: TILES(3, bits_) break;            \
        default: TILES(4, bits_) break;           \
    }

/* Groups [group, last), at most GROUPS_OF(rows), by `rows` rows. */
UNIT_TARGET static void UNIT(tiles)(const block_product *p, int64_t row, int64_t rows, int64_t group, int64_t last) {
    if (p->bits == 4) TILES_OF(4)
    else TILES_OF(8)
}

#undef TILES
#undef TILES_OF
#undef UNIT
#undef UNIT_TARGET
