/* Resize along two dimensions at once, or along several in turn: each result is a weighted sum of a few elements (its taps).
 *
 *     X[planes][rows_in][columns_in]  ->  Y[planes][rows][columns]
 *
 * Interpolation is separable: rows are stretched along their columns, then blended. A stretched row
 * serves all the result rows that it is a tap of; those held are as many as one result has taps.
 *
 *     for each band of result rows
 *       for each row:  rows that it needs and that are not held are stretched;  they are blended
 *
 * Other dimensions than two neighbours are resized one after the other, and a team meets in between.
 * Taps are tables made at load. A row whose first tap is -1 lies outside of the input.
 */
#include "meeting.h"

enum { TAPS = 64 };

/* Along one dimension: int32[count][size] positions and their weights. `count` 0: it stays as it is. */
typedef struct {
    const int32_t *positions;
    const float *weights;
    int64_t count, size;
} taps;

typedef struct {
    const float *x;
    float *y, *workspace; /* of each worker: stretched rows, [held][columns] */
    const int32_t *outside; /* columns of the result that lie outside of the input */
    int64_t planes, rows_in, columns_in, rows, columns; /* columns in floats */
    int64_t inner;        /* floats that a position of a column means: 1, or at least WIDE */
    int64_t bands;        /* into which a plane is cut */
    int64_t held, outside_count;
    taps down, along;
    float value;          /* of what lies outside */
} interpolation;

INLINE wide wide_gather(const float *x, const int32_t *at) {
#if defined(__AVX512F__)
    return (wide)_mm512_i32gather_ps(_mm512_loadu_si512(at), x, 4);
#elif defined(__AVX2__)
    eight low = (eight)_mm256_i32gather_ps(x, _mm256_loadu_si256((const __m256i *)(const void *)at), 4);
    eight high = (eight)_mm256_i32gather_ps(x, _mm256_loadu_si256((const __m256i *)(const void *)(at + 8)), 4);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    float lanes[WIDE];
    for (int i = 0; i < WIDE; i++) lanes[i] = x[at[i]];
    return wide_load(lanes);
#endif
}

/* Every result gathers its taps; the tables are padded to whole registers. */
INLINE void stretch_gathering(const interpolation *r, const float *x, float *y, int64_t count) {
    const taps *t = &r->along;
    for (int64_t i = 0; i < r->columns; i += WIDE) {
        wide sum = wide_load(t->weights + i) * wide_gather(x, t->positions + i);
        for (int64_t k = 1; k < count; k++)
            sum = multiply_add(wide_load(t->weights + k * t->size + i),
                               wide_gather(x, t->positions + k * t->size + i), sum);
        row_store(y, i, r->columns, sum);
    }
}

/* What a position means fills registers. */
INLINE void stretch_blocks(const interpolation *r, const float *x, float *y, int64_t count) {
    const taps *t = &r->along;
    for (int64_t j = 0; j < r->columns / r->inner; j++, y += r->inner)
        for (int64_t c = 0; c < r->inner; c += WIDE) {
            wide sum = t->weights[j] * row_load(x + t->positions[j], c, r->inner);
            for (int64_t k = 1; k < count; k++)
                sum = multiply_add(wide_of(t->weights[k * t->size + j]),
                                   row_load(x + t->positions[k * t->size + j], c, r->inner), sum);
            row_store(y, c, r->inner, sum);
        }
}

static void stretch(const interpolation *r, const float *x, float *y) {
    if (!r->along.count) copy_floats(y, x, r->columns);
    else if (r->inner > 1 && r->along.count == 2) stretch_blocks(r, x, y, 2);
    else if (r->inner > 1) stretch_blocks(r, x, y, r->along.count);
    else if (r->along.count == 2) stretch_gathering(r, x, y, 2);
    else stretch_gathering(r, x, y, r->along.count);
}

INLINE void blend(const interpolation *r, const float *const *rows, int64_t row, int64_t count, float *y) {
    const float *weights = r->down.weights + row;
    for (int64_t i = 0; i < r->columns; i += WIDE) {
        wide sum = weights[0] * row_load(rows[0], i, r->columns);
        for (int64_t k = 1; k < count; k++)
            sum = multiply_add(wide_of(weights[k * r->down.size]), row_load(rows[k], i, r->columns), sum);
        row_store(y, i, r->columns, sum);
    }
}

/* One row of the result. `holds` says which input row each of the held ones was. */
static void make_row(const interpolation *r, const float *plane, int64_t row, float *ring, int64_t *holds, float *y) {
    const taps *t = &r->down;
    int64_t count = larger(1, t->count);
    const float *rows[TAPS];
    for (int64_t k = 0; k < count; k++) {
        int64_t from = t->count ? t->positions[k * t->size + row] : row, slot = from % r->held;
        const float *x = plane + from * r->columns_in;
        rows[k] = x;
        if (count == 1) stretch(r, x, y);
        if (count == 1 || !r->along.count) continue;
        rows[k] = ring + slot * r->columns;
        if (holds[slot] == from) continue;
        stretch(r, x, ring + slot * r->columns);
        holds[slot] = from;
    }
    if (count == 2) blend(r, rows, row, 2, y);
    else if (count > 1) blend(r, rows, row, count, y);
}

static void interpolate(const interpolation *r, worker self) {
    float *ring = r->workspace + self.thread * r->held * r->columns;
    int64_t holds[TAPS];
    range mine = part_of(self, r->planes * r->bands);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t plane = unit / r->bands, band = unit % r->bands;
        for (int64_t i = 0; i < r->held; i++) holds[i] = -1;
        for (int64_t row = r->rows * band / r->bands; row < r->rows * (band + 1) / r->bands; row++) {
            float *y = r->y + (plane * r->rows + row) * r->columns;
            if (r->down.count && r->down.positions[row] < 0) {
                for (int64_t i = 0; i < r->columns; i += WIDE) row_store(y, i, r->columns, wide_of(r->value));
                continue;
            }
            make_row(r, r->x + plane * r->rows_in * r->columns_in, row, ring, holds, y);
            for (int64_t i = 0; i < r->outside_count; i++) y[r->outside[i]] = r->value;
        }
    }
}

SHARED_KERNEL(aegis_interpolate, interpolation) { interpolate(arguments, self); }

/* One after the other, each from what the one before has written. */
typedef struct {
    const interpolation *passes;
    int64_t count;
    meeting_place *place;
} interpolations;

SHARED_KERNEL(aegis_interpolate_in_turn, interpolations) {
    const interpolations *all = arguments;
    for (int64_t i = 0; i < all->count; i++) {
        if (i) meet_at(all->place, self);
        interpolate(&all->passes[i], self);
    }
}

typedef struct {
    const char *x;
    char *y;
    const int32_t *down, *along; /* which row, which column; NULL: the same one */
    const int32_t *outside;
    int64_t planes, rows_in, columns_in, rows, columns, bands, outside_count;
    int64_t item;                /* bytes of a column's element */
    int64_t doubles;             /* every column becomes two neighbours */
    uint64_t value;              /* bits of what lies outside */
} repetition;

#define PICK(name, type)                                                                          \
    static void pick_##name(const char *from, char *to, const int32_t *at, int64_t count) {       \
        const type *x = (const type *)(const void *)from;                                         \
        type *y = (type *)(void *)to;                                                             \
        for (int64_t i = 0; i < count; i++) y[i] = x[at[i]];                                      \
    }

PICK(1, uint8_t)
PICK(2, uint16_t)
PICK(4, uint32_t)
PICK(8, uint64_t)

static void double_floats(const float *x, float *y, int64_t count) {
    int64_t i = 0;
    for (; i + WIDE <= count; i += WIDE) {
        wide v = wide_load(x + i);
        wide_store(y + 2 * i, wide_merged_low(v, v));
        wide_store(y + 2 * i + WIDE, wide_merged_high(v, v));
    }
    for (; i < count; i++) y[2 * i] = y[2 * i + 1] = x[i];
}

static void pick_row(const repetition *r, const char *x, char *y) {
    if (!r->along) __builtin_memcpy(y, x, (size_t)(r->columns * r->item));
    else if (r->doubles && r->item == 4)
        double_floats((const float *)(const void *)x, (float *)(void *)y, r->columns_in);
    else if (r->item == 1) pick_1(x, y, r->along, r->columns);
    else if (r->item == 2) pick_2(x, y, r->along, r->columns);
    else if (r->item == 4) pick_4(x, y, r->along, r->columns);
    else if (r->item == 8) pick_8(x, y, r->along, r->columns);
    else
        for (int64_t i = 0; i < r->columns; i++)
            __builtin_memcpy(y + i * r->item, x + r->along[i] * r->item, (size_t)r->item);
}

/* Elements of any type, each one of the input's; what lies outside is of 8 bytes at most. */
static void repeat(const repetition *r, worker self) {
    int64_t row_in = r->columns_in * r->item, row_out = r->columns * r->item;
    range mine = part_of(self, r->planes * r->bands);
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t plane = unit / r->bands, band = unit % r->bands, before = -1;
        for (int64_t row = r->rows * band / r->bands; row < r->rows * (band + 1) / r->bands; row++) {
            int64_t from = r->down ? r->down[row] : row;
            char *y = r->y + (plane * r->rows + row) * row_out;
            if (from == before && from >= 0) {
                __builtin_memcpy(y, y - row_out, (size_t)row_out);
                continue;
            }
            before = from;
            if (from < 0) {
                for (int64_t i = 0; i < r->columns; i++)
                    __builtin_memcpy(y + i * r->item, &r->value, (size_t)r->item);
                continue;
            }
            pick_row(r, r->x + (plane * r->rows_in + from) * row_in, y);
            for (int64_t i = 0; i < r->outside_count; i++)
                __builtin_memcpy(y + r->outside[i] * r->item, &r->value, (size_t)r->item);
        }
    }
}

SHARED_KERNEL(aegis_repeat, repetition) { repeat(arguments, self); }

typedef struct {
    const repetition *passes;
    int64_t count;
    meeting_place *place;
} repetitions;

SHARED_KERNEL(aegis_repeat_in_turn, repetitions) {
    const repetitions *all = arguments;
    for (int64_t i = 0; i < all->count; i++) {
        if (i) meet_at(all->place, self);
        repeat(&all->passes[i], self);
    }
}
