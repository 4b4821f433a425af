/* A team: helpers that share the steps of the thread that opened it, usually a stream's.
 *
 * The owner walks through the steps. One whose work is shared has a fixed number of parts for each
 * thread (`part_of`); whoever is free takes the next part, so that a helper that does not get a
 * processor costs nothing: the owner does its part. Who does a part makes no difference to its bits.
 * A helper without work spins for a while, because the next step is microseconds away, then sleeps
 * until a step is shared again.
 */
#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { SPINS_BEFORE_YIELD = 2000, SPINS_BEFORE_SLEEP = 6000, LARGEST_TEAM = 64, PART_BITS = 16 };

typedef struct { team *t; int64_t index; pthread_t thread; } helper;

struct team {
    int64_t size;
    const step *current; /* unchanged, as `parts`, as long as one of its parts is not done */
    int64_t parts;
    /* On lines of their own: every thread watches the first. */
    _Alignas(64) _Atomic uint64_t open; /* number of the shared step, then how many parts nobody has taken */
    _Alignas(64) _Atomic int64_t done; /* parts of the current step */
    _Alignas(64) _Atomic int64_t sleepers; /* helpers that nobody has called since they fell asleep */
    _Atomic int64_t stops;
    int64_t calls; /* under the lock */
    pthread_mutex_t lock;
    pthread_cond_t wakes;
    helper helpers[LARGEST_TEAM - 1];
};

static __thread team *mine;

team *own_team(void) { return mine; }

INLINE int64_t parts_left(uint64_t open) { return (int64_t)(open & ((1 << PART_BITS) - 1)); }

/* Takes and does one part of the current step; returns whether there was one. */
static int take_part(team *t, int64_t thread) {
    uint64_t open = atomic_load_explicit(&t->open, memory_order_acquire);
    int64_t left = parts_left(open);
    if (!left) return 0;
    if (atomic_compare_exchange_strong(&t->open, &open, open - 1)) {
        /* The step can not end before this part is done. */
        const step *s = t->current;
        s->function(s->arguments, (worker){t->parts - left, t->parts, thread});
        atomic_fetch_add_explicit(&t->done, 1, memory_order_release);
    }
    return 1;
}

static void call_sleepers(team *t) {
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->sleepers, 0);
    t->calls++;
    pthread_cond_broadcast(&t->wakes);
    pthread_mutex_unlock(&t->lock);
}

static void share(team *t, const step *s) {
    uint64_t number = (atomic_load_explicit(&t->open, memory_order_relaxed) >> PART_BITS) + 1;
    t->current = s;
    t->parts = t->size * s->shares;
    atomic_store_explicit(&t->done, 0, memory_order_relaxed);
    /* Who falls asleep either has counted itself by now or sees that there are parts. */
    atomic_store(&t->open, number << PART_BITS | (uint64_t)t->parts);
    if (atomic_load(&t->sleepers)) call_sleepers(t);
    while (take_part(t, 0)) {}
    for (int64_t spins = 0; atomic_load_explicit(&t->done, memory_order_acquire) < t->parts; spins++) {
        if (spins < SPINS_BEFORE_YIELD) relax();
        else sched_yield();
    }
}

void run_together(team *t, const step *steps, int64_t count, int64_t *stamps) {
    int64_t now = stamps ? now_ns() : 0;
    for (int64_t i = 0; i < count; i++) {
        if (stamps) stamps[2 * i] = now;
        if (steps[i].shares) share(t, &steps[i]);
        else if (steps[i].function) steps[i].function(steps[i].arguments, (worker){0, 1, 0});
        if (stamps) stamps[2 * i + 1] = now = now_ns();
        if (has_refused(&steps[i])) return;
    }
}

/* Returns when called, or at once if there is something to do. */
static void sleep_until_called(team *t) {
    pthread_mutex_lock(&t->lock);
    int64_t seen = t->calls;
    atomic_fetch_add(&t->sleepers, 1);
    while (t->calls == seen && !parts_left(atomic_load(&t->open)) && !atomic_load(&t->stops))
        pthread_cond_wait(&t->wakes, &t->lock);
    if (t->calls == seen) atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
}

static void *help(void *argument) {
    const helper *self = argument;
    team *t = self->t;
    for (int64_t spins = SPINS_BEFORE_SLEEP; !atomic_load_explicit(&t->stops, memory_order_acquire);) {
        if (spins >= SPINS_BEFORE_SLEEP) {
            sleep_until_called(t);
            spins = 0;
        } else if (take_part(t, self->index)) {
            spins = 0;
        } else {
            relax();
            spins++;
        }
    }
    return NULL;
}

/* Lets the calling thread go back to working alone. */
EXPORT void aegis_close_team(void) {
    team *t = mine;
    if (!t) return;
    mine = NULL;
    atomic_store(&t->stops, 1);
    call_sleepers(t);
    for (int64_t i = 0; i < t->size - 1; i++) pthread_join(t->helpers[i].thread, NULL);
    pthread_cond_destroy(&t->wakes);
    pthread_mutex_destroy(&t->lock);
}

EXPORT int64_t aegis_team_bytes(void) { return sizeof(team); }

/* Gives the calling thread a team of `size` threads, itself one of them, that lives in `memory`
 * (aligned to 64 bytes, unused otherwise until the team is closed); returns how many there are,
 * fewer if the system refuses some. */
EXPORT int64_t aegis_open_team(int64_t size, void *memory) {
    aegis_close_team();
    team *t = memory;
    __builtin_memset(t, 0, sizeof *t);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wakes, NULL);
    for (t->size = 1; t->size < smaller(size, LARGEST_TEAM); t->size++) {
        helper *next = &t->helpers[t->size - 1];
        *next = (helper){.t = t, .index = t->size};
        if (pthread_create(&next->thread, NULL, help, next)) break;
    }
    if (t->size > 1) mine = t;
    return t->size;
}
