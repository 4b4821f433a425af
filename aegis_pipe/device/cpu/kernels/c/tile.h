/* The register tile that matrix products and convolutions share.
 *
 * A tile is ROWS x (VECTORS * LANES) results held in registers while the depth k runs by:
 *
 *     for k:  one row of the panel b is loaded (VECTORS registers);
 *             for each row r: a[r][k] is broadcast and multiplied into the row's VECTORS sums
 *
 * so ROWS * VECTORS multiply-adds share ROWS + VECTORS loads. ROWS * VECTORS must be large enough to
 * hide the latency of the multiply-add (4 to 5 cycles on 2 ports) and small enough for the register
 * file together with the panel's row and the broadcast:
 *
 *     AVX-512  32 registers of 16:  6 x 4     AVX2  16 of 8:  6 x 2
 *     NEON     32 registers of 4:   6 x 4     SSE   16 of 4:  4 x 2
 *
 * A panel is [depth][PANEL] floats, PANEL = VECTORS * LANES columns of b, padded with zeros.
 * Every result is one chain of additions over k in ascending order, starting at 0. Therefore its
 * bits do not depend on the tile, on the panel, or on which operand lies in the lanes.
 */
#ifndef AEGIS_TILE_H
#define AEGIS_TILE_H

#include "vector.h"

#if defined(__AVX512F__)
#define ROWS 6
#define VECTORS 4
#elif defined(__AVX2__)
#define ROWS 6
#define VECTORS 2
#elif defined(__aarch64__)
#define ROWS 6
#define VECTORS 4
#else
#define ROWS 4
#define VECTORS 2
#endif
#define PANEL (VECTORS * LANES)

/* What happens to a finished sum: scale * sum + addend_scale * addend + residual, then clipped. */
typedef struct {
    const float *residual; /* of the results' own layout, or NULL */
    const float *addend; /* NULL: none */
    int64_t addend_row, addend_column; /* its strides in floats; 0 repeats, columns are 0 or 1 */
    float scale, addend_scale;
    float low, high;
    int64_t clips;
} epilogue;

/* Adds a[row r][k * a_step] * b[k * b_step + column] over k to the sums. `rows` and `vectors` are
 * constants wherever this is inlined. Meanwhile one cache line of each row of a panel `ahead` is
 * fetched into the second-level cache. */
INLINE void tile_accumulate(vec sums[ROWS][VECTORS], int rows, int vectors, const float *const a[ROWS],
                            int64_t a_step, const float *b, int64_t b_step, int64_t depth,
                            const float *ahead) {
    UNROLL_FOUR for (int64_t k = 0; k < depth; k++, b += b_step, ahead += b_step) {
        if (vectors > 1) __builtin_prefetch(ahead, 0, 2);
        vec b_row[VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) b_row[v] = vec_load(b + v * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            vec x = vec_of(a[r][k * a_step]);
            UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = multiply_add(x, b_row[v], sums[r][v]);
        }
    }
}

/* What the i-th of the tiles that share a panel fetches of the next one: a line each, until all are
 * on their way; then nothing that is not there. */
INLINE const float *panel_ahead(const float *panel, const float *next, int64_t i) {
    return i < PANEL / WIDE ? next + i * WIDE : panel;
}

INLINE void tile_clear(vec sums[ROWS][VECTORS], int rows, int vectors) {
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = vec_of(0);
}

/* The first `count` < LANES floats, zeros behind them. */
INLINE vec vec_load_part(const float *p, int64_t count) {
    float lanes[WIDE];
    wide_store(lanes, wide_load_part(p, count));
    return vec_load(lanes);
}
INLINE void vec_store_part(float *p, vec v, int64_t count) {
    float lanes[WIDE];
    vec_store(lanes, v);
    wide_store_part(p, wide_load(lanes), count);
}

/* Register v of a row of which `columns` are there. */
INLINE vec tile_row_load(const float *row, int v, int64_t columns) {
    int64_t count = columns - v * LANES;
    return count < LANES ? vec_load_part(row + v * LANES, count) : vec_load(row + v * LANES);
}
INLINE void tile_row_store(float *row, int v, int64_t columns, vec x) {
    int64_t count = columns - v * LANES;
    if (count < LANES) vec_store_part(row + v * LANES, x, count);
    else vec_store(row + v * LANES, x);
}

/* Sums that wait between passes over the depth, in rows `to_row` floats apart; `columns` as of `tile_store`. */
INLINE void tile_keep(vec sums[ROWS][VECTORS], int rows, int vectors, float *to, int64_t to_row, int64_t columns) {
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) tile_row_store(to + r * to_row, v, columns, sums[r][v]);
}
INLINE void tile_load(vec sums[ROWS][VECTORS], int rows, int vectors, const float *from, int64_t from_row,
                      int64_t columns) {
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = tile_row_load(from + r * from_row, v, columns);
}

INLINE vec clipped(vec x, float low, float high) {
    typedef int32_t mask __attribute__((vector_size(LANES * 4)));
    vec bound = vec_of(low);
    mask below = x < bound;
    x = (vec)((below & (mask)bound) | (~below & (mask)x));
    bound = vec_of(high);
    mask above = x > bound;
    return (vec)((above & (mask)bound) | (~above & (mask)x));
}

/* Finishes one register of sums at (row, column); `count` of its lanes are results. */
INLINE vec finished(const epilogue *e, vec sum, vec residual, int64_t row, int64_t column, int64_t count) {
    if (e->scale != 1) sum *= e->scale;
    if (e->addend) {
        const float *p = e->addend + row * e->addend_row + column * e->addend_column;
        vec addend = !e->addend_column ? vec_of(*p) : count < LANES ? vec_load_part(p, count) : vec_load(p);
        if (e->addend_scale != 1) addend *= e->addend_scale;
        sum += addend;
    }
    if (e->residual) sum += residual;
    return e->clips ? clipped(sum, e->low, e->high) : sum;
}

/* Whether sums are finished as most are: a bias of columns is added. */
INLINE int is_usual(const epilogue *e) {
    return e->scale == 1 && e->addend && !e->addend_row && e->addend_column && e->addend_scale == 1;
}

/* `tile_store` of these: the bias is loaded once for all rows, and nothing is asked for each. */
INLINE void tile_store_usual(const epilogue *e, vec sums[ROWS][VECTORS], int rows, int vectors, float *y,
                             int64_t y_row, int64_t row, int64_t column, int64_t columns) {
    const float *residual = e->residual ? e->residual + row * y_row + column : NULL;
    float low = e->low, high = e->high;
    int64_t clips = e->clips, last = columns - (vectors - 1) * LANES;
    vec bias[VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) bias[v] = tile_row_load(e->addend + column, v, columns);
    y += row * y_row + column;
    UNROLL for (int r = 0; r < rows; r++, y += y_row) {
        UNROLL for (int v = 0; v < vectors; v++) {
            vec sum = sums[r][v] + bias[v];
            if (residual) sum += tile_row_load(residual + r * y_row, v, columns);
            if (clips) sum = clipped(sum, low, high);
            if (v == vectors - 1 && last < LANES) vec_store_part(y + v * LANES, sum, last);
            else vec_store(y + v * LANES, sum);
        }
    }
}

/* Writes a finished tile, rows along memory: y[row * y_row + column]. Of its columns those below
 * `columns` are results; there may be more in later tiles. */
INLINE void tile_store(const epilogue *end, vec sums[ROWS][VECTORS], int rows, int vectors, float *y,
                       int64_t y_row, int64_t row, int64_t column, int64_t columns) {
    if (is_usual(end)) {
        tile_store_usual(end, sums, rows, vectors, y, y_row, row, column, columns);
        return;
    }
    /* A copy: for all the compiler knows, what is stored could change the original. */
    const epilogue copy = *end, *e = &copy;
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            int64_t count = columns - v * LANES;
            int64_t at = (row + r) * y_row + column + v * LANES;
            vec residual = vec_of(0);
            if (e->residual)
                residual = count < LANES ? vec_load_part(e->residual + at, count) : vec_load(e->residual + at);
            vec result = finished(e, sums[r][v], residual, row + r, column + v * LANES, count);
            float *target = y + at;
            if (count >= LANES) vec_store(target, result);
            else vec_store_part(target, result, count);
        }
    }
}

/* Writes a finished tile, columns along memory: y[column * y_column + row]. Of its columns those
 * below `columns` are results; there may be more in later tiles. */
INLINE void tile_store_transposed(const epilogue *end, vec sums[ROWS][VECTORS], int rows, int vectors,
                                  float *y, int64_t y_column, int64_t row, int64_t column,
                                  int64_t columns) {
    const epilogue copy = *end, *e = &copy;
    float block[ROWS][PANEL];
    if (e->residual) {
        const float *from = e->residual + column * y_column + row;
        for (int64_t c = 0; c < smaller(columns, vectors * LANES); c++)
            UNROLL for (int r = 0; r < rows; r++) block[r][c] = from[c * y_column + r];
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            int64_t at = v * LANES;
            vec residual = e->residual ? vec_load(&block[r][at]) : vec_of(0);
            vec_store(&block[r][at], finished(e, sums[r][v], residual, row + r, column + at, columns - at));
        }
    float *target = y + column * y_column + row;
    int64_t c = 0;
    columns = smaller(columns, vectors * LANES);
    for (; c + 8 <= columns; c += 8)
        UNROLL for (int first = 0; first < rows; first += 8) {
            int count = rows - first < 8 ? rows - first : 8;
            eight turned[8] = {};
            UNROLL for (int r = 0; r < count; r++) turned[r] = eight_load(&block[first + r][c]);
            transpose_eight(turned);
            UNROLL for (int i = 0; i < 8; i++)
                __builtin_memcpy(target + (c + i) * y_column + first, &turned[i], (size_t)count * sizeof *target);
        }
    for (; c < columns; c++)
        UNROLL for (int r = 0; r < rows; r++) target[c * y_column + r] = block[r][c];
}

/* Calls f(..., rows, vectors) with both as constants: every size of tile is its own code. */
#define TILE_VECTORS(f, rows_, vectors_, ...)                                 \
    switch (vectors_) {                                                       \
        case 1: f(__VA_ARGS__, rows_, 1); break;                              \
        case 2: f(__VA_ARGS__, rows_, 2); break;                              \
        TILE_VECTORS_ABOVE_2(f, rows_, __VA_ARGS__)                           \
    }
#if VECTORS > 2
#define TILE_VECTORS_ABOVE_2(f, rows_, ...)                                   \
    case 3: f(__VA_ARGS__, rows_, 3); break;                                  \
    case 4: f(__VA_ARGS__, rows_, 4); break;
#else
#define TILE_VECTORS_ABOVE_2(f, rows_, ...)
#endif
#if ROWS > 4
#define TILE_ROWS_ABOVE_4(f, vectors_, ...)                                   \
    case 5: TILE_VECTORS(f, 5, vectors_, __VA_ARGS__) break;                  \
    case 6: TILE_VECTORS(f, 6, vectors_, __VA_ARGS__) break;
#else
#define TILE_ROWS_ABOVE_4(f, vectors_, ...)
#endif
#define TILE_DISPATCH(f, rows_, vectors_, ...)                                \
    switch (rows_) {                                                          \
        case 1: TILE_VECTORS(f, 1, vectors_, __VA_ARGS__) break;              \
        case 2: TILE_VECTORS(f, 2, vectors_, __VA_ARGS__) break;              \
        case 3: TILE_VECTORS(f, 3, vectors_, __VA_ARGS__) break;              \
        case 4: TILE_VECTORS(f, 4, vectors_, __VA_ARGS__) break;              \
        TILE_ROWS_ABOVE_4(f, vectors_, __VA_ARGS__)                           \
    }

/* Splits `count` rows into the fewest tiles, as even as can be: 49 rows are 9 tiles of 6 at most. */
INLINE int64_t even_tile(int64_t count) { return ceil_divide(count, larger(1, ceil_divide(count, ROWS))); }

#endif
