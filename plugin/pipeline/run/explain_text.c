/* explain_text.c: a step taken apart, as a table and as advice.
 * Invariant: advice names what was measured: an edge, a stage and how much slower it is, or that it
 * is the schedule's own bubble.
 * Leaves numbers to explain.c, new cuts to partition.c. */
#include "plugin/pipeline/run/explain.h"
#include "plugin/pipeline/schedule/sink.h"

#define LONG_WAIT 0.05 /* of the step: worth a line */
#define SLOW 1.1       /* times the other stages' mean: worth moving a layer */

static double percent(double part, double whole) { return whole > 0 ? 100 * part / whole : 0; }

static double stage_time(const lam_explanation *x, int i) {
  const int n = x->s->n_stages;
  return x->costs[i] + x->costs[n + i] + x->costs[2 * n + i];
}

static double others_mean(const lam_explanation *x, int stage) {
  double sum = 0;
  for (int i = 0; i < x->s->n_stages; i++) sum += i == stage ? 0 : stage_time(x, i);
  return x->s->n_stages > 1 ? sum / (x->s->n_stages - 1) : 0;
}

static int slowest_stage(const lam_explanation *x) {
  int slowest = 0;
  for (int i = 1; i < x->s->n_stages; i++)
    if (stage_time(x, i) > stage_time(x, slowest)) slowest = i;
  return slowest;
}

/* The neighbour that has less to do. */
static int lighter_neighbour(const lam_explanation *x, int stage) {
  if (stage == 0) return 1;
  if (stage == x->s->n_stages - 1) return stage - 1;
  return stage_time(x, stage - 1) < stage_time(x, stage + 1) ? stage - 1 : stage + 1;
}

static void say_move(const lam_explanation *x, int stage, lam_sink *out) {
  const lam_stage_part *s = &x->stages[stage];
  const int to = lighter_neighbour(x, stage);
  if (s->n_layers == 1)
    lam_sink_printf(out, "it is one layer, %.0f: split it, or give its rank less beside it\n",
                    s->first_layer);
  else if (s->n_layers > 1)
    lam_sink_printf(out, "move layer %.0f to stage %d\n",
                    to < stage ? s->first_layer : s->first_layer + s->n_layers - 1, to);
  else
    lam_sink_printf(out, "move a layer from it to stage %d\n", to);
}

static void advise(const lam_explanation *x, int r, lam_sink *out) {
  const lam_idle *idle = &x->ranks[r];
  if (idle->worst_edge < 0 || idle->worst < LONG_WAIT * x->step) return;
  const int slow = slowest_stage(x);
  const double usual = others_mean(x, slow), ratio = usual > 0 ? stage_time(x, slow) / usual : 1;
  const double waited = idle->waiting + idle->imbalance;
  lam_sink_printf(out, "rank %d waits %.0f %% on edge %d->%d %s: ", r,
                  percent(idle->worst, x->step), idle->worst_edge, idle->worst_edge + 1,
                  idle->worst_kind == LAM_KIND_F ? "forward" : "backward");
  if (ratio >= SLOW && idle->imbalance > 0) {
    lam_sink_printf(out, "stage %d is %.1f x slower than the others; ", slow, ratio);
    say_move(x, slow, out);
  } else if (x->predicted[r].waiting > waited / 2) {
    lam_sink_text(out,
                  "the schedule's own bubble; more micro-batches make it smaller, or another "
                  "schedule\n");
  } else {
    lam_sink_printf(out, "%.0f %% were predicted; the transfer takes long, or a peer comes late\n",
                    percent(x->predicted[r].waiting, x->predicted_step));
  }
}

static double idle_share(const lam_explanation *x) {
  double work = 0;
  for (int r = 0; r < x->s->n_ranks; r++) work += x->ranks[r].work;
  return x->step - work / x->s->n_ranks;
}

static double predicted_share(const lam_explanation *x, const lam_rank_time *ranks, double step) {
  double idle = 0;
  for (int r = 0; r < x->s->n_ranks; r++) idle += step - ranks[r].busy;
  return percent(idle / x->s->n_ranks, step);
}

static void say_rank(const lam_explanation *x, int r, lam_sink *out) {
  const lam_idle *i = &x->ranks[r];
  const double cells[] = {i->work, i->warm_up, i->drain, i->waiting, i->imbalance, i->other};
  lam_sink_printf(out, "%4d", r);
  for (size_t c = 0; c < sizeof cells / sizeof *cells; c++)
    lam_sink_printf(out, " %8.1f%%", percent(cells[c], x->step));
  lam_sink_printf(out, " %9.1f%%", percent(i->predicted, x->predicted_step));
  if (i->worst_edge >= 0)
    lam_sink_printf(out, "  %d->%d %s %.1f%%", i->worst_edge, i->worst_edge + 1,
                    i->worst_kind == LAM_KIND_F ? "forward" : "backward",
                    percent(i->worst, x->step));
  lam_sink_text(out, "\n");
}

uint64_t lam_explain_text(const lam_pipeline *p, const lam_explanation *x, char *buf,
                          uint64_t room) {
  lam_sink out = lam_sink_open(buf, room);
  lam_sink_printf(&out,
                  "step %lld took %.3f ms, %.1f %% of it idle; predicted from its own times: %.3f "
                  "ms, %.1f %%; with all stages alike: %.1f %%%s\n",
                  (long long)p->step, x->step / 1e6, percent(idle_share(x), x->step),
                  x->predicted_step / 1e6, predicted_share(x, x->predicted, x->predicted_step),
                  predicted_share(x, x->level, x->level_step),
                  p->one_clock ? "" : " (ranks share no clock: starts are taken to be equal)");
  lam_sink_text(&out,
                "rank      work   warm-up     drain   waiting imbalance     other "
                " predicted  waits most on\n");
  for (int r = 0; r < x->s->n_ranks; r++) say_rank(x, r, &out);
  for (int r = 0; r < x->s->n_ranks; r++) advise(x, r, &out);
  return out.n;
}
