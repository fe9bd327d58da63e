/* runtime.c: runs a rank's list of a schedule: create, one step, destroy.
 *
 * Before an action its inputs are there and its outputs have a slot; after it the outputs are sent
 * and slots that nobody needs are given back. So a rank waits only for what its next action needs,
 * and a late receiver holds up no sender before its ring is full.
 * Invariant: a step that failed on one rank of a group fails on all: the first to know poisons the
 * group with where it was.
 * Leaves checks of the host's arguments to agree.c, slots to plan.c and slots.c,
 * times to report.c. */
#include "plugin/pipeline/run/form.h"

#include <stdio.h>
#include <string.h>

#include "plugin/core/struct.h"

/* Functions at least this long are worth two readings of the CPU clock: 0.5 % of them. */
enum { CPU_CLOCK_NS = 200000 };

/* -- memory -- */

struct lam_pipeline_block {
  _Alignas(64) lam_pipeline_block *next;
  uint64_t bytes;
};

lam_status lam_pipeline_alloc(lam_pipeline *p, uint64_t n, uint64_t size, void *out) {
  uint64_t bytes;
  if (__builtin_mul_overflow(n, size, &bytes) ||
      __builtin_add_overflow(bytes, sizeof(lam_pipeline_block), &bytes))
    bytes = 0;
  lam_pipeline_block *b = bytes ? lam_context_alloc(p->ctx, bytes) : NULL;
  if (!b)
    return lam_fail(LAM_RESOURCE_EXHAUSTED,
                    "lam_pipeline_create: no memory for %llu blocks of %llu bytes",
                    (unsigned long long)n, (unsigned long long)size);
  memset(b, 0, bytes);
  b->next = p->blocks, b->bytes = bytes;
  p->blocks = b;
  void *data = b + 1;
  memcpy(out, &data, sizeof data);
  return LAM_OK;
}

/* -- create and destroy -- */

static lam_status read_and_agree(lam_pipeline *p, const lam_pipeline_desc *desc,
                                 uint8_t **out_traits) {
  LAM_TRY(lam_pipeline_read(p, desc));
  LAM_TRY(lam_pipeline_alloc(p, (uint64_t)p->schedule->n_stages, 1, out_traits));
  return lam_pipeline_agree(p, *out_traits);
}

static lam_status open_all(lam_pipeline *p, const lam_pipeline_desc *desc, const uint8_t *traits) {
  if (p->device && p->group) LAM_TRY(lam_group_settle(p->group));
  LAM_TRY(lam_forms_choose(p, desc));
  LAM_TRY(lam_pipeline_plan(p, traits));
  LAM_TRY(lam_tied_open(p));
  LAM_TRY(lam_marks_open(p));
  /* An action waits for its input, waits for a slot, and runs. */
  p->meter.room = 3 * (uint64_t)p->n_actions;
  return lam_pipeline_alloc(p, p->meter.room, sizeof *p->meter.events, &p->meter.events);
}

static lam_status prepare(lam_pipeline *p, const lam_pipeline_desc *desc) {
  uint8_t *traits = NULL;
  int32_t was;
  LAM_TRY(lam_pipeline_share_verdict(p, desc->tensor, read_and_agree(p, desc, &traits)));
  lam_pipeline_tell_of_fallbacks(p, traits);
  LAM_TRY(lam_place_enter(p, &was));
  const lam_status status = open_all(p, desc, traits);
  lam_place_leave(p, was);
  return status;
}

lam_status lam_pipeline_create(lam_context *ctx, const lam_pipeline_desc *desc,
                               lam_pipeline **out_pipeline) {
  if (!out_pipeline)
    return lam_fail(LAM_INVALID_ARGUMENT, "lam_pipeline_create: out_pipeline is NULL");
  *out_pipeline = NULL;
  LAM_TRY(lam_struct_check("lam_pipeline_create", "lam_pipeline_desc", desc, sizeof *desc));
  if (!ctx) ctx = desc->group ? desc->group->ctx : lam_context_default();
  lam_pipeline *p = lam_context_alloc(ctx, sizeof *p);
  if (!p) return lam_fail(LAM_RESOURCE_EXHAUSTED, "lam_pipeline_create: no memory");
  *p = (lam_pipeline){.ctx = ctx};
  const lam_status status = prepare(p, desc);
  if (status)
    lam_pipeline_destroy(p);
  else
    *out_pipeline = p;
  return status;
}

void lam_pipeline_destroy(lam_pipeline *p) {
  if (!p) return;
  for (int i = 0; i < p->n_ports; i++) {
    lam_channel_close(p->ports[i].channel);
    lam_channel_close(p->ports[i].notes);
  }
  lam_tied_close(p);
  lam_marks_close(p);
  lam_place_free(p);
  lam_context *ctx = p->ctx;
  for (lam_pipeline_block *b = p->blocks, *next; b; b = next) {
    next = b->next;
    lam_context_free(ctx, b, b->bytes);
  }
  lam_context_free(ctx, p, sizeof *p);
}

/* -- one action -- */

typedef struct visit { /* an action with what its functions are handed */
  const lam_action *action;
  lam_pipe_stage *stage;
  lam_port *in, *out;
  lam_stage_io io;
} visit;

static const char *port_text(const lam_port *port) {
  return port->kind == LAM_KIND_F ? "activation" : "gradient";
}

static lam_status fail_at_port(const lam_pipeline *p, const visit *v, const lam_port *port,
                               lam_status status, const char *doing) {
  char now[LAM_ACTION_BYTES], last[LAM_ACTION_BYTES] = "none";
  if (p->last) lam_action_text(p->last, last);
  return lam_fail_within(status,
                         "rank %d, step %lld, %s: %s the %s of micro-batch %d over edge %d, peer "
                         "rank %d; last completed: %s",
                         p->rank, (long long)p->step, lam_action_text(v->action, now), doing,
                         port_text(port), v->action->micro, port->edge, port->peer, last);
}

static void find_ports(visit *v) {
  v->in = v->out = NULL;
  if (v->action->kind == LAM_KIND_F) v->in = v->stage->in, v->out = v->stage->out;
  if (lam_makes_gradient(v->action)) v->in = v->stage->grad_in, v->out = v->stage->grad_out;
}

static lam_status take_slots(lam_pipeline *p, visit *v) {
  const int micro = v->action->micro;
  DLTensor *in = NULL;
  if (v->in) {
    const lam_status status = lam_port_pull(p, v->in, micro, &in);
    if (status) return fail_at_port(p, v, v->in, status, "receiving");
    lam_meter_waited(p, v->in, v->action->stage, micro);
    v->io.in = in, v->io.n_in = v->in->plan->n_tensors;
  }
  if (v->out) {
    const lam_status status = lam_port_acquire(p, v->out, micro, &v->io.out);
    if (status) return fail_at_port(p, v, v->out, status, "waiting for a slot for");
    lam_meter_waited(p, v->out, v->action->stage, micro);
    v->io.n_out = v->out->plan->n_tensors;
  }
  return LAM_OK;
}

static lam_status arrive(lam_pipeline *p, const lam_action *a, visit *v) {
  v->action = a;
  v->stage = &p->stages[p->stage_index[a->stage]];
  v->io = (lam_stage_io){.struct_size = sizeof v->io,
                         .stage = a->stage,
                         .micro = a->micro,
                         .step = p->step,
                         .stream = p->stream,
                         .loss = a->stage == p->schedule->n_stages - 1 ? &p->loss : NULL};
  find_ports(v);
  return take_slots(p, v);
}

/* A stage's own message is what the library said last on this thread: what a failing lam_run
 * inside it left. */
static lam_status fail_stage(const lam_pipeline *p, const lam_action *a, lam_status status) {
  char now[LAM_ACTION_BYTES];
  if (!*lam_last_error())
    lam_fail(status, "its function returned %d (%s)", status, lam_status_name(status));
  return lam_fail_within(status, "rank %d, step %lld, stage %d, micro-batch %d, %s", p->rank,
                         (long long)p->step, a->stage, a->micro, lam_action_text(a, now));
}

static lam_status leave(lam_pipeline *p, visit *v) {
  const lam_action *a = v->action;
  if (v->out) {
    const lam_status status = lam_port_push(p, v->out, a->micro, v->io.out);
    if (status) return fail_at_port(p, v, v->out, status, "sending");
  }
  if (v->in && !(a->kind == LAM_KIND_F && v->stage->keeps))
    LAM_TRY(lam_port_finish(v->in, a->micro));
  if (lam_ends_backward(a) && v->stage->keeps && v->stage->in)
    LAM_TRY(lam_port_finish(v->stage->in, a->micro));
  p->last = a;
  lam_meter_own(p);
  return LAM_OK;
}

/* After its last backward action of a step a stage sums its gradients with its replicas, where
 * the host gave a function, and the list does not say when. */
static lam_status reduce_when_last(visit *v) {
  lam_pipe_stage *s = v->stage;
  if (!lam_ends_backward(v->action) || --s->backwards_left) return LAM_OK;
  if (!s->is.reduce_grad || s->reduces_by_list) return LAM_OK;
  lam_stage_io io = v->io;
  io.micro = -1, io.n_in = io.n_out = 0, io.in = NULL, io.out = NULL;
  return s->is.reduce_grad(s->is.user, &io);
}

static lam_status call_functions(visit *v) {
  const lam_stage_call *calls = v->stage->calls[v->action->kind];
  for (int i = 0; i < 2 && calls[i].function; i++)
    LAM_TRY(calls[i].function(calls[i].user, &v->io));
  return reduce_when_last(v);
}

static lam_status call_pair(visit *f, visit *b) {
  LAM_TRY(f->stage->is.forward_backward(f->stage->is.user, &f->io, &b->io));
  return reduce_when_last(b);
}

/* Calls the functions of one action, or of a pair, and measures them. */
static lam_status work(lam_pipeline *p, visit *v, visit *pair, int part) {
  int64_t *lasted = &v->stage->lasted[v->action->kind];
  const bool reads_cpu = *lasted >= CPU_CLOCK_NS;
  lam_meter_own(p);
  const int64_t start = p->meter.mark, cpu = reads_cpu ? lam_clock_cpu_ns() : 0;
  const lam_status status = pair ? call_pair(v, pair) : call_functions(v);
  if (p->group) lam_place_tell(p, p->group);
  if (status) return fail_stage(p, v->action, status);
  lam_meter_worked(p, v->action, pair ? pair->action : NULL, part,
                   reads_cpu ? lam_clock_cpu_ns() - cpu : -1);
  *lasted = p->meter.mark - start;
  return LAM_OK;
}

static lam_status run_action(lam_pipeline *p, const lam_action *a, int part) {
  visit v;
  LAM_TRY(arrive(p, a, &v));
  LAM_TRY(work(p, &v, NULL, part));
  return leave(p, &v);
}

static lam_status run_fused(lam_pipeline *p, const lam_action *a) {
  visit f, b;
  LAM_TRY(arrive(p, a, &f));
  LAM_TRY(arrive(p, a + 1, &b));
  LAM_TRY(work(p, &f, &b, 0));
  LAM_TRY(leave(p, &f));
  return leave(p, &b);
}

static bool is_fused(const lam_pipeline *p, const lam_action *a) {
  return a->paired && !p->forward_only && p->stages[p->stage_index[a->stage]].is.forward_backward;
}

static lam_status run_list(lam_pipeline *p) {
  bool second = false; /* half of a pair that runs one after the other */
  for (int64_t i = 0; i < p->n_actions; i++) {
    const lam_action *a = &p->actions[i];
    if (!lam_pipeline_runs(p, a)) {
      second = false;
      continue;
    }
    if (is_fused(p, a)) {
      LAM_TRY(run_fused(p, a));
      i++;
    } else {
      LAM_TRY(run_action(p, a, second));
      second = a->paired;
    }
  }
  return lam_tied_reduce(p);
}

static lam_status run_placed(lam_pipeline *p) {
  int32_t was;
  LAM_TRY(lam_place_enter(p, &was));
  lam_marks_begin(p);
  const lam_status status = run_list(p);
  lam_marks_end(p, status);
  lam_place_leave(p, was);
  return status;
}

/* -- one step -- */

static void begin_step(lam_pipeline *p, int64_t step) {
  lam_fail(LAM_INTERNAL, "%s", ""); /* older messages are not this step's: see fail_stage */
  p->step = step;
  p->loss = 0;
  p->last = NULL;
  for (int i = 0; i < p->n_stages; i++) p->stages[i].backwards_left = p->schedule->n_micro;
  for (int i = 0; i < p->n_ports; i++) p->ports[i].waited = 0;
  lam_meter_begin(&p->meter);
}

static void end_step(lam_pipeline *p) {
  for (int i = 0; i < p->n_ports; i++) p->ports[i].base += (uint64_t)p->schedule->n_micro;
  lam_meter_end(&p->meter);
}

/* Without peers a failed step is over and done with: every slot is free again when the next one
 * starts. */
lam_status lam_pipeline_end_world(lam_pipeline *p, lam_status status) {
  if (!p->group) return status;
  p->broken = status;
  snprintf(p->error, sizeof p->error, "%s", lam_last_error());
  lam_group_poison(p->group, status, p->error);
  return lam_fail(status, "%s", p->error);
}

/* What another rank said since the last step is this one's error too, even if its list needs
 * nobody. */
static lam_status check_world(const lam_pipeline *p) {
  lam_group_info info = LAM_GROUP_INFO_INIT;
  if (p->broken) return lam_fail(p->broken, "%s", p->error);
  if (!p->group) return LAM_OK;
  LAM_TRY(lam_group_get_info(p->group, &info));
  return info.poison ? lam_fail(info.poison, "%s", info.error) : LAM_OK;
}

lam_status lam_pipeline_run(lam_pipeline *p, int64_t step, double *out_loss) {
  if (out_loss) *out_loss = 0;
  if (!p) return lam_fail(LAM_INVALID_ARGUMENT, "lam_pipeline_run: pipeline is NULL");
  LAM_TRY(check_world(p));
  begin_step(p, step);
  const lam_status status = run_placed(p);
  end_step(p);
  if (status) return lam_pipeline_end_world(p, status);
  if (out_loss) *out_loss = p->loss;
  return LAM_OK;
}
