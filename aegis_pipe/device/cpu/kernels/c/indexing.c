/* Gather, GatherND and GatherElements: elements of any type, picked by indices that are data.
 *
 * Negative indices count from the end. One outside of its dimension is noted in `refused`, and zeros
 * are written for what it means: nothing is read through it, and the call that ran the kernel raises.
 */
#include "step.h"

enum { RANK = 6 };

/* Notes an index: of those below their dimension the lowest, else the highest. 0 is never outside,
 * so it means none. Whichever worker comes first, the same one stays. */
static void refuse(int64_t *noted, int64_t index) {
    int64_t before = __atomic_load_n(noted, __ATOMIC_RELAXED);
    for (;;) {
        int counts = !before || (index < 0 ? before > index : before > 0 && before < index);
        if (!counts) return;
        if (__atomic_compare_exchange_n(noted, &before, index, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
    }
}

INLINE int64_t index_at(const void *indices, int64_t i, int is_narrow) {
    return is_narrow ? ((const int32_t *)indices)[i] : ((const int64_t *)indices)[i];
}

/* The index counted from the start, or -1. Its sign may be anything, so it is no branch. */
INLINE int64_t from_start(int64_t index, int64_t size, int64_t *refused) {
    int64_t place = (int64_t)((uint64_t)index + ((uint64_t)size & -(uint64_t)(index < 0)));
    if ((uint64_t)place < (uint64_t)size) return place;
    refuse(refused, index);
    return -1;
}

typedef struct {
    const char *x;
    const void *indices;         /* [count][depth], one set for all of `outer` or one each */
    char *y;                     /* [outer][count][row] */
    int64_t *refused;            /* [depth] */
    const int64_t *sizes, *steps; /* [depth]: of the dimensions that are indexed; steps in bytes */
    int64_t outer, outer_step;   /* outer_step: bytes of X */
    int64_t outer_indices;       /* tuples from one set to the next */
    int64_t count, depth;
    int64_t row;                 /* bytes that a tuple means */
    int64_t is_narrow;           /* indices are int32 */
} gathering;

INLINE void copy_row(char *to, const char *from, int64_t row) {
    if (row % 4 == 0 && row <= 512)
        copy_floats((float *)(void *)to, (const float *)(const void *)from, row / 4);
    else __builtin_memcpy(to, from, (size_t)row);
}

/* Rows of single indices. `row` and `is_narrow` are constants where it matters; what the loop needs
 * is at hand in variables, since a store of bytes may change all that lies in memory. */
INLINE void gather_rows(const gathering *g, range mine, int64_t row, int is_narrow) {
    int64_t size = g->sizes[0], step = g->steps[0], count = g->count;
    for (int64_t unit = mine.first, last; unit < mine.last; unit = last) {
        int64_t outer = unit / count, first = unit % count;
        last = smaller(unit - first + count, mine.last);
        const void *indices = g->indices;
        const char *x = g->x + outer * g->outer_step;
        char *y = g->y + unit * row;
        int64_t from = outer * g->outer_indices + first;
        for (int64_t i = from; i < from + last - unit; i++, y += row) {
            int64_t place = from_start(index_at(indices, i, is_narrow), size, g->refused);
            if (place >= 0) copy_row(y, x + place * step, row);
            else __builtin_memset(y, 0, (size_t)row);
        }
    }
}

/* Rows of tuples of indices. */
INLINE void gather_tuples(const gathering *g, range mine, int is_narrow) {
    for (int64_t unit = mine.first; unit < mine.last; unit++) {
        int64_t outer = unit / g->count, tuple = outer * g->outer_indices + unit % g->count;
        int64_t offset = outer * g->outer_step, is_inside = 1;
        for (int64_t d = 0; d < g->depth; d++) {
            int64_t index = index_at(g->indices, tuple * g->depth + d, is_narrow);
            int64_t place = from_start(index, g->sizes[d], g->refused + d);
            if (place < 0) is_inside = 0;
            else offset += place * g->steps[d];
        }
        char *y = g->y + unit * g->row;
        if (is_inside) copy_row(y, g->x + offset, g->row);
        else __builtin_memset(y, 0, (size_t)g->row);
    }
}

INLINE void gather_as(const gathering *g, range mine, int is_narrow) {
    if (g->depth != 1) gather_tuples(g, mine, is_narrow);
    else if (g->row == 1) gather_rows(g, mine, 1, is_narrow);
    else if (g->row == 2) gather_rows(g, mine, 2, is_narrow);
    else if (g->row == 4) gather_rows(g, mine, 4, is_narrow);
    else if (g->row == 8) gather_rows(g, mine, 8, is_narrow);
    else gather_rows(g, mine, g->row, is_narrow);
}

SHARED_KERNEL(aegis_gather, gathering) {
    const gathering *g = arguments;
    range mine = part_of(self, g->outer * g->count);
    if (g->is_narrow) gather_as(g, mine, 1);
    else gather_as(g, mine, 0);
}

typedef struct {
    const char *x;
    const void *indices;
    char *y;
    int64_t *refused;
    int64_t shape[RANK], steps[RANK]; /* of the indices; in elements of X, 0 along the axis */
    int64_t size, axis_step;          /* of the axis in X, in elements */
    int64_t item, is_narrow;
} element_gathering;

INLINE void gather_run(const element_gathering *g, const char *x, int64_t run, int64_t item, int is_narrow) {
    int64_t count = g->shape[RANK - 1], step = g->steps[RANK - 1], size = g->size, axis_step = g->axis_step;
    const void *indices = g->indices;
    char *y = g->y + run * count * item;
    for (int64_t i = 0; i < count; i++, y += item) {
        int64_t place = from_start(index_at(indices, run * count + i, is_narrow), size, g->refused);
        if (place < 0) __builtin_memset(y, 0, (size_t)item);
        else __builtin_memcpy(y, x + (i * step + place * axis_step) * item, (size_t)item);
    }
}

INLINE void gather_items(const element_gathering *g, range mine, int64_t item, int is_narrow) {
    for (int64_t run = mine.first; run < mine.last; run++) {
        int64_t rest = run, offset = 0;
        for (int d = RANK - 2; d >= 0; d--) {
            offset += rest % g->shape[d] * g->steps[d];
            rest /= g->shape[d];
        }
        gather_run(g, g->x + offset * item, run, item, is_narrow);
    }
}

INLINE void gather_elements_as(const element_gathering *g, range mine, int is_narrow) {
    if (g->item == 1) gather_items(g, mine, 1, is_narrow);
    else if (g->item == 2) gather_items(g, mine, 2, is_narrow);
    else if (g->item == 4) gather_items(g, mine, 4, is_narrow);
    else if (g->item == 8) gather_items(g, mine, 8, is_narrow);
    else gather_items(g, mine, g->item, is_narrow);
}

SHARED_KERNEL(aegis_gather_elements, element_gathering) {
    const element_gathering *g = arguments;
    int64_t runs = 1;
    for (int d = 0; d < RANK - 1; d++) runs *= g->shape[d];
    range mine = part_of(self, runs);
    if (g->is_narrow) gather_elements_as(g, mine, 1);
    else gather_elements_as(g, mine, 0);
}
