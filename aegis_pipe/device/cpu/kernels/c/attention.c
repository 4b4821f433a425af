/* Attention of several heads: Y = softmax(scale * Q K^T + mask) V, heads read and written where they lie.
 *
 *     for each head:  K^T and V are packed into panels (see tile.h)
 *       for each block of queries:  their rows are copied together
 *         scores = scale * Q K^T + mask     a panel of keys by tiles of queries
 *         row by row, exp(score - largest) in place of the scores, and 1 / their sum beside
 *         Y = (powers V) / sum              a panel of V by tiles of queries, keys by chunks
 *
 * All of it in the worker's workspace, which stays in the second-level cache: the scores of whole heads
 * exist nowhere. Workers share the pairs of head and block. Dividing Y instead of the powers is from
 * Dao et al., FlashAttention (2022); keys are few enough for a row's scores to be kept whole.
 */
#include "panels.h"
#include "softmax.h"
#include "step.h"

typedef struct { int64_t batch, head, row; } head_strides; /* in floats; 0 repeats */

typedef struct {
    const float *q, *k, *v, *mask; /* mask: added to the scores; or NULL */
    float *y, *workspace;
    head_strides of_q, of_k, of_v, of_mask, of_y;
    int64_t batch, heads, sharers; /* heads that share keys and values follow each other */
    int64_t queries, keys, size, value_size;
    int64_t first_sees; /* how many keys the first query sees, each next one sees one more; 0: all do */
    float scale;
} attention;

enum { SCORE_FLOATS = 16 << 10, KEYS_CHUNK = PANEL < 64 ? 512 : 160 };

/* Where things are in a worker's workspace, in floats. */
typedef struct { int64_t block, score_row, v, q, scores, factors, all; } places;

static places places_of(const attention *a) {
    int64_t row = ceil_divide(a->keys, PANEL) * PANEL, tile = even_tile(a->queries);
    int64_t most = larger(1, SCORE_FLOATS / (row * tile)) * tile;
    int64_t block = ceil_divide(ceil_divide(a->queries, ceil_divide(a->queries, most)), tile) * tile;
    places p = {.block = block, .score_row = row, .v = row * a->size};
    p.q = p.v + ceil_divide(a->value_size, PANEL) * PANEL * a->keys;
    p.scores = p.q + block * a->size;
    p.factors = p.scores + block * row;
    p.all = p.factors + ceil_divide(block, WIDE) * WIDE;
    return p;
}

/* Floats of one worker's workspace. */
EXPORT int64_t aegis_attention_workspace(const attention *a) { return places_of(a).all; }

INLINE void score_tile(const attention *a, const float *q, const float *panel, const float *ahead, const float *mask,
                       float *scores, int64_t score_row, int64_t column, int rows, int vectors) {
    const float *q_rows[ROWS];
    vec sums[ROWS][VECTORS], scale = vec_of(a->scale);
    UNROLL for (int r = 0; r < rows; r++) q_rows[r] = q + r * a->size;
    tile_clear(sums, rows, vectors);
    tile_accumulate(sums, rows, vectors, q_rows, 1, panel, PANEL, a->size, ahead);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            vec score = sums[r][v] * scale;
            if (mask) score += tile_row_load(mask + r * a->of_mask.row + column, v, a->keys - column);
            vec_store(scores + r * score_row + column + v * LANES, score);
        }
}

/* A block of queries by all keys; rows of the scores are padded to whole panels. */
static void score_block(const attention *a, const float *q, const float *panels, const float *mask, float *scores,
                        int64_t score_row, int64_t count) {
    int64_t tile = even_tile(count), panel_floats = a->size * PANEL;
    for (int64_t column = 0; column < a->keys; column += PANEL, panels += panel_floats) {
        int64_t vectors = ceil_divide(smaller(PANEL, a->keys - column), LANES);
        const float *next = column + PANEL < a->keys ? panels + panel_floats : panels;
        for (int64_t row = 0, i = 0; row < count; row += tile, i++) {
            const float *of_mask = mask ? mask + row * a->of_mask.row : NULL, *ahead = panel_ahead(panels, next, i);
            TILE_DISPATCH(score_tile, smaller(tile, count - row), vectors, a, q + row * a->size, panels, ahead,
                          of_mask, scores + row * score_row, score_row, column)
        }
    }
}

/* Powers of a row's scores in their place, 0 for keys that are not seen; returns 1 / their sum. Where
 * nothing is seen, or all is -inf, it is 0. */
INLINE float powers_of_row(float *scores, int64_t seen, int64_t keys) {
    float largest = row_largest(scores, seen);
    if (largest == -__builtin_inff()) largest = 0;
    wide sum = wide_of(0);
    for (int64_t i = 0; i < seen; i += WIDE) {
        wide power = wide_exp_short(load_power(scores, i, seen) - largest);
        sum += power;
        row_store(scores, i, seen, power);
    }
    for (int64_t i = seen; i < keys; i++) scores[i] = 0;
    float total = wide_sum(sum);
    return total == 0 ? 0 : 1 / total;
}

INLINE void weigh_tile(const attention *a, const float *powers, int64_t score_row, range keys, const float *panel,
                       const float *ahead, const float *factors, float *y, int64_t column, int rows, int vectors) {
    const float *power_rows[ROWS];
    vec sums[ROWS][VECTORS];
    int64_t columns = a->value_size - column;
    UNROLL for (int r = 0; r < rows; r++) power_rows[r] = powers + r * score_row + keys.first;
    if (!keys.first) tile_clear(sums, rows, vectors);
    else tile_load(sums, rows, vectors, y, a->of_y.row, columns);
    tile_accumulate(sums, rows, vectors, power_rows, 1, panel, PANEL, keys.last - keys.first, ahead);
    if (keys.last == a->keys)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++) sums[r][v] *= vec_of(factors[r]);
    tile_keep(sums, rows, vectors, y, a->of_y.row, columns);
}

/* The values of all keys, weighed, for a block of queries; sums wait in Y between chunks of keys. */
static void weigh_block(const attention *a, const float *powers, int64_t score_row, const float *panels,
                        const float *factors, float *y, int64_t count) {
    int64_t tile = even_tile(count), chunk = ceil_divide(a->keys, ceil_divide(a->keys, KEYS_CHUNK));
    for (int64_t column = 0; column < a->value_size; column += PANEL, panels += a->keys * PANEL) {
        int64_t vectors = ceil_divide(smaller(PANEL, a->value_size - column), LANES);
        for (int64_t first = 0; first < a->keys; first += chunk) {
            range keys = {first, smaller(first + chunk, a->keys)};
            const float *panel = panels + first * PANEL;
            /* What follows in a last chunk's place is less than a chunk: nothing is fetched then. */
            const float *next = keys.last + chunk <= a->keys ? panel + chunk * PANEL : panel;
            for (int64_t row = 0, i = 0; row < count; row += tile, i++) {
                const float *ahead = panel_ahead(panel, next, i);
                TILE_DISPATCH(weigh_tile, smaller(tile, count - row), vectors, a, powers + row * score_row, score_row,
                              keys, panel, ahead, factors + row, y + row * a->of_y.row + column, column)
            }
        }
    }
}

/* Where a head's rows begin. */
INLINE int64_t head_at(head_strides s, int64_t batch, int64_t head) { return batch * s.batch + head * s.head; }

SHARED_KERNEL(aegis_attention, attention) {
    const attention *a = arguments;
    places p = places_of(a);
    float *k = a->workspace + self.thread * p.all, *v = k + p.v, *q = k + p.q, *scores = k + p.scores;
    float *factors = k + p.factors;
    int64_t blocks = ceil_divide(a->queries, p.block), packed = -1;
    range mine = part_of(self, a->batch * a->heads * blocks);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t batch = unit / blocks / a->heads, head = unit / blocks % a->heads, of_keys = head / a->sharers;
        int64_t first = unit % blocks * p.block, count = smaller(p.block, a->queries - first);
        if (packed != batch * a->heads + of_keys) {
            packed = batch * a->heads + of_keys;
            pack_panels(a->k + head_at(a->of_k, batch, of_keys), 1, a->of_k.row, a->size, a->keys, k);
            pack_panels(a->v + head_at(a->of_v, batch, of_keys), a->of_v.row, 1, a->keys, a->value_size, v);
        }
        const float *from = a->q + head_at(a->of_q, batch, head) + first * a->of_q.row;
        for (int64_t r = 0; r < count; r++) copy_floats(q + r * a->size, from + r * a->of_q.row, a->size);
        const float *mask = a->mask ? a->mask + head_at(a->of_mask, batch, head) + first * a->of_mask.row : NULL;
        score_block(a, q, k, mask, scores, p.score_row, count);
        for (int64_t r = 0; r < count; r++) {
            int64_t seen = a->first_sees ? smaller(a->keys, a->first_sees + first + r) : a->keys;
            factors[r] = powers_of_row(scores + r * p.score_row, seen, a->keys);
        }
        float *y = a->y + head_at(a->of_y, batch, head) + first * a->of_y.row;
        weigh_block(a, scores, p.score_row, v, factors, y, count);
    }
}
