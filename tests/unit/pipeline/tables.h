/* tables.h: tables for the tests of schedules, and a plain reference that judges and times them by
 * going round and round until nothing moves. Its rules are written out here a second time, on
 * purpose: it shares nothing with plugin/pipeline but the struct.
 * Leaves claims to the tests. */
#ifndef LAMELLA_TESTS_UNIT_PIPELINE_TABLES_H
#define LAMELLA_TESTS_UNIT_PIPELINE_TABLES_H

#include "plugin/pipeline/schedule/schedule.h"
#include "tests/check.h"

lam_schedule *table_of(const char *text);            /* parsed; a failure is recorded, NULL */
lam_schedule *built(const char *name, int p, int m); /* one stage per rank */
lam_schedule *built_of(const char *name, int p, int v, int m);
char *text_of(const lam_schedule *s);                /* printed; caller frees */
lam_schedule_info info_of(const lam_schedule *s);    /* of a table that check accepts */

/* Any order of any placement that can run: stages on random ranks, backward split or not, ready
 * actions picked by chance. */
lam_schedule *random_table(rng *r, int most_ranks, int most_stages, int most_micro);

void fuse_some(lam_schedule *s, rng *r); /* neighbours F, B become pairs, with chance one in two */
lam_schedule *random_fused_table(rng *r, int most_ranks, int most_stages,
                                 int most_micro); /* runs */

typedef struct costs_of { /* random or given costs, with room for 64 stages */
  double forward[64], backward_input[64], backward_weight[64], transfer[64];
  lam_costs costs;
} costs_of;
void random_costs(rng *r, int n_stages, costs_of *out);
void even_costs(double f, double i, double w, double transfer, int n_stages, costs_of *out);

lam_simulated simulated(const lam_schedule *s, const lam_costs *costs); /* failure is recorded */

/* Is everything there once, on one rank, in order, and does it run to its end? In a lowered table
 * with sends that are only over once their receive is posted. */
bool reference_accepts(const lam_schedule *s);
/* First start to last end; -1 where it does not run. depth[flow][edge] slots (0 = no limit): an
 * action that makes a message waits for the slot. */
double reference_makespan(const lam_schedule *s, const lam_costs *costs, int depth[2][64]);

#endif
