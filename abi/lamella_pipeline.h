/* lamella_pipeline.h: the part of lamella.h that is about pipelines: schedules, running them, and
 * which layers go onto which stage. lamella.h includes it.
 *
 * Invariant: as lamella.h. A schedule is data: what builds, checks, times and draws one, or cuts
 * layers for it, needs no group and runs nothing; a pipeline runs one over a group's ranks. */
#ifndef LAMELLA_PIPELINE_H
#define LAMELLA_PIPELINE_H
#ifndef LAMELLA_H
#error "include lamella.h"
#endif

/* ---- Schedules: one list of actions per rank ("0F0 2I1 0W3 1B2 (0F7;7B3)OVERLAP_F_B") ---- */
typedef struct lam_schedule lam_schedule;
/* name: layerwise, gpipe, 1f1b, zb-h1, zb-h2: v is 1. interleaved, interleaved-zb: any v, stage
 * c p + r is rank r's. zbv, v-half, v-min, dualpipev: v is 2, stages r and 2p-1-r are rank r's;
 * dualpipev's m is at least 2p. p ranks, v stages per rank, m micro-batches. auto: what
 * lam_schedule_choose picks without a cap for stages that split their backward, with at most v: a
 * host whose stages cannot, or that has a cap, asks lam_schedule_choose. */
LAM_API lam_status lam_schedule_build(const char *name, int32_t p, int32_t v, int32_t m,
                                      lam_schedule **out_schedule);
/* Name of and one line about each schedule that can be built, from i = 0 on; NULL past the last. */
LAM_API const char *lam_schedule_name(int32_t i);
LAM_API const char *lam_schedule_about(int32_t i);
LAM_API lam_status lam_schedule_parse(const char *text, uint64_t bytes,
                                      lam_schedule **out_schedule);
/* Writes at most `room` bytes with the closing NUL; *out_bytes is the whole text's length without
 * it. buf may be NULL. */
LAM_API lam_status lam_schedule_print(const lam_schedule *s, char *buf, uint64_t room,
                                      uint64_t *out_bytes);
/* The same in a format: "text", or "csv" as PyTorch's pipelining reads it. */
LAM_API lam_status lam_schedule_write(const lam_schedule *s, const char *format, char *buf,
                                      uint64_t room, uint64_t *out_bytes);
/* The same schedule with its transfers written out (SEND_F, RECV_F, SEND_B, RECV_B), receives as
 * early as they can be posted. */
LAM_API lam_status lam_schedule_lower(const lam_schedule *s, lam_schedule **out_lowered);
LAM_API void lam_schedule_destroy(lam_schedule *s);

typedef struct lam_schedule_info {
  uint32_t struct_size;
  int32_t n_ranks, n_stages, n_micro;
  int32_t peak_in_flight; /* the most activations (stage, micro-batch) any rank holds */
  int32_t ring_depth;     /* the deepest ring any edge needs */
  uint64_t n_actions, n_transfers;
  double makespan, bubble, rank_bubble; /* as lam_simulated's; F, I and W take 1 each, B 2 */
  int32_t *peaks;                       /* caller's array or NULL: peak_in_flight of each rank */
  /* Caller's array or NULL: the depth each edge needs for its activations, then for its gradients
   * (2 * (n_stages - 1)); 0 = it stays on one rank. */
  int32_t *ring_depths;
  uint64_t n_peaks, n_ring_depths; /* in: room; out: how many there are */
} lam_schedule_info;
#define LAM_SCHEDULE_INFO_INIT {sizeof(lam_schedule_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
/* Every dependency met, every (stage, micro-batch) once, no deadlock, tags match; else says what is
 * wrong, where, and shows the shortest piece of the table that has the fault. */
LAM_API lam_status lam_schedule_check(const lam_schedule *s, lam_schedule_info *out_info);

#define LAM_KIND_F 0 /* forward */
#define LAM_KIND_I 1 /* backward for the input */
#define LAM_KIND_W 2 /* backward for the weight */
#define LAM_KIND_B 3 /* both */
#define LAM_KIND_SEND 4
#define LAM_KIND_RECV 5
#define LAM_KIND_WAIT 6
#define LAM_KIND_REDUCE_GRAD 7 /* a stage's weight gradients over the replicas; micro is -1 */
/* What a rank did from start to end (ns since the step's start). 32 bytes, frozen. */
typedef struct lam_event {
  int32_t rank, stage, micro;
  uint16_t kind; /* LAM_KIND_... */
  uint16_t part; /* 0, or for the second half of a fused pair 1 */
  int64_t start, end;
} lam_event;

typedef struct lam_costs { /* nanoseconds */
  uint32_t struct_size, n_stages;
  /* [n_stages]; a full backward costs input + weight. */
  const double *forward, *backward_input, *backward_weight;
  const double *transfer; /* [n_stages - 1], edge e is between stage e and e + 1; NULL = free */
  const double *forward_backward; /* [n_stages], a fused pair, by F's stage; NULL = F + B */
  const double *reduce_grad;      /* [n_stages]; NULL = free */
} lam_costs;
#define LAM_COSTS_INIT {sizeof(lam_costs), 0, 0, 0, 0, 0, 0, 0}
/* One rank's part of the makespan; the four add up to it: work, before its first action, after its
 * last, in between. 32 bytes, frozen. */
typedef struct lam_rank_time {
  double busy, warm_up, drain, waiting;
} lam_rank_time;
typedef struct lam_simulated {
  uint32_t struct_size, reserved;
  double makespan; /* first start to last end, ns */
  double bubble;   /* mean over ranks of (makespan - work) / makespan */
  /* (C - work) / C: C is the longest rank's own first start to last end, work the ranks' mean. */
  double rank_bubble;
  lam_event *events; /* caller's array or NULL */
  uint64_t n_events; /* in: room; out: how many there are */
  lam_rank_time *ranks; /* caller's array or NULL */
  /* Caller's array or NULL: the part of `waiting` that is spent on each edge, for its activations,
   * then for its gradients (2 * (n_stages - 1)). */
  double *waits;
  uint64_t n_ranks, n_waits; /* in: room; out: how many there are */
} lam_simulated;
#define LAM_SIMULATED_INIT {sizeof(lam_simulated), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
LAM_API lam_status lam_schedule_simulate(const lam_schedule *s, const lam_costs *costs,
                                         lam_simulated *out);

/* Draw events: format "grid" (text), "svg", "perfetto" (JSON). room and out_bytes as in
 * lam_schedule_print. */
LAM_API lam_status lam_events_draw(const lam_event *events, uint64_t n, const char *format,
                                   char *buf, uint64_t room, uint64_t *out_bytes);
/* What carries an edge's messages, as lam_edge_info.path says. 16 bytes, frozen. */
typedef struct lam_carrier {
  int32_t edge, kind; /* LAM_KIND_F activations, LAM_KIND_I gradients */
  const char *path;
} lam_carrier;
/* The same of one step with its messages, of the edges that `carriers` names: between the work that
 * made each and the work that read it, on another rank, and by what it came. Of several ranks that
 * hold a stage the first sends to the first of the next, and so on. "grid" shows none. */
LAM_API lam_status lam_events_draw_messages(const lam_event *events, uint64_t n,
                                            const lam_carrier *carriers, uint64_t n_carriers,
                                            const char *format, char *buf, uint64_t room,
                                            uint64_t *out_bytes);

/* ---- Pipelines ---- */
typedef struct lam_stage_io {
  uint32_t struct_size;
  int32_t stage, micro, n_in, n_out;
  uint32_t flags;
  int64_t step;
  /* The stage may lower the shape of `out`, down from the capacity it finds there. */
  const DLTensor *in; /* forward: activations; backward: gradients of the outputs */
  DLTensor *out;      /* forward: activations; backward: gradients of the inputs */
  void *stream; /* NULL where tensors are the host's */
  double *loss; /* the last stage adds to it */
} lam_stage_io;
typedef lam_status (*lam_stage_fn)(void *user, const lam_stage_io *io);
typedef lam_status (*lam_stage_pair_fn)(void *user, const lam_stage_io *f, const lam_stage_io *b);

/* `in` of a forward stays valid until that micro-batch's last backward action. */
#define LAM_STAGE_KEEPS_INPUT 1u
typedef struct lam_stage { /* an absent function means "cannot" */
  uint32_t struct_size, flags;
  void *user;
  lam_stage_fn forward, backward, backward_input, backward_weight;
  lam_stage_pair_fn forward_backward;
  /* Called after the stage's last backward action of a step, or by its REDUCE_GRAD in a table that
   * has one; micro is -1, without tensors. */
  lam_stage_fn reduce_grad;
  /* NULL = user; a foreign handle serves one function. */
  void *backward_user, *backward_input_user, *backward_weight_user;
  uint32_t first_layer, n_layers; /* for lam_pipeline_explain to name; 0 layers = not told */
} lam_stage;
#define LAM_STAGE_INIT {sizeof(lam_stage), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* The tensors that cross from stage e to e + 1; dims are capacities. */
typedef struct lam_edge {
  uint32_t struct_size, n_tensors;
  const lam_shape *tensors;
  /* LAM_CODEC_...: how activations, and gradients, travel between two ranks: f32 and bf16 tensors
   * only, others as they are. Give gradients more bits than activations. */
  uint32_t codec, gradient_codec;
} lam_edge;
#define LAM_EDGE_INIT {sizeof(lam_edge), 0, 0, 0, 0}

/* A weight that several stages share (embedding and head). Each rank that holds one of them sums
 * the gradients of its stages in one compact tensor; after the last action of a step these are
 * summed over the ranks, once, and every one of them has the sum: start each step from zeros.
 * Nothing is done where one rank holds all of the stages. */
typedef struct lam_tied {
  uint32_t struct_size, n_stages;
  const int32_t *stages; /* ascending; equal on all ranks (checked), and so is the shape */
  lam_shape shape;
  void *gradient; /* this rank's; NULL where it holds none of the stages */
} lam_tied;
#define LAM_TIED_INIT {sizeof(lam_tied), 0, 0, {0, {0, 0, 0}, {0}}, 0}

typedef struct lam_pipeline lam_pipeline;
typedef struct lam_pipeline_desc {
  uint32_t struct_size, flags;
  lam_group *group;             /* its ranks are the schedule's ranks; NULL = one rank */
  const lam_schedule *schedule; /* borrowed until the pipeline is destroyed */
  const lam_stage *stages;      /* this rank's stages, by ascending stage number; copied */
  const lam_edge *edges; /* all edges of the pipeline, copied; equal on all ranks (checked) */
  uint32_t n_stages, n_edges;
  /* Ranks that hold the same activations (each in a pipeline of its own), or NULL: between two
   * ranks each may send a part of them, which the receivers gather. Used by the pipeline in the
   * schedule's order, create included. */
  lam_group *tensor;
  /* Between two ranks; 0 = as fast as memory. With a tensor group, equal on all ranks of both
   * groups (checked), and so is split. */
  double edge_bytes_per_second;
  uint32_t split, n_tied;       /* LAM_SPLIT_... */
  const lam_tied *tied;         /* shared weights, in the same order on all ranks */
  /* Where the tensors of edges and shared weights lie (DLDeviceType, 0 = the host's memory; the
   * same type on all ranks), and the stream of a step's work there: "Stages on a device" below. */
  int32_t device_type, device_id;
  void *stream;
} lam_pipeline_desc;
#define LAM_PIPELINE_DESC_INIT \
  {sizeof(lam_pipeline_desc), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
#define LAM_SPLIT_AUTO 0u /* where it is faster, by edge_bytes_per_second and a timed gather */
#define LAM_SPLIT_NEVER 1u
#define LAM_SPLIT_ALWAYS 2u
#define LAM_PIPELINE_FORWARD_ONLY 1u
/* Every stage sums its weight gradients in micro-batch order, as one process would; a table in
 * which it does not (W, B, or I of a stage that does not split) is refused without this flag. */
#define LAM_PIPELINE_ANY_ORDER 2u

/* Stages on a device that queues its work (CUDA). All that a step does there is queued on `stream`,
 * in the order of this rank's list: a wait for the message that an action needs, the stage's own
 * work, the message it makes. A stage function is called when it is its turn on the host, which
 * says nothing of the device; it queues its work on io->stream, which is that stream, and returns.
 * - Work on the stream finds `in` there and may write `out`; what is queued there before the
 *   function returns, and nothing later, may use them (KEEPS_INPUT: `in` also what later functions
 *   queue, up to that micro-batch's last backward action). The host never looks at either.
 * - A function that uses streams of its own lets them wait for io->stream first, and io->stream for
 *   them before it returns. It need not wait for the device; if it does, nothing is lost but time.
 * - Shapes, `loss` and the io are the host's memory: a loss that is made on the device is the
 *   stage's to keep, and *loss stays what functions added to it.
 * - lam_pipeline_run returns when all is queued: results are there once the stream has come so far.
 *   A message that does not come ends its wait at the group's deadline; the next call says so.
 * - Where report.capturable is 1 and shapes stay as they are, a step may be captured on the stream
 *   (one step was run before; all ranks capture the same, each on its own stream) and replayed by
 *   all ranks equally often, as long as pipeline and group live. */
LAM_API lam_status lam_pipeline_create(lam_context *ctx, const lam_pipeline_desc *desc,
                                       lam_pipeline **out_pipeline);
/* One step: this rank's list, in order. *out_loss (may be NULL) is what the last stage added on
 * this rank. */
LAM_API lam_status lam_pipeline_run(lam_pipeline *p, int64_t step, double *out_loss);
LAM_API void lam_pipeline_destroy(lam_pipeline *p);

typedef struct lam_pipeline_report { /* of the last step, this rank; nanoseconds */
  uint32_t struct_size, n_actions;
  int64_t step_time, busy, cpu;    /* wall; in stage functions; thread CPU time in those */
  /* Idle: before the first action, after the last, in between. A rank returns when its list is
   * done: its true drain is known once all ranks have ended, see lam_pipeline_explain. */
  int64_t warm_up, drain, waiting;
  int64_t overhead;                /* neither in a stage function nor waiting */
  /* Where most of `waiting` went: edge and LAM_KIND_F or LAM_KIND_I; -1 = nowhere. */
  int32_t worst_edge, worst_kind;
  uint64_t slot_bytes; /* held for activations and gradients on this rank */
  lam_event *events;   /* caller's array or NULL */
  uint64_t n_events;   /* in: room; out: how many there are */
  uint32_t capturable; /* 1: all that the library does in a step is queued, and may be captured */
  /* 1: times are the device's, between events on the stream; to ask waits for the step's end. 0:
   * the host's, which on a device are those of queueing (so of a step that was captured). */
  uint32_t device_times;
} lam_pipeline_report;
#define LAM_PIPELINE_REPORT_INIT \
  {sizeof(lam_pipeline_report), 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, 0, 0, 0, 0, 0}
LAM_API lam_status lam_pipeline_get_report(const lam_pipeline *p, lam_pipeline_report *out_report);

/* One rank's part of the last step, ns; work to other add up to the step: from the first rank's
 * start to the last one's end. */
typedef struct lam_idle {
  double work, warm_up, drain; /* idle before its first action, and after its last */
  double waiting, imbalance;   /* in between; imbalance: what would not be with all stages alike */
  double other;                /* neither at work nor waiting, or not begun */
  double predicted;            /* idle, by simulation with the stages' mean times */
  double worst;                /* of waiting and imbalance: most, on one edge */
  int32_t worst_edge, worst_kind; /* LAM_KIND_F or LAM_KIND_I; -1 = nowhere */
} lam_idle;
typedef struct lam_explained {
  uint32_t struct_size, reserved;
  double step, predicted_step, level_step; /* ns; level: simulated with all stages alike */
  double metering;                         /* the part of this rank's step that measuring takes */
  lam_idle *ranks;                         /* caller's array or NULL */
  char *text; /* caller's or NULL: a table, and what to do about it, as lam_schedule_print */
  uint64_t n_ranks, text_bytes; /* in: room; out: how many there are, the text's length */
} lam_explained;
#define LAM_EXPLAINED_INIT {sizeof(lam_explained), 0, 0, 0, 0, 0, 0, 0, 0, 0}
/* Where the last step went on all ranks: each of them calls this after the same step. With
 * LAM_PIPELINE_FORWARD_ONLY forwards alone are predicted. */
LAM_API lam_status lam_pipeline_explain(lam_pipeline *p, lam_explained *out);

/* How messages of an edge travel, as lam_pipeline_create decided. */
typedef struct lam_edge_info {
  uint32_t struct_size;
  int32_t peer;                        /* -1 = both stages are on this rank */
  uint32_t codec, parts, depth;        /* parts: a message is split into; depth: slots */
  uint32_t reserved;
  uint64_t slot_bytes, wire_bytes;     /* of a message at capacity: as stages see it; on the way */
  double whole_seconds, split_seconds; /* what was weighed; 0 = nothing was */
  const char *why;                     /* constant: "split: a part and a gather take less ..." */
  /* What carries them, constant: on a device "threads", "ipc" or "host" (see lam_group_info), else
   * the engine's name; "local" where both stages are on this rank. NULL: the first will tell. */
  const char *path;
} lam_edge_info;
#define LAM_EDGE_INFO_INIT {sizeof(lam_edge_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
/* kind: LAM_KIND_F or LAM_KIND_I. LAM_NOT_FOUND where the edge has no end on this rank. */
LAM_API lam_status lam_pipeline_get_edge(const lam_pipeline *p, int32_t edge, int32_t kind,
                                         lam_edge_info *out);

/* A C symbol of any library as a stage function: signature "p:in0.data i64:in0.dim0 f32:$0
 * p:out0.data -> i32"; types p i32 i64 f32 f64; names in<i>.data in<i>.dim<j> in<i>.numel,
 * out<i>..., micro, stage, step, user, loss, stream, $<i> (values, in order). lib NULL = the
 * process's own symbols. A result other than 0 = failed; "-> void" never fails. */
typedef struct lam_foreign lam_foreign;
LAM_API lam_status lam_foreign_create(const char *lib, const char *symbol, const char *signature,
                                      const lam_attr *values, uint32_t n_values,
                                      lam_foreign **out_foreign);
LAM_API lam_status lam_foreign_call(void *foreign,
                                    const lam_stage_io *io); /* a lam_stage_fn; user = the handle */
LAM_API void lam_foreign_destroy(lam_foreign *f);

/* ---- Layers onto stages ---- */
/* One unit of a model, in order: the embedding first, then the layers, the head last. 56 bytes,
 * frozen. */
typedef struct lam_layer {
  double forward, backward_input, backward_weight; /* ns of one micro-batch */
  /* What a cut after it adds to the stage that ends there: its output's way on and the gradient's
   * way back, ns of one micro-batch; buffers, bytes. */
  double cut_time;
  uint64_t cut_bytes;
  uint64_t static_bytes;     /* weights, their gradients, the optimizer's state */
  uint64_t activation_bytes; /* of one micro-batch, held from its forward to its last backward */
} lam_layer;

typedef struct lam_partition_desc {
  uint32_t struct_size, flags;
  const lam_layer *layers;
  /* Gives stages, the ranks they lie on, micro-batches, and how many of them a stage holds at
   * most. */
  const lam_schedule *schedule;
  const uint64_t *caps;  /* [n_ranks] bytes that a rank may hold; NULL = no cap */
  const int32_t *pinned; /* [n_stages] the first layer of a stage; -1 = free; NULL = all free */
  uint32_t n_layers, reserved;
} lam_partition_desc;
#define LAM_PARTITION_DESC_INIT {sizeof(lam_partition_desc), 0, 0, 0, 0, 0, 0, 0}
#define LAM_PARTITION_EMPTY_STAGES 1u /* stages may be empty */

typedef struct lam_partition {
  uint32_t struct_size;
  int32_t proven;    /* 1: no cut has a shorter step; 0: the best that was found */
  const char *proof; /* why, a constant string */
  /* ns: all stages' times of one micro-batch, and m - 1 times the slowest rank's; the slowest
   * rank's; what no cut can go below. */
  double step, bottleneck, bound;
  int32_t *first_layer; /* caller's [n_stages + 1] or NULL: stage s has [s] up to [s + 1] */
  double *stage_time;   /* caller's [n_stages] or NULL: ns of one micro-batch */
  uint64_t *rank_bytes; /* caller's [n_ranks] or NULL: the most it holds at any moment */
} lam_partition;
#define LAM_PARTITION_INIT {sizeof(lam_partition), 0, 0, 0, 0, 0, 0, 0, 0}
/* The contiguous cut with the shortest step: exact where no rank has two stages. Where the caps are
 * too small, RESOURCE_EXHAUSTED names the stage that binds and the bytes that are missing. */
LAM_API lam_status lam_partition_solve(const lam_partition_desc *desc, lam_partition *out);

/* Runs each layer as a stage of its own, forward and then backward, `rounds` times, and sets the
 * three times of each of out_layers [n_layers] to their medians. Where a layer cannot split its
 * backward, all of it is backward_input's. */
typedef struct lam_profile_desc {
  uint32_t struct_size, n_layers;
  const lam_stage *layers;
  const lam_stage_io *forward, *backward; /* [n_layers] samples, with their tensors */
  uint32_t rounds, warm_up;               /* 0 = 5 and 2; warm-up is not counted */
} lam_profile_desc;
#define LAM_PROFILE_DESC_INIT {sizeof(lam_profile_desc), 0, 0, 0, 0, 0, 0}
LAM_API lam_status lam_layers_profile(const lam_profile_desc *desc, lam_layer *out_layers);

/* Megatron-LM's --pipeline-model-parallel-layout, "Et*3|(tt|)*29,m|L": E embedding, t layer, m
 * layer for further tokens, L head and loss; | ends a stage. */
typedef struct lam_layout {
  uint32_t struct_size, reserved;
  uint64_t n_layers, n_stages; /* in: room; out: how many there are */
  char *layers;                /* caller's [n_layers] or NULL: their letters, no NUL */
  int32_t *first_layer;        /* caller's [n_stages + 1] or NULL, as in lam_partition */
} lam_layout;
#define LAM_LAYOUT_INIT {sizeof(lam_layout), 0, 0, 0, 0, 0}
LAM_API lam_status lam_layout_parse(const char *text, uint64_t bytes, lam_layout *out);
LAM_API lam_status lam_layout_print(const lam_layout *layout, char *buf, uint64_t room,
                                    uint64_t *out_bytes);

/* Which schedule "auto" is. */
typedef struct lam_choice_desc {
  uint32_t struct_size, flags;
  int32_t p, v, m; /* v: stages per rank that the model can be cut into; 1 = linear placement */
  uint32_t reserved;
  /* Of a rank: bytes always held; bytes of one micro-batch; what it may hold, 0 = no cap. */
  uint64_t static_bytes, activation_bytes, cap_bytes;
} lam_choice_desc;
#define LAM_CHOICE_DESC_INIT {sizeof(lam_choice_desc), 0, 0, 0, 0, 0, 0, 0, 0}
#define LAM_CHOICE_SPLITS 1u   /* every stage splits its backward: I and W */
#define LAM_CHOICE_OVERLAPS 2u /* a fused pair was measured to take less than F and B */
#define LAM_CHOICE_LOOSE 4u    /* memory is no concern */
typedef struct lam_choice {
  uint32_t struct_size;
  int32_t v;        /* stages per rank to build it with */
  const char *name; /* a constant string */
  uint64_t bytes;   /* what the fullest rank would hold */
  char reason[240]; /* one line */
} lam_choice;
#define LAM_CHOICE_INIT {sizeof(lam_choice), 0, 0, 0, {0}}
LAM_API lam_status lam_schedule_choose(const lam_choice_desc *desc, lam_choice *out);

#endif
