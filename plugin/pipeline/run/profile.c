/* profile.c: what each layer costs, by running it.
 *
 * A round is a layer's forward and then its backward, or its two halves, of one micro-batch, as a
 * pipeline would call them; a stage that keeps what it needs by micro-batch has given it back when
 * the round ends.
 * Invariant: the samples' shapes are as they were when this returns: what a stage lowers is put
 * back before the next call.
 * Leaves what a layer holds, and what a cut after it costs, to the caller. */
#include <stdlib.h>
#include <string.h>

#include "plugin/comm/comm.h"
#include "plugin/core/struct.h"

#define WHO "lam_layers_profile: "
#define MOST_DIMS 64 /* of all outputs of one call */

enum { FORWARD, INPUT, WEIGHT, PARTS };

typedef struct call {
  lam_stage_fn function; /* NULL: this layer has no such part */
  void *user;
  const lam_stage_io *io;
} call;

typedef struct layer {
  int number;
  call calls[PARTS];
} layer;

static call call_of(const lam_stage *is, lam_stage_fn function, void *own_user,
                    const lam_stage_io *io) {
  return (call){function, own_user ? own_user : is->user, io};
}

/* A layer that cannot split its backward does all of it in the first half. */
static lam_status plan_layer(const lam_profile_desc *d, int i, layer *out) {
  const lam_stage *is = &d->layers[i];
  const lam_stage_io *f = &d->forward[i], *b = &d->backward[i];
  LAM_TRY(lam_struct_check("lam_layers_profile", "lam_stage", is, sizeof *is));
  LAM_TRY(lam_struct_check("lam_layers_profile", "forward", f, sizeof *f));
  LAM_TRY(lam_struct_check("lam_layers_profile", "backward", b, sizeof *b));
  const bool splits = is->backward_input && is->backward_weight;
  if (!is->forward || (!splits && !is->backward))
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "layers[%d] has no %s function", i,
                    is->forward ? "backward" : "forward");
  *out = (layer){.number = i};
  out->calls[FORWARD] = call_of(is, is->forward, NULL, f);
  out->calls[INPUT] = splits ? call_of(is, is->backward_input, is->backward_input_user, b)
                             : call_of(is, is->backward, is->backward_user, b);
  if (splits) out->calls[WEIGHT] = call_of(is, is->backward_weight, is->backward_weight_user, b);
  return LAM_OK;
}

/* The outputs' shapes to dims, or back. Returns how many dimensions they have. */
static int copy_shapes(const lam_stage_io *io, int64_t *dims, bool back) {
  int n = 0;
  for (int t = 0; t < io->n_out; t++)
    for (int k = 0; k < io->out[t].ndim; k++, n++) {
      if (n >= MOST_DIMS) continue;
      if (back)
        io->out[t].shape[k] = dims[n];
      else
        dims[n] = io->out[t].shape[k];
    }
  return n;
}

static lam_status time_call(const layer *l, int part, double *out_ns) {
  const call *c = &l->calls[part];
  int64_t dims[MOST_DIMS];
  *out_ns = 0;
  if (!c->function) return LAM_OK;
  const int n = copy_shapes(c->io, dims, false);
  if (n > MOST_DIMS)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    WHO "layers[%d]: its outputs have %d dimensions, at most %d", l->number, n,
                    MOST_DIMS);
  const int64_t begin = lam_clock_ns();
  const lam_status status = c->function(c->user, c->io);
  *out_ns = (double)(lam_clock_ns() - begin);
  copy_shapes(c->io, dims, true);
  static const char *const names[] = {"forward", "backward", "backward_weight"};
  if (status == LAM_OK) return LAM_OK;
  return lam_fail(status, WHO "layers[%d]: %s failed with %s", l->number, names[part],
                  lam_status_name(status));
}

static int by_value(const void *a, const void *b) {
  const double d = *(const double *)a - *(const double *)b;
  return d < 0 ? -1 : d > 0;
}

static double median(double *values, uint32_t n) {
  qsort(values, n, sizeof *values, by_value);
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* times: [PARTS][rounds], scratch. */
static lam_status profile_layer(const layer *l, uint32_t rounds, uint32_t warm_up, double *times,
                                lam_layer *out) {
  for (uint32_t i = 0; i < warm_up + rounds; i++)
    for (int part = 0; part < PARTS; part++) {
      double ns;
      LAM_TRY(time_call(l, part, &ns));
      if (i >= warm_up) times[(size_t)part * rounds + i - warm_up] = ns;
    }
  out->forward = median(times + FORWARD * (size_t)rounds, rounds);
  out->backward_input = median(times + INPUT * (size_t)rounds, rounds);
  out->backward_weight = median(times + WEIGHT * (size_t)rounds, rounds);
  return LAM_OK;
}

lam_status lam_layers_profile(const lam_profile_desc *desc, lam_layer *out_layers) {
  LAM_TRY(lam_struct_check("lam_layers_profile", "desc", desc, sizeof *desc));
  const uint32_t rounds = desc->rounds ? desc->rounds : 5;
  const uint32_t warm_up = desc->warm_up ? desc->warm_up : 2;
  if (!desc->layers || !desc->forward || !desc->backward || !out_layers)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "%s is NULL",
                    !desc->layers    ? "layers"
                    : !desc->forward ? "forward"
                    : out_layers     ? "backward"
                                     : "out_layers");
  if (rounds > 1 << 20 || warm_up > 1 << 20)
    return lam_fail(LAM_INVALID_ARGUMENT, WHO "rounds is %u, warm_up %u, expected at most %d",
                    rounds, warm_up, 1 << 20);
  double *times = malloc((size_t)PARTS * rounds * sizeof *times);
  if (!times) return lam_fail(LAM_RESOURCE_EXHAUSTED, WHO "no memory for %u rounds", rounds);
  lam_status status = LAM_OK;
  for (uint32_t i = 0; i < desc->n_layers && status == LAM_OK; i++) {
    layer l = {0};
    status = plan_layer(desc, (int)i, &l);
    if (status == LAM_OK) status = profile_layer(&l, rounds, warm_up, times, &out_layers[i]);
  }
  free(times);
  return status;
}
