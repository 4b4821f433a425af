/* Threads that run steps together with the thread that owns them. */
#ifndef AEGIS_TEAM_H
#define AEGIS_TEAM_H

#include "step.h"

typedef struct team team;

/* The calling thread's team; NULL if it works alone. */
team *own_team(void);

/* Runs steps, the shared ones with the team's help; only the owner calls it. */
void run_together(team *t, const step *steps, int64_t count, int64_t *stamps);

int64_t now_ns(void);

#endif
