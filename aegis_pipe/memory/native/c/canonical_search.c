/* One attempt of the canonical search of the memory planner.

   The method is explained in aegis_pipe/memory/canonical_search.py, whose `PythonCanonicalAttempt`
   does the same, step for step: whoever changes one changes both (tests compare them).

   A section is a set of buffers alive together to which no other one could be added; sections are
   numbered by time. A buffer is alive in one or several runs of sections. Sizes are in bytes. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { FOUND = 1, NONE = 0, GAVE_UP = -1, OUT_OF_MEMORY = -2 };

static const int64_t FAR = INT64_MAX / 4;

typedef struct {
    int32_t from, to;
} Run;

/* The problem; filled by sections.py. What belongs to one begins at its `..._start`, and ends where the next begins. */
typedef struct {
    int32_t buffer_count, section_count;
    const int64_t *size, *alignment, *fixed; /* -1: may lie anywhere. */
    const int32_t *run_start;
    const Run *run;
    const int32_t *neighbour_start, *neighbour;
    const int32_t *member_start, *member; /* Of each section. */
    const int32_t *group;                 /* Buffers that could change places; -1: with none. */
} Problem;

typedef struct {
    int64_t offset;
    int32_t rank, buffer;
} Candidate;

typedef struct {
    int32_t which;
    int64_t before;
} Change;

typedef struct {
    const Problem *p;
    const int32_t *rank;
    int32_t totals_lead; /* Whether parts are ranked anew, by what waits. */
    int64_t capacity, work_limit, work;
    int64_t *section_weight, *buffer_weight, *offset;
    /* The state: where each buffer would come to lie now, whether it waits, and by section the
       lowest offset that is left and the bytes that wait. */
    int64_t *earliest, *floor_, *total;
    uint8_t *waits, *is_dirty;
    int32_t *topmost; /* By group: what was placed last, or -1. */
    /* What was changed, to be undone. */
    Change *raised, *lifted;
    int32_t raised_count, lifted_count;
    int32_t *dirty, dirty_count;
    /* Lists of the nodes on the way to this one; large enough for the longest way. */
    Candidate *arena;
    size_t arena_used;
} Search;

static int64_t align(int64_t offset, int64_t alignment) {
    return alignment == 1 ? offset : (offset + alignment - 1) / alignment * alignment;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int is_before(const Candidate *a, const Candidate *b) {
    return a->offset < b->offset || (a->offset == b->offset && a->rank < b->rank);
}

static int compare_candidates(const void *left, const void *right) {
    const Candidate *a = left, *b = right;
    return is_before(b, a) - is_before(a, b);
}

static void lift(Search *s, int32_t t, int64_t floor_) {
    s->lifted[s->lifted_count++] = (Change){t, s->floor_[t]};
    s->floor_[t] = floor_;
}

static void mark(Search *s, int32_t t) {
    if (s->is_dirty[t]) return;
    s->is_dirty[t] = 1;
    s->dirty[s->dirty_count++] = t;
}

/* The lowest offset at which something that waits could begin in a section. */
static int64_t lowest_in(Search *s, int32_t t) {
    const Problem *p = s->p;
    int64_t lowest = FAR;
    for (int32_t i = p->member_start[t]; i < p->member_start[t + 1]; i++) {
        int32_t b = p->member[i];
        if (s->waits[b] && s->earliest[b] < lowest) lowest = s->earliest[b];
    }
    s->work += p->member_start[t + 1] - p->member_start[t];
    return lowest;
}

/* Lets everything that waits and meets a buffer lie above it; returns whether it still can. */
static int raise_neighbours(Search *s, int32_t b, int64_t top, int *has_hat) {
    const Problem *p = s->p;
    s->work += p->neighbour_start[b + 1] - p->neighbour_start[b];
    for (int32_t i = p->neighbour_start[b]; i < p->neighbour_start[b + 1]; i++) {
        int32_t other = p->neighbour[i];
        if (!s->waits[other]) continue;
        *has_hat = 1;
        int64_t before = s->earliest[other], raised = align(top, p->alignment[other]);
        if (before >= raised) continue;
        s->raised[s->raised_count++] = (Change){other, before};
        s->earliest[other] = raised;
        if (raised + p->size[other] > s->capacity ||
            (p->fixed[other] >= 0 && raised > p->fixed[other])) {
            s->buffer_weight[other]++;
            return 0;
        }
        for (int32_t r = p->run_start[other]; r < p->run_start[other + 1]; r++)
            for (int32_t t = p->run[r].from; t < p->run[r].to; t++)
                if (before <= s->floor_[t]) mark(s, t);
    }
    return 1;
}

/* Places a buffer; returns whether what waits could still fit. */
static int place(Search *s, int32_t b, int64_t offset, int *has_hat) {
    const Problem *p = s->p;
    int64_t top = offset + p->size[b];
    s->offset[b] = offset;
    s->waits[b] = 0;
    *has_hat = 0;
    for (int32_t i = p->run_start[b]; i < p->run_start[b + 1]; i++)
        for (int32_t t = p->run[i].from; t < p->run[i].to; t++) {
            s->total[t] -= p->size[b];
            lift(s, t, top);
            mark(s, t);
        }
    int fits = raise_neighbours(s, b, top, has_hat);
    for (int32_t i = 0; i < s->dirty_count; i++) {
        int32_t t = s->dirty[i];
        s->is_dirty[t] = 0;
        if (!fits || !s->total[t]) continue;
        int64_t lowest = lowest_in(s, t);
        if (lowest > s->floor_[t]) lift(s, t, lowest);
        if (larger(s->floor_[t], offset) + s->total[t] > s->capacity) {
            s->section_weight[t]++;
            fits = 0;
        }
    }
    s->dirty_count = 0;
    return fits;
}

static void undo(Search *s, int32_t b, int32_t raised_count, int32_t lifted_count) {
    const Problem *p = s->p;
    while (s->raised_count > raised_count) {
        Change c = s->raised[--s->raised_count];
        s->earliest[c.which] = c.before;
    }
    while (s->lifted_count > lifted_count) {
        Change c = s->lifted[--s->lifted_count];
        s->floor_[c.which] = c.before;
    }
    for (int32_t i = p->run_start[b]; i < p->run_start[b + 1]; i++)
        for (int32_t t = p->run[i].from; t < p->run[i].to; t++) s->total[t] += p->size[b];
    s->waits[b] = 1;
}

static int32_t start_of(const Problem *p, int32_t b) { return p->run[p->run_start[b]].from; }
static int32_t end_of(const Problem *p, int32_t b) { return p->run[p->run_start[b + 1] - 1].to; }

static void find_span(
    const Search *s, const Candidate *order, int32_t count, int32_t *from, int32_t *to) {
    *from = INT32_MAX, *to = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t first = start_of(s->p, order[i].buffer), end = end_of(s->p, order[i].buffer);
        if (first < *from) *from = first;
        if (end > *to) *to = end;
    }
}

static int visit(Search *s, const Candidate *order, int32_t count, Candidate level);

static Candidate *reserve(Search *s, int32_t count) {
    Candidate *block = s->arena + s->arena_used;
    s->arena_used += (size_t)count;
    return block;
}

/* The most bytes that wait in a section of a buffer. */
static int64_t fullest(const Search *s, int32_t b) {
    const Problem *p = s->p;
    int64_t most = 0;
    for (int32_t i = p->run_start[b]; i < p->run_start[b + 1]; i++)
        for (int32_t t = p->run[i].from; t < p->run[i].to; t++) most = larger(most, s->total[t]);
    return most;
}

/* Ranks the buffers of a part anew: by what waits in their fullest section, then as before. */
static void rank_by_totals(Search *s, Candidate *order, int32_t count) {
    Candidate *keys = reserve(s, count);
    for (int32_t i = 0; i < count; i++) {
        int32_t b = order[i].buffer;
        keys[i] = (Candidate){-fullest(s, b), s->rank[b], i};
    }
    qsort(keys, (size_t)count, sizeof(Candidate), compare_candidates);
    for (int32_t i = 0; i < count; i++) order[keys[i].buffer].rank = i;
    qsort(order, (size_t)count, sizeof(Candidate), compare_candidates);
    s->arena_used -= (size_t)count;
}

/* Says of each section to which part of what waits it belongs; nothing spans two parts. */
static int32_t find_parts(
    const Search *s, const Candidate *order, int32_t count, int32_t from, int32_t to, int32_t *part) {
    memset(part, 0, (size_t)(to - from) * sizeof(int32_t));
    for (int32_t i = 0; i < count; i++) {
        part[start_of(s->p, order[i].buffer) - from]++;
        part[end_of(s->p, order[i].buffer) - 1 - from]--;
    }
    int32_t parts = 0, spanning = 0;
    for (int32_t t = 0; t < to - from; t++) {
        spanning += part[t];
        part[t] = parts;
        parts += !spanning;
    }
    return parts;
}

/* Visits what waits, part by part. */
static int visit_parts(Search *s, const Candidate *order, int32_t count, Candidate level, int is_new) {
    const Problem *p = s->p;
    size_t used = s->arena_used;
    int32_t from, to;
    find_span(s, order, count, &from, &to);
    int32_t *part_of = (int32_t *)reserve(s, (to - from) / 4 + 1);
    int32_t parts = find_parts(s, order, count, from, to, part_of);
    int outcome = FOUND;
    if (parts == 1 && !is_new) {
        s->arena_used = used;
        return visit(s, order, count, level);
    }
    for (int32_t part = 0; part < parts && outcome == FOUND; part++) {
        size_t before = s->arena_used;
        Candidate *own = reserve(s, count), own_level = level;
        int32_t own_count = 0;
        for (int32_t i = 0; i < count; i++)
            if (part_of[start_of(p, order[i].buffer) - from] == part) own[own_count++] = order[i];
        s->arena_used = before + (size_t)own_count;
        if (own_count) {
            if (s->totals_lead) {
                rank_by_totals(s, own, own_count);
                own_level.rank = -1;
            }
            outcome = visit(s, own, own_count, own_level);
        }
        s->arena_used = before;
    }
    s->arena_used = used;
    return outcome;
}

/* Writes what waits in the order of where it would come to lie now. */
static int32_t update_order(const Search *s, const Candidate *order, int32_t count, Candidate *next) {
    int32_t kept = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t b = order[i].buffer;
        if (!s->waits[b]) continue;
        Candidate c = order[i];
        c.offset = s->earliest[b];
        next[kept++] = c;
    }
    for (int32_t i = 1; i < kept; i++) {
        Candidate c = next[i];
        int32_t j = i;
        for (; j > 0 && is_before(&c, &next[j - 1]); j--) next[j] = next[j - 1];
        next[j] = c;
    }
    return kept;
}

/* Whether a buffer would lie right on one that it could change places with, in the wrong order. */
static int is_swapped(const Search *s, Candidate c) {
    int32_t group = s->p->group[c.buffer];
    int32_t below = group < 0 ? -1 : s->topmost[group];
    return below >= 0 && s->offset[below] + s->p->size[below] == c.offset &&
           s->rank[below] > s->rank[c.buffer];
}

static int try(
    Search *s, Candidate c, const Candidate *order, int32_t count, Candidate *next, int *has_hat) {
    int32_t raised_count = s->raised_count, lifted_count = s->lifted_count;
    int32_t group = s->p->group[c.buffer], below = group < 0 ? -1 : s->topmost[group];
    int outcome = NONE;
    if (place(s, c.buffer, c.offset, has_hat)) {
        if (group >= 0) s->topmost[group] = c.buffer;
        int32_t left = update_order(s, order, count, next);
        outcome = left ? visit_parts(s, next, left, c, 0) : FOUND;
        if (group >= 0) s->topmost[group] = below;
    }
    undo(s, c.buffer, raised_count, lifted_count);
    return outcome;
}

static int visit(Search *s, const Candidate *order, int32_t count, Candidate level) {
    if (s->work >= s->work_limit) return GAVE_UP;
    const Problem *p = s->p;
    int64_t below = FAR, most = 0;
    int32_t from, to;
    for (int32_t i = 0; i < count; i++) {
        int32_t b = order[i].buffer;
        int64_t limit = p->fixed[b] < 0 ? order[i].offset + p->size[b] : p->fixed[b] + 1;
        if (limit < below) below = limit;
    }
    find_span(s, order, count, &from, &to);
    for (int32_t t = from; t < to; t++) most = larger(most, s->total[t]);
    s->work += count;
    Candidate *next = reserve(s, count);
    int outcome = NONE, has_hat = 1;
    for (int32_t i = 0; i < count && outcome == NONE && has_hat; i++) {
        Candidate c = order[i];
        if (c.offset >= below || c.offset + most > s->capacity) break;
        if (is_before(&c, &level) || is_swapped(s, c)) continue;
        outcome = try(s, c, order, count, next, &has_hat);
    }
    s->arena_used -= (size_t)count;
    return outcome;
}

static int visit_all(Search *s) {
    const Problem *p = s->p;
    Candidate *all = reserve(s, p->buffer_count);
    for (int32_t b = 0; b < p->buffer_count; b++) {
        s->waits[b] = 1;
        s->topmost[b] = -1;
        s->earliest[b] = larger(p->fixed[b], 0);
        for (int32_t i = p->run_start[b]; i < p->run_start[b + 1]; i++)
            for (int32_t t = p->run[i].from; t < p->run[i].to; t++) s->total[t] += p->size[b];
        all[b] = (Candidate){s->earliest[b], s->rank[b], b};
    }
    qsort(all, (size_t)p->buffer_count, sizeof(Candidate), compare_candidates);
    return visit_parts(s, all, p->buffer_count, (Candidate){0, -1, -1}, 1);
}

/* Looks for offsets within `capacity`; weights are carried from one attempt to the next.
   Returns FOUND, NONE (there is no such plan), GAVE_UP after `work_limit` looks at buffers, OUT_OF_MEMORY. */
EXPORT int aegis_canonical_search(
    const Problem *problem, const int32_t *rank, int32_t totals_lead, int64_t capacity,
    int64_t work_limit, int64_t *section_weight, int64_t *buffer_weight, int64_t *offset,
    int64_t *work) {
    Search s = {
        .p = problem, .rank = rank, .totals_lead = totals_lead, .capacity = capacity,
        .work_limit = work_limit, .section_weight = section_weight,
        .buffer_weight = buffer_weight, .offset = offset,
    };
    size_t sections = (size_t)problem->section_count, buffers = (size_t)problem->buffer_count;
    int64_t *wide = calloc(2 * sections + buffers, sizeof(int64_t));
    int32_t *narrow = calloc(sections + buffers, sizeof(int32_t));
    uint8_t *flags = calloc(sections + buffers, 1);
    s.raised = malloc((buffers * buffers + 1) * sizeof(Change));
    s.lifted = malloc((2 * buffers * sections + 1) * sizeof(Change));
    s.arena = malloc((buffers + 1) * (buffers + sections / 4 + 3) * 2 * sizeof(Candidate));
    int outcome = OUT_OF_MEMORY;
    if (wide && narrow && flags && s.raised && s.lifted && s.arena) {
        s.floor_ = wide, s.total = s.floor_ + sections, s.earliest = s.total + sections;
        s.dirty = narrow, s.topmost = narrow + sections;
        s.is_dirty = flags, s.waits = flags + sections;
        outcome = visit_all(&s);
    }
    free(wide), free(narrow), free(flags), free(s.raised), free(s.lifted), free(s.arena);
    *work = s.work;
    return outcome;
}
