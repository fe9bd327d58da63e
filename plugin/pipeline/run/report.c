/* report.c: where a step's time went on this rank.
 *
 * One clock reading per boundary: what lies between two of them is a wait, a stage function, or
 * the library's own work. The thread's CPU clock is a system call (0.5 us measured), so it is read
 * only around functions that took at least 200 us the last time; shorter ones count the time they
 * took.
 * On a device these are times of queueing; where the device's own can be had (marks.c), the step is
 * told again with them before anyone is shown it.
 * Invariant: step_time = busy + warm_up + waiting + drain + overhead, always. A rank returns when
 * its own list is done and shared weights are summed, so it sees next to nothing of the drain:
 * explain.c sets that from the last end of all ranks. */
#include <string.h>
#include <time.h>

#include "plugin/comm/comm.h"
#include "plugin/core/struct.h"
#include "plugin/pipeline/run/runtime.h"

enum { WAIT_NS = 1000 }; /* what is over sooner was no wait */

int64_t lam_clock_cpu_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void lam_meter_begin(lam_meter *m) {
  const int64_t now = lam_clock_ns();
  *m = (lam_meter){
      .start = now, .end = now, .origin = now, .mark = now, .room = m->room, .events = m->events};
}

/* Moves the mark to `now`; gives what lay between. */
static int64_t lap(lam_meter *m, int64_t now) {
  const int64_t before = m->mark;
  m->mark = now;
  return now - before;
}

static void add_event(lam_pipeline *p, lam_event e) {
  lam_meter *m = &p->meter;
  e.rank = p->rank;
  if (m->n_events < m->room) m->events[m->n_events++] = e;
}

static void waited(lam_pipeline *p, lam_port *port, int stage, int micro, int64_t now) {
  lam_meter *m = &p->meter;
  const int64_t start = m->mark, ns = lap(m, now);
  if (ns < WAIT_NS || !port->channel) return; /* nobody waits for oneself */
  if (m->n_actions == 0)
    m->warm_up += ns;
  else
    m->waiting += ns, port->waited += ns;
  add_event(
      p,
      (lam_event){
          .stage = stage, .micro = micro, .kind = LAM_KIND_WAIT, .start = start, .end = m->mark});
}

static void worked(lam_pipeline *p, const lam_action *a, const lam_action *b, int part, int64_t cpu,
                   int64_t now) {
  lam_meter *m = &p->meter;
  const int64_t start = m->mark, ns = lap(m, now);
  m->busy += ns;
  m->cpu += cpu >= 0 ? cpu : ns;
  m->last_end = m->mark;
  m->n_actions += b ? 2 : 1;
  lam_event e = {.stage = a->stage,
                 .micro = a->micro,
                 .kind = (uint16_t)a->kind,
                 .part = (uint16_t)part,
                 .start = start,
                 .end = m->mark};
  add_event(p, e);
  if (!b) return;
  e.stage = b->stage, e.micro = b->micro, e.kind = (uint16_t)b->kind, e.part = 1;
  add_event(p, e);
}

void lam_meter_waited(lam_pipeline *p, lam_port *port, int stage, int micro) {
  waited(p, port, stage, micro, lam_clock_ns());
  if (p->marks) lam_marks_note(p, &(lam_note){LAM_NOTE_WAITED, stage, micro, .port = port});
}

void lam_meter_own(lam_pipeline *p) {
  lap(&p->meter, lam_clock_ns());
  if (p->marks) lam_marks_note(p, &(lam_note){.what = LAM_NOTE_OWN});
}

/* CPU time stays the host's on a device. */
void lam_meter_worked(lam_pipeline *p, const lam_action *a, const lam_action *b, int part,
                      int64_t cpu) {
  const int64_t before = p->meter.cpu;
  worked(p, a, b, part, cpu, lam_clock_ns());
  if (p->marks)
    lam_marks_note(p, &(lam_note){LAM_NOTE_WORKED, .part = part, .a = a, .b = b,
                                  .cpu = p->meter.cpu - before});
}

/* -- the same, with a device's times -- */

static void retell(lam_pipeline *p, const lam_note *n) {
  lam_meter *m = &p->meter;
  if (n->what == LAM_NOTE_WAITED)
    waited(p, n->port, n->stage, n->micro, n->time);
  else if (n->what == LAM_NOTE_WORKED)
    worked(p, n->a, n->b, n->part, n->cpu, n->time);
  else
    lap(m, n->time);
  if (n->what == LAM_NOTE_END) m->end = n->time;
}

void lam_meter_retell(lam_pipeline *p, const lam_note *notes, uint64_t n) {
  lam_meter *m = &p->meter;
  for (int i = 0; i < p->n_ports; i++) p->ports[i].waited = 0;
  *m = (lam_meter){.start = notes[0].time,
                   .end = notes[0].time,
                   .mark = notes[0].time,
                   .origin = m->origin,
                   .retold = true,
                   .room = m->room,
                   .events = m->events};
  for (uint64_t i = 1; i < n; i++) retell(p, &notes[i]);
}

void lam_meter_end(lam_meter *m) { m->end = lam_clock_ns(); }

static void find_worst(const lam_pipeline *p, lam_pipeline_report *r) {
  int64_t most = 0;
  r->worst_edge = r->worst_kind = -1;
  for (int i = 0; i < p->n_ports; i++)
    if (p->ports[i].waited > most)
      most = p->ports[i].waited, r->worst_edge = p->ports[i].edge, r->worst_kind = p->ports[i].kind;
}

static void copy_events(const lam_meter *m, lam_pipeline_report *r) {
  const uint64_t n = r->n_events < m->n_events ? r->n_events : m->n_events;
  for (uint64_t i = 0; r->events && i < n; i++) {
    r->events[i] = m->events[i];
    r->events[i].start -= m->origin;
    r->events[i].end -= m->origin;
  }
  r->n_events = m->n_events;
}

/* Over NCCL a slot waits for what was sent from it in earlier steps, which a graph cannot. */
static bool is_capturable(const lam_pipeline *p) {
  for (int i = 0; i < p->n_ports; i++)
    if (p->ports[i].channel && p->ports[i].channel->way != &lam_engine_peer) return false;
  return lam_place_queues(p);
}

lam_status lam_pipeline_get_report(const lam_pipeline *p, lam_pipeline_report *out_report) {
  if (!p) return lam_fail(LAM_INVALID_ARGUMENT, "lam_pipeline_get_report: pipeline is NULL");
  LAM_TRY(lam_struct_check("lam_pipeline_get_report", "lam_pipeline_report", out_report,
                           sizeof *out_report));
  LAM_TRY(lam_marks_read((lam_pipeline *)(uintptr_t)p)); /* how it is told, not what happened */
  const lam_meter *m = &p->meter;
  lam_pipeline_report *r = out_report;
  r->n_actions = m->n_actions;
  r->step_time = m->end - m->start;
  r->busy = m->busy, r->cpu = m->cpu;
  r->warm_up = m->warm_up, r->waiting = m->waiting;
  r->drain = m->n_actions ? m->end - m->last_end : 0;
  r->overhead = r->step_time - r->busy - r->warm_up - r->waiting - r->drain;
  r->slot_bytes = p->slot_bytes;
  r->capturable = is_capturable(p);
  r->device_times = m->retold;
  find_worst(p, r);
  copy_events(m, r);
  return LAM_OK;
}
