/* Non-maximum suppression: of boxes that overlap, the best stays.
 *
 *     for each image:  corners and areas of its boxes
 *       for each class:  a heap of the boxes with enough score, best on top
 *         take the top, keep it unless a box kept before overlaps it by more than the threshold
 *
 * A heap, because the limit is mostly reached, or the heap empty, long before all would be sorted.
 */
#include "step.h"

/* The NumPy kernel rounds after every operation; so does this one, on every processor. */
#pragma STDC FP_CONTRACT OFF

typedef struct { float low[2], high[2], area; } box;

typedef struct {
    const float *boxes, *scores; /* [images][count][4], [images][classes][count] */
    const float *overlap, *least; /* NULL: 0, and no score is too low */
    const int64_t *most; /* NULL: as many as planned */
    int64_t *selected, *length; /* [images * classes * planned][3]; either may be NULL */
    box *corners; /* [count] */
    int64_t *heap; /* [count] */
    box *kept; /* [planned] */
    int64_t images, classes, count, planned, is_centred;
} suppression;

INLINE float larger_float(float a, float b) { return a > b ? a : b; }
INLINE float smaller_float(float a, float b) { return a < b ? a : b; }

INLINE box box_of(const float *b, int64_t is_centred) {
    box result;
    for (int axis = 0; axis < 2; axis++) {
        float first = b[axis], second = b[2 + axis], half = second / 2;
        result.low[axis] = is_centred ? first - half : smaller_float(first, second);
        result.high[axis] = is_centred ? first + half : larger_float(first, second);
    }
    result.area = (result.high[0] - result.low[0]) * (result.high[1] - result.low[1]);
    return result;
}

/* Intersection over union; 0 where there is no union. */
INLINE float overlap_of(const box *a, const box *b) {
    float sides[2];
    for (int axis = 0; axis < 2; axis++)
        sides[axis] = larger_float(
            smaller_float(a->high[axis], b->high[axis]) - larger_float(a->low[axis], b->low[axis]), 0);
    float common = sides[0] * sides[1], both = a->area + b->area - common;
    return both > 0 ? common / both : 0;
}

/* Whether box a comes before box b: by score, equal ones in their order. */
INLINE int is_better(const float *scores, int64_t a, int64_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
}

INLINE void sink(const float *scores, int64_t *heap, int64_t size, int64_t at) {
    int64_t moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
        child += child + 1 < size && is_better(scores, heap[child + 1], heap[child]);
        if (is_better(scores, moved, heap[child])) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* Writes the boxes of one class that stay; returns how many. */
static int64_t keep_boxes(const suppression *s, const float *scores, float overlap, float least, int64_t most,
                          int64_t image, int64_t class, int64_t *selected) {
    int64_t size = 0, count = 0;
    for (int64_t i = 0; i < s->count; i++)
        /* NaN is no better than a threshold. */
        if (scores[i] > least) s->heap[size++] = i;
    for (int64_t at = size / 2; at-- > 0;) sink(scores, s->heap, size, at);
    while (size > 0 && count < most) {
        int64_t best = s->heap[0];
        s->heap[0] = s->heap[--size];
        if (size > 0) sink(scores, s->heap, size, 0);
        int64_t other = 0;
        while (other < count && overlap_of(&s->kept[other], &s->corners[best]) <= overlap) other++;
        if (other < count) continue;
        s->kept[count] = s->corners[best];
        if (selected) {
            selected[3 * count] = image;
            selected[3 * count + 1] = class;
            selected[3 * count + 2] = best;
        }
        count++;
    }
    return count;
}

KERNEL(aegis_suppress, suppression) {
    const suppression *s = arguments;
    float overlap = s->overlap ? *s->overlap : 0;
    float least = s->least ? *s->least : -__builtin_inff();
    int64_t most = s->most ? smaller(larger(*s->most, 0), s->planned) : s->planned, count = 0;
    for (int64_t image = 0; image < s->images; image++) {
        for (int64_t i = 0; i < s->count; i++)
            s->corners[i] = box_of(s->boxes + 4 * (image * s->count + i), s->is_centred);
        for (int64_t class = 0; class < s->classes; class++)
            count += keep_boxes(s, s->scores + (image * s->classes + class) * s->count, overlap, least, most,
                                image, class, s->selected ? s->selected + 3 * count : 0);
    }
    if (s->selected)
        for (int64_t i = 3 * count; i < 3 * s->images * s->classes * s->planned; i++) s->selected[i] = 0;
    if (s->length) *s->length = count;
}
