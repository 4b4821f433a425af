/* A team: helpers that share the steps of the thread that opened it, usually a stream's.
 *
 * The owner publishes a list of steps; every thread walks through it. Steps whose work is shared are
 * run by all, each its own fixed part (`part_of`), with a barrier behind; the others by the owner
 * alone. Who waits spins for a while, because the next step is microseconds away, then yields; a
 * helper that has nothing to do for longer blocks.
 */
#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { SPINS_IN_STEP = 2000, SPINS_BEFORE_SLEEP = 3000, LARGEST_TEAM = 64 };

typedef struct { team *t; int64_t index; pthread_t thread; } helper;

struct team {
    int64_t size;
    const step *steps;
    int64_t count;
    /* On lines of their own: every thread watches the first two. */
    _Alignas(64) _Atomic int64_t launches;
    _Alignas(64) _Atomic int64_t meetings;
    _Alignas(64) _Atomic int64_t arrived;
    _Atomic int64_t sleepers;
    _Atomic int64_t stops;
    pthread_mutex_t lock;
    pthread_cond_t wakes;
    helper helpers[LARGEST_TEAM - 1];
};

static __thread team *mine;

team *own_team(void) { return mine; }
int64_t team_size(const team *t) { return t->size; }

INLINE void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void team_meet(team *t) {
    int64_t meeting = atomic_load_explicit(&t->meetings, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) + 1 == t->size) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&t->meetings, meeting + 1, memory_order_release);
        return;
    }
    for (int64_t spins = 0; atomic_load_explicit(&t->meetings, memory_order_acquire) == meeting; spins++) {
        if (spins < SPINS_IN_STEP) relax();
        else sched_yield();
    }
}

void run_together(team *t, worker self, const step *steps, int64_t count, int64_t *stamps) {
    int64_t now = stamps ? now_ns() : 0;
    int was_shared = 1;
    for (int64_t i = 0; i < count; i++) {
        if (stamps) stamps[2 * i] = now;
        int is_shared = steps[i].shares != 0;
        /* What the owner did alone has to be there before others build on it. */
        if (is_shared && !was_shared) team_meet(t);
        if (is_shared) steps[i].function(steps[i].arguments, self);
        else if (self.index == 0 && steps[i].function) steps[i].function(steps[i].arguments, (worker){0, 1});
        if (is_shared) team_meet(t);
        was_shared = is_shared;
        if (stamps) stamps[2 * i + 1] = now = now_ns();
    }
    /* The owner may reuse the list at once. */
    if (!was_shared) team_meet(t);
}

void team_begin(team *t, const step *steps, int64_t count) {
    t->steps = steps;
    t->count = count;
    atomic_fetch_add(&t->launches, 1);
    if (atomic_load(&t->sleepers) > 0) {
        pthread_mutex_lock(&t->lock);
        pthread_cond_broadcast(&t->wakes);
        pthread_mutex_unlock(&t->lock);
    }
}

static void wait_for_launch(team *t, int64_t seen) {
    for (int64_t spins = 0; spins < SPINS_BEFORE_SLEEP; spins++) {
        if (atomic_load_explicit(&t->launches, memory_order_acquire) != seen) return;
        relax();
    }
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(&t->launches) == seen) pthread_cond_wait(&t->wakes, &t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
}

static void *help(void *argument) {
    const helper *self = argument;
    team *t = self->t;
    for (int64_t seen = 0;; seen++) {
        wait_for_launch(t, seen);
        if (atomic_load(&t->stops)) return NULL;
        run_together(t, (worker){self->index, t->size}, t->steps, t->count, NULL);
    }
}

/* Lets the calling thread go back to working alone. */
EXPORT void aegis_close_team(void) {
    team *t = mine;
    if (!t) return;
    mine = NULL;
    atomic_store(&t->stops, 1);
    team_begin(t, NULL, 0);
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
