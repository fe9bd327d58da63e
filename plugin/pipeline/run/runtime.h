/* runtime.h: a pipeline as its own files see it: stages, the slots between them, the measure of a
 * step.
 *
 * A rank walks its list of the schedule, strictly in order. An action takes its input's slot and
 * its output's slot, calls the stage function on them in place, sends the output, and gives back
 * what nobody needs any more.
 * Invariant: everything is allocated by create; a step allocates nothing, and makes no system call
 * where peers are ready (but see report.c on the CPU clock).
 * Leaves orders and ring depths to the schedule's files, how bytes travel to comm/. */
#ifndef LAMELLA_PLUGIN_PIPELINE_RUN_RUNTIME_H
#define LAMELLA_PLUGIN_PIPELINE_RUN_RUNTIME_H

#include "plugin/comm/group.h"
#include "plugin/pipeline/schedule/schedule.h"

/* ---- Memory: blocks that live as long as the pipeline ---------------------------------------- */

typedef struct lam_pipeline_block lam_pipeline_block;
/* `n` zeroed elements of `size` bytes, 64-byte aligned, counted; `out` points to a pointer. */
lam_status lam_pipeline_alloc(lam_pipeline *p, uint64_t n, uint64_t size, void *out);

/* ---- Where tensors lie (place.c) ------------------------------------------------------------- */

typedef struct lam_place_block lam_place_block;
/* The device that the host asked for, and whether these ranks' messages can be queued there. */
lam_status lam_place_read(lam_pipeline *p, const lam_pipeline_desc *desc);
/* The pipeline's device is this thread's, and its group's operands lie there, until leave. */
lam_status lam_place_enter(const lam_pipeline *p, int32_t *out_was);
void lam_place_leave(const lam_pipeline *p, int32_t was);
bool lam_place_queues(const lam_pipeline *p); /* all of a step, on a device */
/* As lam_pipeline_alloc, where tensors lie; what it holds on a device is any bytes. */
lam_status lam_place_alloc(lam_pipeline *p, uint64_t n, uint64_t size, void *out);
void lam_place_free(lam_pipeline *p); /* all of it that is on a device */
lam_status lam_place_copy(const lam_pipeline *p, const void *from, void *to, uint64_t bytes);

/* ---- Edges and ports (slots.c) --------------------------------------------------------------- */

/* A slot holds one message: a head, a row of eight dims per tensor, then the tensors, each aligned
 * to 64 bytes, on a device to 256. The tensors' places are those of their capacities; the rows say
 * what is there. DLTensors point at the rows, so a stage that lowers out[i].shape writes what
 * in[i].shape shows there.
 * Head and rows are the front of a slot. On a device the front is not used: another one is in the
 * host's memory, and goes from host to host as a note beside the message. */
typedef struct lam_slot_head { /* 64 bytes */
  int64_t origin;              /* when the earliest rank known began the step: sender's clock, ns */
  int64_t reserved[7];
} lam_slot_head;

/* Why a message travels whole, or split over the tensor-parallel group. */
typedef enum lam_form_reason {
  LAM_EDGE_NO_TENSOR_GROUP,
  LAM_EDGE_ASKED_WHOLE,
  LAM_EDGE_ASKED_SPLIT,
  LAM_EDGE_SPEED_UNKNOWN,
  LAM_EDGE_WHOLE_FASTER,
  LAM_EDGE_SPLIT_FASTER
} lam_form_reason;

typedef struct lam_form { /* how messages travel (form.h) */
  int codec, n_parts, part, reason;
  uint64_t bytes;      /* of a slot on the way */
  uint64_t part_bytes; /* the most rows of a tensor that this rank receives, decoded */
  uint64_t *offsets;   /* [n_tensors], on the way */
  double whole_seconds, split_seconds; /* where they were weighed */
} lam_form;

typedef struct lam_edge_plan { /* the tensors that cross an edge, and where they lie in a slot */
  int n_tensors;
  lam_shape *tensors; /* capacities */
  uint64_t *offsets;
  uint64_t bytes;    /* of a slot */
  lam_form forms[2]; /* between two ranks: activations, gradients */
} lam_edge_plan;
lam_status lam_edge_plan_init(lam_pipeline *p, int number, const lam_edge *edge,
                              lam_edge_plan *out);
#define LAM_EDGE_TEXT_BYTES 56
/* "f32[4,8] i64[4]", cut off where it is too long. */
void lam_edge_plan_text(const lam_edge_plan *e, char text[LAM_EDGE_TEXT_BYTES]);
uint64_t lam_edge_plan_hash(const lam_edge_plan *e);

/* One end of an (edge, kind) that this rank has, or both of them where the edge stays on it. */
typedef struct lam_port {
  const lam_edge_plan *plan;
  int edge, kind; /* LAM_KIND_F activations, LAM_KIND_I gradients */
  int peer;       /* -1: both ends are here */
  bool sends;
  int depth;             /* slots */
  lam_channel *channel;  /* NULL: local */
  lam_channel *notes;    /* on a device, beside a channel: the fronts */
  unsigned char *memory; /* local: the slots */
  unsigned char *fronts; /* local, on a device: theirs */
  unsigned char *slot, *front; /* being written */
  /* Where messages travel in another form than as they are, else NULL: slots for the stages (a
   * sender's one, a receiver's [depth]); the channel's slot being written; rows to be gathered. */
  const lam_form *form;
  unsigned char *beside, *wire, *part;
  DLTensor *views;       /* [depth, n_tensors]; a sender over a channel has one row */
  int32_t *place;        /* [n_micro]: a local slot; receiver: the place in the sender's order */
  const int32_t *order;  /* receiver [n_micro]: the sender's order */
  uint8_t *done;         /* receiver [depth]: read for the last time, behind one that is not */
  uint64_t taken, freed; /* receiver: messages pulled and given back since create */
  uint64_t base;         /* receiver: messages of earlier steps */
  int64_t waited;        /* ns in this step, after the first action began */
} lam_port;

static inline int64_t *lam_slot_dims(unsigned char *slot, int t) {
  return (int64_t *)(void *)(slot + sizeof(lam_slot_head)) + t * 8;
}

/* Wait for the message of `micro`, and check that it is that. */
lam_status lam_port_pull(lam_pipeline *p, lam_port *port, int micro, DLTensor **out_in);
/* Wait for a free slot. */
lam_status lam_port_acquire(const lam_pipeline *p, lam_port *port, int micro, DLTensor **out_out);
/* `out`, as acquire gave it, is written: send it. */
lam_status lam_port_push(lam_pipeline *p, lam_port *port, int micro, DLTensor *out);
/* The message of `micro` was read for the last time. */
lam_status lam_port_finish(lam_port *port, int micro);

/* ---- The measure of a step (report.c) -------------------------------------------------------- */

typedef struct lam_meter { /* ns, CLOCK_MONOTONIC */
  int64_t start, end;      /* of this rank's step */
  int64_t origin;          /* of the whole step, where ranks share a clock; else start */
  int64_t mark;            /* the last boundary: what follows it belongs to the next one */
  int64_t busy, cpu, warm_up, waiting, last_end;
  uint32_t n_actions;
  bool retold; /* times are the device's */
  uint64_t n_events, room;
  lam_event *events; /* times still CLOCK_MONOTONIC */
} lam_meter;

enum { LAM_NOTE_BEGIN, LAM_NOTE_OWN, LAM_NOTE_WAITED, LAM_NOTE_WORKED, LAM_NOTE_END };
typedef struct lam_note { /* a boundary that the meter was told of */
  int what, stage, micro, part;
  lam_port *port;          /* WAITED */
  const lam_action *a, *b; /* WORKED */
  int64_t cpu, time;
} lam_note;

/* Where a device's times can be had, the meter's notes are marked on its stream (marks.c). */
typedef struct lam_marks lam_marks;
lam_status lam_marks_open(lam_pipeline *p);
void lam_marks_close(lam_pipeline *p);
void lam_marks_begin(lam_pipeline *p);
void lam_marks_note(lam_pipeline *p, const lam_note *n);
void lam_marks_end(lam_pipeline *p, lam_status status);
/* Waits for the step, and tells the meter of it again; once. */
lam_status lam_marks_read(lam_pipeline *p);

void lam_meter_begin(lam_meter *m);
/* The same step with other times, in CLOCK_MONOTONIC. */
void lam_meter_retell(lam_pipeline *p, const lam_note *notes, uint64_t n);
/* Up to now this rank waited at `port`, for a message or a slot. */
void lam_meter_waited(lam_pipeline *p, lam_port *port, int stage, int micro);
/* Up to now the library did its own work. */
void lam_meter_own(lam_pipeline *p);
/* Up to now ran the functions of one action, or of a fused pair (b not NULL); cpu < 0: not read. */
void lam_meter_worked(lam_pipeline *p, const lam_action *a, const lam_action *b, int part,
                      int64_t cpu);
void lam_meter_end(lam_meter *m);
int64_t lam_clock_cpu_ns(void); /* of this thread; a system call */

/* ---- The pipeline ---------------------------------------------------------------------------- */

typedef struct lam_stage_call {
  lam_stage_fn function; /* NULL: nothing to do */
  void *user;
} lam_stage_call;

enum { LAM_PIPE_KINDS = LAM_KIND_REDUCE_GRAD + 1 }; /* what a run heeds: F I W B, REDUCE_GRAD */

typedef struct lam_pipe_stage {
  lam_stage is; /* as the host gave it */
  int number;
  bool keeps;                              /* inputs stay until the last backward action */
  bool reduces_by_list;                    /* a REDUCE_GRAD of the list calls reduce_grad */
  lam_stage_call calls[LAM_PIPE_KINDS][2]; /* by kind: what an action calls, in this order */
  lam_port *in, *out;                      /* activations; NULL at the pipeline's ends */
  lam_port *grad_in, *grad_out;
  int backwards_left;             /* in this step; then reduce_grad */
  int64_t lasted[LAM_PIPE_KINDS]; /* ns, the last call of a kind */
} lam_pipe_stage;

typedef struct lam_tied_plan { /* a weight that stages share */
  int stage;                   /* the first of this rank's; -1: none */
  bool crosses;                /* more than one rank holds it */
  lam_group *group;            /* these ranks; NULL: nothing to do here */
  void *gradient;
  int64_t n;
  lam_dtype dtype;
} lam_tied_plan;

struct lam_pipeline {
  lam_context *ctx;
  lam_group *group;  /* NULL, or more than one rank */
  lam_group *tensor; /* the same: ranks that hold the same activations */
  const lam_schedule *schedule;
  const lam_device *device; /* NULL: tensors are the host's */
  DLDevice where;           /* as tensors say it */
  void *stream;
  lam_place_block *placed;
  int rank;
  bool forward_only, one_clock; /* one_clock: all ranks share CLOCK_MONOTONIC */
  const lam_action *actions;    /* this rank's list */
  int64_t n_actions;
  lam_pipe_stage *stages; /* this rank's */
  int n_stages;
  int32_t *stage_index; /* [schedule->n_stages]: into stages; -1 = another rank's */
  lam_edge_plan *edges;
  lam_port *ports;
  int n_ports;
  uint64_t slot_bytes;
  lam_tied_plan *tied;
  int n_tied;
  uint64_t tied_hash; /* of the host's list; equal on all ranks */
  lam_pipeline_block *blocks;
  lam_meter meter;
  lam_marks *marks; /* on a device */
  int64_t step;
  double loss;
  const lam_action *last; /* completed in this step, or NULL */
  lam_status broken;      /* what ended the group's world, and why */
  char error[LAM_MESSAGE_BYTES];
};

/* Where the next tensor of a slot begins. A device's products choose their algorithm by how operands
 * are aligned. */
static inline uint64_t lam_slot_align(const lam_pipeline *p, uint64_t bytes) {
  const uint64_t line = p->device ? 256 : 64;
  return (bytes + line - 1) / line * line;
}

/* A group is told before operations where operands lie: a stage's own calls tell it otherwise. */
static inline void lam_place_tell(const lam_pipeline *p, lam_group *g) {
  g->device = p->device;
  g->stream = p->stream;
}

/* Does this run heed the action? Transfers of a lowered table are the channels' business. */
static inline bool lam_pipeline_runs(const lam_pipeline *p, const lam_action *a) {
  return a->kind == LAM_KIND_F ||
         ((lam_kind_computes(a->kind) || a->kind == LAM_KIND_REDUCE_GRAD) && !p->forward_only);
}
/* The action after which a micro-batch's input is not needed any more. */
static inline bool lam_ends_backward(const lam_action *a) {
  return a->kind == LAM_KIND_B || a->kind == LAM_KIND_W;
}
static inline bool lam_makes_gradient(const lam_action *a) {
  return a->kind == LAM_KIND_B || a->kind == LAM_KIND_I;
}

static inline bool lam_stage_splits(const lam_pipe_stage *s) {
  return s->calls[LAM_KIND_W][0].function;
}

/* What every rank must know of a stage, of the whole pipeline: a set of bits. */
enum { LAM_TRAIT_KEEPS = 1, /* its inputs */ LAM_TRAIT_SPLITS = 2 /* its backward */ };
/* agree.c: copies and checks what the host gave; then all ranks compare, and learn each
 * other's traits [n_stages]. */
lam_status lam_pipeline_read(lam_pipeline *p, const lam_pipeline_desc *desc);
lam_status lam_pipeline_agree(lam_pipeline *p, uint8_t *traits);
/* order.c: may weight gradients be summed in the list's order? */
lam_status lam_pipeline_fit(lam_pipeline *p, uint32_t flags);
/* order.c: logs what runs otherwise than the list says, and the bubble that this costs. */
void lam_pipeline_tell_of_fallbacks(const lam_pipeline *p, const uint8_t *traits);
/* tied.c: read before ranks agree, opened (a collective) after; reduce ends a step. */
lam_status lam_tied_read(lam_pipeline *p, const lam_pipeline_desc *desc);
lam_status lam_tied_open(lam_pipeline *p);
lam_status lam_tied_reduce(lam_pipeline *p);
void lam_tied_close(lam_pipeline *p);
/* Whether all ranks of g (may be NULL) came through with LAM_OK; else the first failure, on all. */
lam_status lam_pipeline_share_verdict(lam_pipeline *p, lam_group *g, lam_status own);
/* plan.c: rings and local slots of every edge that touches this rank. */
lam_status lam_pipeline_plan(lam_pipeline *p, const uint8_t *traits);
/* runtime.c: ends the group's world with this thread's message, and keeps it for every later step.
 * Returns status. */
lam_status lam_pipeline_end_world(lam_pipeline *p, lam_status status);

#endif
