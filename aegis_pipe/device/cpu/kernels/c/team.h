/* Threads that run steps together with the thread that owns them. */
#ifndef AEGIS_TEAM_H
#define AEGIS_TEAM_H

#include "step.h"

typedef struct team team;

/* The calling thread's team; NULL if it works alone. */
team *own_team(void);

int64_t team_size(const team *t);

/* Has the helpers run these steps with the owner, who calls `run_together` itself next. */
void team_begin(team *t, const step *steps, int64_t count);

/* Waits until every thread of the team has come here. */
void team_meet(team *t);

/* One thread's share of the steps. Ends only when the whole team has ended. */
void run_together(team *t, worker self, const step *steps, int64_t count, int64_t *stamps);

int64_t now_ns(void);

#endif
