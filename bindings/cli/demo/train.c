/* train.c: the training steps, and the lines of JSON in which rank 0 tells what happens.
 *
 * A step is: the pipeline's forwards and backwards, AdamW on this worker's weights, one sum that
 * brings the loss to all.
 * Invariant: every rank makes the same calls in the same order. Leaves what is drawn of it to the
 * launcher, demo.py. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"

void emit(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  if (format[strlen(format) - 1] == '\n') fflush(stdout);
}

void emit_text(const char *key, const char *text) {
  printf("\"%s\": \"", key);
  for (; *text; text++) {
    if (*text == '"' || *text == '\\')
      printf("\\%c", *text);
    else if ((unsigned char)*text < 32)
      printf("\\u%04x", *text);
    else
      putchar(*text);
  }
  putchar('"');
}

static lam_status share_loss(worker *w, double mine, float *loss) {
  *loss = w->part == 0 ? (float)mine : 0; /* the last stage's worker has it */
  const matrix one = matrix_at(loss, 1, 1, 32);
  return call_host_op(w->ctx, LAM_OP_all_reduce, IN(one), OUT(one),
                      ATTRS(I(lam_group_handle(w->world))));
}

/* Where this worker's time went, ns, summed over the steps that count; the first ones warm up. */
typedef struct ledger {
  double wall, work, overhead; /* work: stage functions and optimizer */
} ledger;

enum { WARM_UP = 2 };

static lam_status note_step(line *l, int64_t wall, int64_t update, ledger *sum) {
  lam_pipeline_report r = LAM_PIPELINE_REPORT_INIT;
  TRY(lam_pipeline_get_report(l->pipeline, &r));
  sum->wall += (double)wall;
  sum->work += (double)(r.busy + update);
  sum->overhead += (double)r.overhead;
  return LAM_OK;
}

void update(worker *w, int64_t step, int64_t steps) {
  for (int i = 0; i < w->n_stages; i++)
    for (int k = 0; k < w->models[i].n_params; k++)
      adamw_step(&w->models[i].params[k], adamw_at(step, steps), step);
}

static lam_status tell_gradients(worker *w) {
  const options *o = w->o;
  if (o->save_gradients) TRY(save_gradients(w, o->save_gradients));
  return o->check_gradients ? check_gradients(w, o->check_gradients) : LAM_OK;
}

static lam_status train_step(worker *w, line *l, int64_t step, ledger *sum) {
  const int64_t began = now_ns();
  double mine = 0;
  float loss;
  TRY(lam_pipeline_run(l->pipeline, step, &mine));
  TRY(here->finish());
  TRY(here->loss(&mine));
  const int64_t ran = now_ns();
  if (step == 0) TRY(tell_gradients(w));
  update(w, step, w->o->steps);
  TRY(here->finish());
  const int64_t updated = now_ns();
  TRY(share_loss(w, mine, &loss));
  const int64_t wall = now_ns() - began;
  if (w->rank == 0)
    emit("{\"step\": %lld, \"loss\": %.9g, \"ms\": %.3f}\n", (long long)step, loss,
         (double)wall * 1e-6);
  return step < WARM_UP ? LAM_OK : note_step(l, wall, updated - ran, sum);
}

static lam_status train_line(worker *w, line *l, ledger *sum) {
  TRY(line_open(w, w->o->schedule, l));
  for (int64_t step = 0; step < w->o->steps; step++) TRY(train_step(w, l, step, sum));
  return LAM_OK;
}

/* What the sums over the tensor-parallel group take of a step, ns: one like them, measured alone,
 * times how many there are. */
static lam_status measure_sums(worker *w, double *out) {
  const matrix part = w->desk.room.d_h;
  double times[9];
  for (int i = 0; i < 9; i++) {
    const int64_t began = now_ns();
    TRY(call_op(w->ctx, LAM_OP_all_reduce, IN(part), OUT(part), ATTRS(I(lam_group_handle(w->tp)))));
    TRY(here->finish());
    times[i] = (double)(now_ns() - began);
  }
  int sums = 0; /* of a layer two forward, two backward */
  for (int i = 0; i < w->n_stages; i++) sums += 4 * w->models[i].n_layers * w->o->micro_batches;
  *out = w->o->tp > 1 ? median(times, 9) * sums : 0;
  return LAM_OK;
}

typedef struct account { /* of one worker */
  uint64_t peak, predicted;
  double idle, transfer; /* shares of its wall-clock time */
} account;

static lam_status make_account(worker *w, const ledger *sum, account *out) {
  double sums;
  TRY(measure_sums(w, &sums));
  *out = (account){memory_peak(), memory_predict(w->o, w->index, w->part), 0, 0};
  if (w->o->steps <= WARM_UP) return LAM_OK;
  sums *= w->o->steps - WARM_UP;
  out->idle = (sum->wall - sum->work - sum->overhead) / sum->wall;
  out->transfer = (sum->overhead + sums) / sum->wall;
  return LAM_OK;
}

static lam_status tell_accounts(worker *w, const ledger *sum) {
  account mine, all[MAX_WORKERS];
  TRY(make_account(w, sum, &mine));
  TRY(gather(w, &mine, sizeof mine, all));
  if (w->rank) return LAM_OK;
  double idle = 0, transfer = 0;
  emit("{\"memory\": [");
  for (int i = 0; i < w->size; i++) {
    emit("%s{\"peak\": %llu, \"predicted\": %llu}", i ? ", " : "", (unsigned long long)all[i].peak,
         (unsigned long long)all[i].predicted);
    idle += all[i].idle / w->size;
    transfer += all[i].transfer / w->size;
  }
  emit("], \"idle\": %.5f, \"transfer\": %.5f}\n", idle, transfer);
  return LAM_OK;
}

lam_status train(worker *w) {
  line l = {0};
  ledger sum = {0};
  lam_status status = train_line(w, &l, &sum);
  if (status == LAM_OK && w->o->steps && !w->o->mixed) status = tell_accounts(w, &sum);
  line_close(&l);
  if (status == LAM_OK && w->o->save) status = save(w, w->o->save);
  const char *at = w->o->draw;
  while (status == LAM_OK && *at) {
    char name[32];
    const size_t n = strcspn(at, ",");
    snprintf(name, sizeof name, "%.*s", (int)n, at);
    status = observe(w, name);
    at += n + (at[n] == ',');
  }
  return status;
}
