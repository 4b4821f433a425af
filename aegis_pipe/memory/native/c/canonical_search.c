/* One attempt of the canonical search of the memory planner.

   The method is explained in aegis_pipe/memory/canonical_search.py, whose `PythonCanonicalAttempt`
   does the same, step for step: whoever changes one changes both (tests compare them).

   Moments are the positions of the sorted distinct first steps; buffers are sorted by first moment
   and live during [first, end). All sizes are in bytes. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { FOUND = 1, NONE = 0, GAVE_UP = -1, OUT_OF_MEMORY = -2 };

static const int64_t FAR = INT64_MAX / 4;

typedef struct {
    const int64_t *size, *alignment;
    const int32_t *first, *end, *rank;
    int64_t capacity, node_limit, nodes, work;
    int64_t *moment_weight, *offset;
    /* The state: where each buffer would come to lie now, and bytes not placed yet. */
    int64_t *earliest, *rest;
    int64_t *floor_; /* Scratch, by moment. */
} Search;

/* The last one placed: all later ones of its component lie higher, or as high with a later rank. */
typedef struct {
    int64_t offset;
    int32_t rank;
} Level;

typedef struct {
    Level level;
    int32_t place; /* Among the members of the node. */
} Candidate;

static int64_t align(int64_t offset, int64_t alignment) {
    return alignment == 1 ? offset : (offset + alignment - 1) / alignment * alignment;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int is_below(Level a, Level b) {
    return a.offset < b.offset || (a.offset == b.offset && a.rank < b.rank);
}

static int compare_candidates(const void *left, const void *right) {
    const Candidate *a = left, *b = right;
    return is_below(b->level, a->level) - is_below(a->level, b->level);
}

static int64_t lower_bound(const Search *s, int32_t b, Level level) {
    return align(larger(s->earliest[b], level.offset), s->alignment[b]);
}

static int32_t end_of(const Search *s, const int32_t *members, int32_t count) {
    int32_t end = 0;
    for (int32_t i = 0; i < count; i++)
        if (s->end[members[i]] > end) end = s->end[members[i]];
    return end;
}

/* What can come next, lowest first. It must begin below every top that another one could have:
   otherwise that one fitted under it, and the plan could be pushed down. */
static int32_t find_candidates(
    const Search *s, const int32_t *members, int32_t count, Level level, Candidate *found) {
    int64_t lowest_top = FAR;
    for (int32_t i = 0; i < count; i++) {
        int64_t top = lower_bound(s, members[i], level) + s->size[members[i]];
        if (top < lowest_top) lowest_top = top;
    }
    int32_t many = 0;
    for (int32_t i = 0; i < count; i++) {
        Level own = {s->earliest[members[i]], s->rank[members[i]]};
        if (is_below(own, level) || own.offset >= lowest_top) continue;
        found[many++] = (Candidate){own, i};
    }
    qsort(found, (size_t)many, sizeof(Candidate), compare_candidates);
    return many;
}

/* Whether everything that waits, this buffer with it, fits above its offset: nothing that follows
   lies lower. Cheap, and refuses most candidates. */
static int leaves_room(Search *s, int32_t b, int64_t offset, int32_t from, int32_t to) {
    s->work++;
    if (offset + s->size[b] > s->capacity) return 0;
    for (int32_t t = from; t < to; t++)
        if (offset + s->rest[t] > s->capacity) return 0;
    return 1;
}

/* Whether what waits at each moment fits above the lowest bound there. */
static int is_feasible(Search *s, const int32_t *members, int32_t count, Level level) {
    int32_t from = s->first[members[0]], to = end_of(s, members, count);
    for (int32_t t = from; t < to; t++) s->floor_[t] = FAR;
    for (int32_t i = 0; i < count; i++) {
        int32_t b = members[i];
        int64_t bound = lower_bound(s, b, level);
        s->work += s->end[b] - s->first[b];
        if (bound + s->size[b] > s->capacity) return 0;
        for (int32_t t = s->first[b]; t < s->end[b]; t++)
            s->floor_[t] = s->floor_[t] < bound ? s->floor_[t] : bound;
    }
    for (int32_t t = from; t < to; t++) {
        if (s->rest[t] && s->floor_[t] + s->rest[t] > s->capacity) {
            s->moment_weight[t]++;
            return 0;
        }
    }
    return 1;
}

static void place(Search *s, int32_t b, int64_t offset, const int32_t *left, int32_t count) {
    int64_t top = offset + s->size[b];
    s->offset[b] = offset;
    for (int32_t t = s->first[b]; t < s->end[b]; t++) s->rest[t] -= s->size[b];
    for (int32_t i = 0; i < count; i++) {
        int32_t other = left[i];
        if (s->first[other] >= s->end[b] || s->end[other] <= s->first[b]) continue;
        s->earliest[other] = larger(s->earliest[other], align(top, s->alignment[other]));
    }
}

static int visit(Search *s, const int32_t *members, int32_t count, Level level);

/* Visits what is left of a component, part by part: parts do not meet in time. */
static int visit_parts(Search *s, const int32_t *left, int32_t count, Level level) {
    for (int32_t begin = 0, i = 0; begin < count; begin = i) {
        int32_t end = 0;
        for (; i < count && (i == begin || s->first[left[i]] < end); i++)
            if (s->end[left[i]] > end) end = s->end[left[i]];
        int outcome = visit(s, left + begin, i - begin, level);
        if (outcome != FOUND) return outcome;
    }
    return FOUND;
}

static int visit(Search *s, const int32_t *members, int32_t count, Level level) {
    if (++s->nodes > s->node_limit) return GAVE_UP;
    int32_t from = s->first[members[0]], to = end_of(s, members, count);
    size_t many = (size_t)count, width = (size_t)(to - from) * sizeof(int64_t);
    char *block = malloc(many * (sizeof(Candidate) + sizeof(int64_t) + sizeof(int32_t)) + width);
    if (!block) return OUT_OF_MEMORY;
    Candidate *candidates = (Candidate *)block;
    int64_t *earliest = (int64_t *)(candidates + count), *rest = earliest + count;
    int32_t *left = (int32_t *)(rest + (to - from));
    int32_t candidate_count = find_candidates(s, members, count, level, candidates);
    for (int32_t i = 0; i < count; i++) earliest[i] = s->earliest[members[i]];
    memcpy(rest, s->rest + from, width);
    int outcome = NONE;
    for (int32_t which = 0; which < candidate_count && outcome == NONE; which++) {
        Level next = candidates[which].level;
        int32_t at = candidates[which].place, b = members[at];
        if (!leaves_room(s, b, next.offset, from, to)) continue;
        memcpy(left, members, (size_t)at * sizeof(int32_t));
        memcpy(left + at, members + at + 1, (size_t)(count - at - 1) * sizeof(int32_t));
        place(s, b, next.offset, left, count - 1);
        if (count == 1 || is_feasible(s, left, count - 1, next))
            outcome = visit_parts(s, left, count - 1, next);
        if (outcome != NONE) break;
        /* Parts that were finished before one failed have left their marks as well. */
        memcpy(s->rest + from, rest, width);
        for (int32_t i = 0; i < count; i++) s->earliest[members[i]] = earliest[i];
    }
    free(block);
    return outcome;
}

/* Looks for offsets within `capacity`; weights are carried from one attempt to the next.
   Returns FOUND, NONE (there is no such plan), GAVE_UP after `node_limit` nodes, OUT_OF_MEMORY. */
EXPORT int aegis_canonical_search(
    int32_t buffer_count, int32_t moment_count, const int64_t *size, const int64_t *alignment,
    const int32_t *first, const int32_t *end, const int32_t *rank, int64_t capacity,
    int64_t node_limit, int64_t *moment_weight, int64_t *buffer_weight, int64_t *offset,
    int64_t *work) {
    Search s = {
        .size = size, .alignment = alignment, .first = first, .end = end, .rank = rank,
        .capacity = capacity, .node_limit = node_limit, .moment_weight = moment_weight,
        .offset = offset,
    };
    (void)buffer_weight; /* Moments alone are blamed here; the signature is that of both searches. */
    size_t moments = (size_t)moment_count, buffers = (size_t)buffer_count;
    int64_t *wide = calloc(2 * moments + buffers, sizeof(int64_t));
    int32_t *all = malloc(buffers * sizeof(int32_t));
    int outcome = OUT_OF_MEMORY;
    if (wide && all) {
        s.rest = wide;
        s.floor_ = s.rest + moments;
        s.earliest = s.floor_ + moments;
        for (int32_t b = 0; b < buffer_count; b++) {
            all[b] = b;
            for (int32_t t = first[b]; t < end[b]; t++) s.rest[t] += size[b];
        }
        outcome = visit_parts(&s, all, buffer_count, (Level){0, -1});
    }
    free(wide);
    free(all);
    *work = s.work;
    return outcome;
}
