/* A team: helpers that share the steps of the thread that opened it, usually a stream's.
 *
 * The owner walks through the steps. One whose work is shared has as many fixed parts as the team has
 * threads (`part_of`); whoever is free takes the next part, so that a helper that does not get a
 * processor costs nothing: the owner does its part. Who does a part makes no difference to its bits.
 * A helper without work spins for a while, because the next step is microseconds away, then blocks.
 */
#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { SPINS_BEFORE_YIELD = 2000, SPINS_BEFORE_SLEEP = 6000, LARGEST_TEAM = 64, PART_BITS = 8 };

typedef struct { team *t; int64_t index; pthread_t thread; } helper;

struct team {
    int64_t size;
    const step *current; /* unchanged as long as one of its parts is not done */
    /* On lines of their own: every thread watches the first. */
    _Alignas(64) _Atomic uint64_t next; /* number of the shared step, then that of its next part */
    _Alignas(64) _Atomic int64_t done; /* parts of the current step */
    _Alignas(64) _Atomic int64_t launches;
    _Atomic int64_t sleepers;
    _Atomic int64_t stops;
    pthread_mutex_t lock;
    pthread_cond_t wakes;
    helper helpers[LARGEST_TEAM - 1];
};

static __thread team *mine;

team *own_team(void) { return mine; }

INLINE void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Takes and does one part of the current step; returns whether there was one. */
static int take_part(team *t) {
    uint64_t next = atomic_load_explicit(&t->next, memory_order_acquire);
    int64_t part = (int64_t)(next & ((1 << PART_BITS) - 1));
    if (part >= t->size) return 0;
    if (atomic_compare_exchange_strong(&t->next, &next, next + 1)) {
        /* The step can not end before this part is done. */
        const step *s = t->current;
        s->function(s->arguments, (worker){part, t->size});
        atomic_fetch_add_explicit(&t->done, 1, memory_order_release);
    }
    return 1;
}

static void share(team *t, const step *s) {
    uint64_t number = (atomic_load_explicit(&t->next, memory_order_relaxed) >> PART_BITS) + 1;
    t->current = s;
    atomic_store_explicit(&t->done, 0, memory_order_relaxed);
    atomic_store_explicit(&t->next, number << PART_BITS, memory_order_release);
    while (take_part(t)) {}
    for (int64_t spins = 0; atomic_load_explicit(&t->done, memory_order_acquire) < t->size; spins++) {
        if (spins < SPINS_BEFORE_YIELD) relax();
        else sched_yield();
    }
}

static void wake_helpers(team *t) {
    atomic_fetch_add(&t->launches, 1);
    if (atomic_load(&t->sleepers) == 0) return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->wakes);
    pthread_mutex_unlock(&t->lock);
}

void run_together(team *t, const step *steps, int64_t count, int64_t *stamps) {
    int64_t now = stamps ? now_ns() : 0;
    wake_helpers(t);
    for (int64_t i = 0; i < count; i++) {
        if (stamps) stamps[2 * i] = now;
        if (steps[i].shares) share(t, &steps[i]);
        else if (steps[i].function) steps[i].function(steps[i].arguments, (worker){0, 1});
        if (stamps) stamps[2 * i + 1] = now = now_ns();
    }
}

static void sleep_until_launch(team *t, int64_t seen) {
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(&t->launches) == seen && !atomic_load(&t->stops)) pthread_cond_wait(&t->wakes, &t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
}

static void *help(void *argument) {
    team *t = ((const helper *)argument)->t;
    /* The size is known once there is a first launch. */
    for (int64_t seen = 0, spins = SPINS_BEFORE_SLEEP;;) {
        if (atomic_load_explicit(&t->stops, memory_order_acquire)) return NULL;
        if (spins >= SPINS_BEFORE_SLEEP) {
            sleep_until_launch(t, seen);
            seen = atomic_load(&t->launches);
            spins = 0;
        } else if (take_part(t)) {
            spins = 0;
            seen = atomic_load(&t->launches);
        } else {
            relax();
            spins++;
        }
    }
}

/* Lets the calling thread go back to working alone. */
EXPORT void aegis_close_team(void) {
    team *t = mine;
    if (!t) return;
    mine = NULL;
    atomic_store(&t->stops, 1);
    wake_helpers(t);
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
    atomic_store(&t->next, LARGEST_TEAM); /* no part to take */
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
