/* First fit: places buffers in a given order, each at the lowest offset that is free during its
   life. The method is explained in aegis_pipe/memory/packing.py, whose placers do the same. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    int64_t start, top;
    int32_t first, end;
} Placed;

static int64_t lowest_gap(
    const Placed *placed, int32_t count, int64_t size, int64_t alignment, int32_t first, int32_t end) {
    int64_t lowest = 0;
    for (const Placed *p = placed; p < placed + count; p++) {
        if (p->first >= end || p->end <= first) continue;
        if (p->start - lowest >= size) break;
        if (p->top > lowest) lowest = (p->top + alignment - 1) / alignment * alignment;
    }
    return lowest;
}

/* Keeps what is placed sorted by start. */
static void insert(Placed *placed, int32_t count, Placed new) {
    int32_t low = 0, high = count;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (placed[middle].start <= new.start) low = middle + 1;
        else high = middle;
    }
    memmove(placed + low + 1, placed + low, (size_t)(count - low) * sizeof(Placed));
    placed[low] = new;
}

/* Fills `offset`; those that are not negative before are fixed. Returns how many of `order` were
   looked at before one ended above `limit` (negative: no limit), `count` if none did, and -1
   without memory. */
EXPORT int32_t aegis_first_fit(
    int32_t count, const int64_t *size, const int64_t *alignment, const int32_t *first,
    const int32_t *end, const int32_t *order, int64_t limit, int64_t *offset) {
    Placed *placed = malloc((size_t)(count + 1) * sizeof(Placed));
    if (!placed) return -1;
    int32_t filled = 0, done = 0;
    for (int32_t b = 0; b < count; b++)
        if (offset[b] >= 0)
            insert(placed, filled++, (Placed){offset[b], offset[b] + size[b], first[b], end[b]});
    for (; done < count; done++) {
        int32_t b = order[done];
        if (offset[b] >= 0) continue;
        int64_t start = lowest_gap(placed, filled, size[b], alignment[b], first[b], end[b]);
        if (limit >= 0 && start + size[b] > limit) break;
        offset[b] = start;
        insert(placed, filled++, (Placed){start, start + size[b], first[b], end[b]});
    }
    free(placed);
    return done;
}
