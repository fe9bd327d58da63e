/* marks.c: a step's times on a device: marks queued between its actions, read once it has ended.
 *
 * The meter's boundaries are noted as they pass; a boundary with work queued since the last one has
 * a mark of its own. Read, the notes are told to the meter again, with the device's times in place
 * of those of queueing. To read them waits for the step: only who asks for a report does.
 * Invariant: a step makes no mark, and none is queued while its stream is captured.
 * Leaves what the times say to report.c. */
#include <string.h>

#include "plugin/comm/comm.h"
#include "plugin/pipeline/run/runtime.h"

struct lam_marks {
  void **at; /* [room] */
  lam_note *notes;
  uint32_t *mark_of; /* [room]: a note's mark */
  uint64_t n_marks, n_notes, room;
  void *now; /* queued when the times are read */
  bool on;   /* in this step */
};

/* An action waits for its input, waits for a slot, begins, works, and sends. */
lam_status lam_marks_open(lam_pipeline *p) {
  lam_marks *k = NULL;
  if (!p->device) return LAM_OK;
  LAM_TRY(lam_pipeline_alloc(p, 1, sizeof *k, &k));
  const uint64_t room = 5 * (uint64_t)p->n_actions + 2;
  LAM_TRY(lam_pipeline_alloc(p, room, sizeof *k->at, &k->at));
  LAM_TRY(lam_pipeline_alloc(p, room, sizeof *k->notes, &k->notes));
  LAM_TRY(lam_pipeline_alloc(p, room, sizeof *k->mark_of, &k->mark_of));
  p->marks = k;
  for (; k->room < room; k->room++) LAM_TRY(lam_device_mark(p->device, &k->at[k->room], p->stream));
  return lam_device_mark(p->device, &k->now, p->stream);
}

void lam_marks_close(lam_pipeline *p) {
  lam_marks *k = p->marks;
  if (!k) return;
  for (uint64_t i = 0; i < k->room; i++) lam_device_unmark(p->device, k->at[i]);
  lam_device_unmark(p->device, k->now);
}

/* -- a step -- */

static bool queued_since_last(const lam_marks *k, const lam_note *n) {
  if (k->n_notes == 0) return true;
  const lam_note *last = &k->notes[k->n_notes - 1];
  if (n->what == LAM_NOTE_WAITED) return n->port->channel != NULL;
  return n->what != LAM_NOTE_OWN || last->what == LAM_NOTE_WORKED;
}

/* A step without all its marks has none: its times are the host's. */
void lam_marks_note(lam_pipeline *p, const lam_note *n) {
  lam_marks *k = p->marks;
  if (!k || !k->on) return;
  if (k->n_notes == k->room || k->n_marks == k->room) {
    k->on = false;
    return;
  }
  if (queued_since_last(k, n)) {
    k->on = lam_device_mark(p->device, &k->at[k->n_marks], p->stream) == LAM_OK;
    k->n_marks++;
  }
  k->notes[k->n_notes] = *n;
  k->mark_of[k->n_notes++] = (uint32_t)k->n_marks - 1;
}

void lam_marks_begin(lam_pipeline *p) {
  lam_marks *k = p->marks;
  bool captured = false;
  if (!k) return;
  k->n_marks = k->n_notes = 0;
  k->on = lam_device_capturing(p->device, p->stream, &captured) == LAM_OK && !captured;
  lam_marks_note(p, &(lam_note){.what = LAM_NOTE_BEGIN});
}

void lam_marks_end(lam_pipeline *p, lam_status status) {
  lam_marks *k = p->marks;
  if (!k) return;
  lam_marks_note(p, &(lam_note){.what = LAM_NOTE_END});
  if (!k->on || status) k->n_notes = 0;
}

/* -- its times -- */

/* Marks in CLOCK_MONOTONIC, by one that the stream has just come to. */
static lam_status read_marks(lam_pipeline *p) {
  lam_marks *k = p->marks;
  bool captured = false;
  LAM_TRY(lam_device_capturing(p->device, p->stream, &captured));
  if (captured)
    return lam_fail(LAM_FAILED_PRECONDITION, "times of a step: its stream is being captured");
  LAM_TRY(lam_device_mark(p->device, &k->now, p->stream));
  LAM_TRY(lam_device_finish(p->device, p->stream));
  const int64_t now = lam_clock_ns();
  for (uint64_t i = 0; i < k->n_notes; i++) {
    int64_t ago;
    LAM_TRY(lam_device_elapsed(p->device, k->at[k->mark_of[i]], k->now, &ago));
    k->notes[i].time = now - ago;
  }
  return LAM_OK;
}

lam_status lam_marks_read(lam_pipeline *p) {
  lam_marks *k = p->marks;
  int32_t was;
  if (!k || !k->n_notes) return LAM_OK;
  LAM_TRY(lam_place_enter(p, &was));
  const lam_status status = read_marks(p);
  lam_place_leave(p, was);
  LAM_TRY(status);
  lam_meter_retell(p, k->notes, k->n_notes);
  k->n_notes = 0;
  return LAM_OK;
}
