/* Where the workers of a step wait for each other. At rest nobody has arrived. */
#ifndef AEGIS_MEETING_H
#define AEGIS_MEETING_H

#include "step.h"

#include <sched.h>
#include <stdatomic.h>

typedef struct { _Atomic int64_t arrived, meetings; } meeting_place;

enum { SPINS_BEFORE_YIELD = 2000 };

/* Returns when all workers are here. Their parts are as many as the team has threads, and who waits
 * takes no other part: each is a thread of its own. */
static inline void meet_at(meeting_place *place, worker self) {
    if (self.count == 1) return;
    int64_t before = atomic_load(&place->meetings);
    if (atomic_fetch_add(&place->arrived, 1) + 1 == self.count) {
        atomic_store(&place->arrived, 0);
        atomic_store(&place->meetings, before + 1);
        return;
    }
    for (int64_t spins = 0; atomic_load_explicit(&place->meetings, memory_order_acquire) == before; spins++) {
        if (spins < SPINS_BEFORE_YIELD) relax();
        else sched_yield();
    }
}

#endif
