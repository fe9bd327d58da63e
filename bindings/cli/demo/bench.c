/* bench.c: how fast the demo's training step is on this machine, as lines `name figure unit` from
 * rank 0; of a pipeline, beside it what the simulator predicts. The same step beside its products
 * in oneDNN alone is tests/bench/demo_bench.c.
 * Invariant: a line is the median of several steps. */
#include "bindings/cli/demo/demo.h"

enum { WARM = 2, ROUNDS = 7 };

static void say(const worker *w, const char *name, double figure, const char *unit) {
  if (w->rank == 0) emit("%s %.6g %s\n", name, figure, unit);
}

typedef struct rounds {
  double step[ROUNDS], pipeline[ROUNDS]; /* ms */
} rounds;

static lam_status run_rounds(worker *w, line *l, rounds *out) {
  TRY(line_open(w, w->o->schedule, l));
  for (int i = -WARM; i < ROUNDS; i++) {
    const int64_t began = now_ns();
    int64_t ran;
    TRY(bench_step(w, l, i + WARM, &ran));
    if (i < 0) continue;
    out->step[i] = (double)(now_ns() - began) * 1e-6;
    out->pipeline[i] = (double)(ran - began) * 1e-6;
  }
  return LAM_OK;
}

lam_status bench_step(worker *w, line *l, int64_t step, int64_t *out_ran) {
  TRY(lam_pipeline_run(l->pipeline, step, NULL));
  TRY(here->finish());
  *out_ran = now_ns();
  update(w, step, 1000);
  return here->finish();
}

lam_status bench(worker *w) {
  rounds r;
  line l = {0};
  const lam_status status = run_rounds(w, &l, &r);
  line_close(&l);
  TRY(status);

  const double step = median(r.step, ROUNDS);
  say(w, "step", step, "ms");
  say(w, "pipeline", median(r.pipeline, ROUNDS), "ms");
  say(w, "tokens_per_second", (double)w->o->tokens * w->o->micro_batches / step * 1e3, "1/s");
  say(w, "peak_bytes", (double)memory_peak(), "B");
  say(w, "predicted_bytes", (double)memory_predict(w->o, w->index, w->part), "B");
  return w->o->pp > 1 ? observe(w, w->o->schedule) : LAM_OK;
}
