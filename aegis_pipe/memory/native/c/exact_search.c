/* One attempt of the exact search of the memory planner.

   The method is explained in aegis_pipe/memory/exact_search.py, whose `PythonAttempt` does the same,
   step for step: whoever changes one changes both (tests compare them).

   Moments are the positions of the sorted distinct first steps; buffers are sorted by first moment
   and live during [first, end). All sizes are in bytes. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { FOUND = 1, NONE = 0, GAVE_UP = -1, OUT_OF_MEMORY = -2 };

static const int ROUNDS = 3;
static const int64_t FAR = INT64_MAX / 4;

typedef struct {
    int32_t buffer_count, moment_count;
    const int64_t *size, *alignment;
    const int32_t *first, *end, *rank;
    int64_t capacity, node_limit, nodes, work;
    int64_t *moment_weight, *buffer_weight, *offset;
    /* The state: top of what is placed, bytes not placed yet, and who must not be placed now. */
    int64_t *skyline, *rest;
    uint8_t *asleep;
    /* Scratch of one node, by moment or by position in the component. */
    int64_t *floor_, *lowest_top, *second_top, *earliest, *lowest, *tops;
    int32_t *lowest_one, *covering;
    uint8_t *chosen;
} Search;

/* What a node keeps while its children are tried; one allocation. */
typedef struct {
    int32_t *candidate, *part;
    int64_t *candidate_offset, *skyline;
    uint8_t *asleep;
    int32_t candidate_count;
} Frame;

static int64_t align(int64_t offset, int64_t alignment) {
    return alignment == 1 ? offset : (offset + alignment - 1) / alignment * alignment;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int compare_integers(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static int bit_length(int64_t value) { return 64 - __builtin_clzll((uint64_t)value); }

/* Offsets at which each buffer would come to lie now, and the same as the first lower bounds. */
static void drop(Search *s, const int32_t *members, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        int32_t b = members[i];
        int64_t top = 0;
        for (int32_t t = s->first[b]; t < s->end[b]; t++) top = larger(top, s->skyline[t]);
        s->earliest[i] = s->lowest[i] = align(top, s->alignment[b]);
        s->work += s->end[b] - s->first[b];
    }
}

/* Per moment: the lowest offset and the two lowest tops that its buffers can have. */
static int survey(Search *s, const int32_t *members, int32_t count, int32_t from, int32_t to) {
    for (int32_t t = from; t < to; t++) {
        s->floor_[t] = s->lowest_top[t] = s->second_top[t] = FAR;
        s->lowest_one[t] = -1;
    }
    for (int32_t i = 0; i < count; i++) {
        int32_t b = members[i];
        int64_t offset = s->lowest[i], top = offset + s->size[b];
        if (top > s->capacity) {
            s->buffer_weight[b]++;
            return 0;
        }
        for (int32_t t = s->first[b]; t < s->end[b]; t++) {
            if (offset < s->floor_[t]) s->floor_[t] = offset;
            if (top < s->lowest_top[t]) {
                s->second_top[t] = s->lowest_top[t];
                s->lowest_top[t] = top;
                s->lowest_one[t] = i;
            } else if (top < s->second_top[t]) {
                s->second_top[t] = top;
            }
        }
    }
    for (int32_t t = from; t < to; t++) {
        if (s->rest[t] && s->floor_[t] + s->rest[t] > s->capacity) {
            s->moment_weight[t]++;
            return 0;
        }
    }
    return 1;
}

/* Raises the lower bound of what needs another buffer below it; returns whether any moved, or -1. */
static int raise_bounds(Search *s, const int32_t *members, int32_t count) {
    int changed = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t b = members[i];
        int64_t bound = s->lowest[i], below = FAR;
        for (int32_t t = s->first[b]; t < s->end[b]; t++) {
            int64_t top = s->lowest_one[t] == i ? s->second_top[t] : s->lowest_top[t];
            if (s->lowest[i] + s->rest[t] > s->capacity) bound = larger(bound, top);
            if (top < below) below = top;
        }
        if (s->asleep[b]) bound = larger(bound, below);
        if (bound > s->lowest[i]) {
            s->lowest[i] = align(bound, s->alignment[b]);
            changed = 1;
            if (s->lowest[i] + s->size[b] > s->capacity) {
                s->buffer_weight[b]++;
                return -1;
            }
        }
    }
    return changed;
}

static int is_feasible(Search *s, const int32_t *members, int32_t count, int32_t from, int32_t to) {
    drop(s, members, count);
    for (int round = 1;; round++) {
        if (!survey(s, members, count, from, to)) return 0;
        if (round == ROUNDS) return 1;
        int changed = raise_bounds(s, members, count);
        if (changed < 0) return 0;
        if (!changed) return 1;
    }
}

static int is_movable(const Search *s, const int32_t *members, int32_t i) {
    return s->lowest[i] == s->earliest[i] && !s->asleep[members[i]];
}

/* The moment with the fewest ways on, the more so the more often it was to blame. */
static int32_t choose_moment(
    Search *s, const int32_t *members, int32_t count, int32_t from, int32_t to) {
    int32_t top_count = 0;
    memset(s->covering + from, 0, (size_t)(to - from) * sizeof(int32_t));
    for (int32_t i = 0; i < count; i++) {
        int32_t b = members[i];
        if (!is_movable(s, members, i)) continue;
        s->tops[top_count++] = s->earliest[i] + s->size[b];
        for (int32_t t = s->first[b]; t < s->end[b]; t++)
            s->covering[t] += s->earliest[i] + s->rest[t] <= s->capacity;
    }
    qsort(s->tops, (size_t)top_count, sizeof(int64_t), compare_integers);
    int32_t best = -1;
    int64_t best_value = FAR;
    for (int32_t t = from; t < to; t++) {
        if (!s->rest[t]) continue;
        int64_t latest = s->capacity - s->rest[t];
        int32_t low = 0, high = top_count;
        while (low < high) {
            int32_t middle = (low + high) / 2;
            if (s->tops[middle] <= latest) low = middle + 1;
            else high = middle;
        }
        int64_t ways = s->covering[t] + low;
        int64_t value = (ways << 10) / bit_length(1 + s->moment_weight[t]);
        if (value < best_value) {
            best_value = value;
            best = t;
        }
    }
    return best;
}

/* Marks what can come next: what covers the moment, and what can end up below that. */
static void choose_candidates(
    Search *s, const int32_t *members, int32_t count, int32_t from, int32_t to, int32_t moment) {
    int64_t latest = s->capacity - s->rest[moment];
    int32_t low = to, high = from;
    for (int32_t i = 0; i < count; i++) {
        int32_t b = members[i];
        s->chosen[i] = 0;
        if (s->first[b] <= moment && moment < s->end[b] && s->lowest[i] <= latest) {
            s->chosen[i] = 1;
            if (s->first[b] < low) low = s->first[b];
            if (s->end[b] > high) high = s->end[b];
        }
    }
    for (int changed = 1; changed;) {
        changed = 0;
        for (int32_t i = 0; i < count; i++) {
            int32_t b = members[i];
            if (s->chosen[i] || s->lowest[i] + s->size[b] > latest) continue;
            if (s->first[b] >= high || s->end[b] <= low) continue;
            s->chosen[i] = 1;
            changed = 1;
            if (s->first[b] < low) low = s->first[b];
            if (s->end[b] > high) high = s->end[b];
        }
    }
}

static int open_frame(
    Search *s, Frame *f, const int32_t *members, int32_t count, int32_t from, int32_t to) {
    size_t width = (size_t)(to - from), many = (size_t)count;
    char *block = malloc((width + many) * sizeof(int64_t) + 2 * many * sizeof(int32_t) + many);
    if (!block) return 0;
    f->skyline = (int64_t *)block;
    f->candidate_offset = f->skyline + width;
    f->candidate = (int32_t *)(f->candidate_offset + many);
    f->part = f->candidate + many;
    f->asleep = (uint8_t *)(f->part + many);
    memcpy(f->skyline, s->skyline + from, width * sizeof(int64_t));
    f->candidate_count = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t b = members[i];
        f->asleep[i] = s->asleep[b];
        if (!s->chosen[i] || !is_movable(s, members, i)) continue;
        /* Insertion sort by offset, then rank. */
        int32_t j = f->candidate_count++;
        for (; j > 0; j--) {
            int64_t before = f->candidate_offset[j - 1];
            if (before < s->earliest[i]) break;
            if (before == s->earliest[i] && s->rank[f->candidate[j - 1]] < s->rank[b]) break;
            f->candidate[j] = f->candidate[j - 1];
            f->candidate_offset[j] = before;
        }
        f->candidate[j] = b;
        f->candidate_offset[j] = s->earliest[i];
    }
    return 1;
}

static int visit(Search *s, const int32_t *members, int32_t count);

/* Visits what is left of a component, part by part: parts do not meet in time. */
static int visit_parts(Search *s, Frame *f, const int32_t *members, int32_t count, int32_t placed) {
    int32_t taken = 0;
    for (int32_t i = 0; i < count;) {
        int32_t size = 0, end = 0, *part = f->part + taken;
        for (; i < count; i++) {
            int32_t b = members[i];
            if (b == placed) continue;
            if (size && s->first[b] >= end) break;
            if (s->end[b] > end) end = s->end[b];
            part[size++] = b;
        }
        taken += size;
        int outcome = size ? visit(s, part, size) : FOUND;
        if (outcome != FOUND) return outcome;
    }
    return FOUND;
}

static void place(Search *s, const Frame *f, const int32_t *members, int32_t count, int32_t which) {
    int32_t b = f->candidate[which];
    s->offset[b] = f->candidate_offset[which];
    for (int32_t t = s->first[b]; t < s->end[b]; t++) {
        s->skyline[t] = s->offset[b] + s->size[b];
        s->rest[t] -= s->size[b];
    }
    for (int32_t i = 0; i < count; i++) {
        int32_t other = members[i];
        int apart = s->end[other] <= s->first[b] || s->first[other] >= s->end[b];
        s->asleep[other] = f->asleep[i] && apart;
    }
}

static void undo(
    Search *s, Frame *f, const int32_t *members, int32_t count, int32_t from, int32_t to, int32_t b) {
    memcpy(s->skyline + from, f->skyline, (size_t)(to - from) * sizeof(int64_t));
    memset(s->rest + from, 0, (size_t)(to - from) * sizeof(int64_t));
    for (int32_t i = 0; i < count; i++) {
        int32_t each = members[i];
        for (int32_t t = s->first[each]; t < s->end[each]; t++) s->rest[t] += s->size[each];
        if (each == b) f->asleep[i] = 1;
        s->asleep[each] = f->asleep[i];
    }
}

static int visit(Search *s, const int32_t *members, int32_t count) {
    if (++s->nodes > s->node_limit) return GAVE_UP;
    int32_t from = s->first[members[0]], to = 0;
    for (int32_t i = 0; i < count; i++)
        if (s->end[members[i]] > to) to = s->end[members[i]];
    if (!is_feasible(s, members, count, from, to)) return NONE;
    choose_candidates(s, members, count, from, to, choose_moment(s, members, count, from, to));
    Frame frame;
    if (!open_frame(s, &frame, members, count, from, to)) return OUT_OF_MEMORY;
    int outcome = NONE;
    for (int32_t which = 0; which < frame.candidate_count && outcome == NONE; which++) {
        place(s, &frame, members, count, which);
        outcome = visit_parts(s, &frame, members, count, frame.candidate[which]);
        if (outcome == NONE) undo(s, &frame, members, count, from, to, frame.candidate[which]);
    }
    free(frame.skyline);
    return outcome;
}

static int visit_all(Search *s) {
    Frame frame = {0};
    int32_t *all = malloc(2 * (size_t)s->buffer_count * sizeof(int32_t));
    if (!all) return OUT_OF_MEMORY;
    for (int32_t b = 0; b < s->buffer_count; b++) {
        all[b] = b;
        for (int32_t t = s->first[b]; t < s->end[b]; t++) s->rest[t] += s->size[b];
    }
    frame.part = all + s->buffer_count;
    int outcome = visit_parts(s, &frame, all, s->buffer_count, -1);
    free(all);
    return outcome;
}

/* Looks for offsets within `capacity`; weights are carried from one attempt to the next.
   Returns FOUND, NONE (there is no such plan), GAVE_UP after `node_limit` nodes, OUT_OF_MEMORY. */
EXPORT int aegis_exact_search(
    int32_t buffer_count, int32_t moment_count, const int64_t *size, const int64_t *alignment,
    const int32_t *first, const int32_t *end, const int32_t *rank, int64_t capacity,
    int64_t node_limit, int64_t *moment_weight, int64_t *buffer_weight, int64_t *offset,
    int64_t *work) {
    Search s = {
        .buffer_count = buffer_count, .moment_count = moment_count, .size = size,
        .alignment = alignment, .first = first, .end = end, .rank = rank, .capacity = capacity,
        .node_limit = node_limit, .moment_weight = moment_weight, .buffer_weight = buffer_weight,
        .offset = offset,
    };
    size_t moments = (size_t)moment_count, buffers = (size_t)buffer_count;
    int64_t *wide = calloc(5 * moments + 3 * buffers, sizeof(int64_t));
    int32_t *narrow = calloc(2 * moments, sizeof(int32_t));
    uint8_t *flags = calloc(2 * buffers, 1);
    int outcome = OUT_OF_MEMORY;
    if (wide && narrow && flags) {
        s.skyline = wide;
        s.rest = s.skyline + moments;
        s.floor_ = s.rest + moments;
        s.lowest_top = s.floor_ + moments;
        s.second_top = s.lowest_top + moments;
        s.earliest = s.second_top + moments;
        s.lowest = s.earliest + buffers;
        s.tops = s.lowest + buffers;
        s.lowest_one = narrow;
        s.covering = narrow + moments;
        s.asleep = flags;
        s.chosen = flags + buffers;
        outcome = visit_all(&s);
    }
    free(wide);
    free(narrow);
    free(flags);
    *work = s.work;
    return outcome;
}
