/* form_test.c: messages that travel coded, or in parts over a tensor-parallel group: what a stage
 * is handed is what its neighbour made, within the codec's bound; to the bit where there is none.
 *
 * Two stages or three, three tensors a message (f32, bf16, i64), whose first dimension varies with
 * the micro-batch. Every stage makes activations for the next and gradients for the one before, and
 * checks what it is handed.
 * Leaves the bounds of the codecs themselves to tests/unit/kernels/codec_test.c. */
#include <math.h>
#include <string.h>

#include "kernels/math.h"
#include "plugin/comm/comm.h"
#include "plugin/core/context.h"
#include "tests/check.h"
#include "tests/place.h"

enum { MICROS = 5, STEPS = 2, ROWS = 7, COLS = 130, TENSORS = 3, MOST_TP = 3 };

typedef struct given { /* by a test, to all ranks */
  lam_group_id id;
  uint32_t codec, gradient_codec, split;
  bool third; /* stage, behind an edge without codecs */
  /* Rank 1's (of its pipeline; of its tensor-parallel group), where ranks are to disagree; 0: as
   * the others' */
  uint32_t others_codec, others_split;
  double others_speed;
  bool of_tensor;
  double speed;
  int tp;
  const lam_schedule *schedule;
  lam_status want;  /* of create */
  const char *said; /* by it */
} given;

typedef struct side { /* a rank */
  const given *at;
  int stage, checked;
  lam_shape shapes[TENSORS];
  lam_edge edges[2];
  lam_stage functions;
  lam_group *world, *pipe, *tensor;
  lam_pipeline *pipeline;
  double bytes[ROWS * COLS]; /* room for a tensor, on the host */
} side;

/* -- values that every rank can make; all are exact in bf16 -- */

enum { ACTIVATION, GRADIENT };

static double value_of(int t, int64_t step, int micro, int kind, int64_t i) {
  const uint64_t h =
      lam_mix((uint64_t)(t * 2 + kind) << 32 | (uint64_t)step, (uint64_t)micro << 32 | (uint64_t)i);
  return t == 2 ? (double)(h % 1000003) : ldexp((double)(h % 256) - 128, -5 * (int)(i % 3));
}

static int64_t rows_in(int micro) { return ROWS - micro % 3; }

static void store(const DLTensor *t, int64_t i, double v) {
  if (t->dtype.bits == 64) ((int64_t *)t->data)[i] = (int64_t)v;
  if (t->dtype.bits == 32) ((float *)t->data)[i] = (float)v;
  if (t->dtype.bits == 16) ((uint16_t *)t->data)[i] = lam_bf16_of_f32((float)v);
}

static double load(const DLTensor *t, int64_t i) {
  if (t->dtype.bits == 64) return (double)((const int64_t *)t->data)[i];
  if (t->dtype.bits == 32) return ((const float *)t->data)[i];
  return lam_f32_of_bf16(((const uint16_t *)t->data)[i]);
}

/* The same tensor in the host's memory: what a stage reads, and what it will put. */
static DLTensor on_host(side *s, const DLTensor *t) {
  DLTensor host = *t;
  host.data = s->bytes;
  return host;
}

static int64_t count(const DLTensor *t) { return t->shape[0] * (t->ndim > 1 ? t->shape[1] : 1); }

static uint64_t bytes_of(const DLTensor *t) { return (uint64_t)count(t) * t->dtype.bits / 8; }

/* How far off: largest magnitudes are 128, so that one bound holds for all tiles. */
static double bound_of(uint32_t codec, int t, double v) {
  const double of_v[] = {0, 0x1p-8, 0x1p-4, 0x1p-3, 0}, of_128[] = {0, 0, 0x1p-10, 0x1p-17, 0.51};
  if (t == 2 || codec == LAM_CODEC_NONE) return 0;
  return 1.01 * (of_v[codec] * fabs(v) + of_128[codec] + 0x1p-8 * fabs(v));
}

/* -- stages -- */

static void make(side *s, const lam_stage_io *io, int kind) {
  for (int t = 0; t < io->n_out; t++) {
    const DLTensor *out = &io->out[t], host = on_host(s, out);
    if (t < 2) out->shape[0] = rows_in(io->micro);
    for (int64_t i = 0; i < count(out); i++)
      store(&host, i, value_of(t, io->step, io->micro, kind, i));
    place_write(out->data, host.data, bytes_of(out));
    place_finish();
  }
}

static int last_stage(const given *at) { return at->third ? 2 : 1; }

static uint32_t codec_of(const given *at, int edge, int kind) {
  if (edge) return LAM_CODEC_NONE;
  return kind ? at->gradient_codec : at->codec;
}

static void check(side *s, const lam_stage_io *io, int kind) {
  const uint32_t codec = codec_of(s->at, kind ? s->stage : s->stage - 1, kind);
  CHECK_EQ(io->n_in, TENSORS);
  for (int t = 0; t < io->n_in; t++) {
    const DLTensor *in = &io->in[t], host = on_host(s, in);
    place_read(host.data, in->data, bytes_of(in));
    place_finish();
    if (t < 2) CHECK_EQ(in->shape[0], rows_in(io->micro));
    for (int64_t i = 0; i < count(in); i++) {
      const double want = value_of(t, io->step, io->micro, kind, i), got = load(&host, i);
      if (fabs(got - want) <= bound_of(codec, t, want)) continue;
      NOTE("codec %u, tensor %d, element %lld: %g, expected %g", codec, t, (long long)i, got, want);
      CHECK(fabs(got - want) <= bound_of(codec, t, want));
      return;
    }
  }
  s->checked++;
}

static lam_status forward(void *user, const lam_stage_io *io) {
  side *s = user;
  if (s->stage) check(s, io, ACTIVATION);
  make(s, io, ACTIVATION);
  return LAM_OK;
}

static lam_status backward(void *user, const lam_stage_io *io) {
  side *s = user;
  if (s->stage < last_stage(s->at)) check(s, io, GRADIENT);
  make(s, io, GRADIENT);
  return LAM_OK;
}

/* -- ranks: tensor-parallel rank t of stage s is rank s * tp + t of the world -- */

static void join(side *s, int rank, int size) {
  lam_group_desc d = LAM_GROUP_DESC_INIT;
  d.rank = rank, d.size = size, d.id = s->at->id, d.deadline_ms = 20000;
  s->stage = rank / s->at->tp;
  CHECK_OK(lam_group_create(NULL, &d, &s->world));
  CHECK_OK(lam_group_split(s->world, rank % s->at->tp, rank, &s->pipe));
  CHECK_OK(lam_group_split(s->world, s->stage, rank, &s->tensor));
}

static lam_status start(side *s) {
  const given *at = s->at;
  const bool differs = (at->of_tensor ? s->tensor : s->pipe)->rank == 1;
  s->shapes[0] = (lam_shape){2, {kDLFloat, 32, 1}, {ROWS, COLS}};
  s->shapes[1] = (lam_shape){2, {kDLBfloat, 16, 1}, {ROWS, COLS}};
  s->shapes[2] = (lam_shape){1, {kDLInt, 64, 1}, {9}};
  const uint32_t codec = differs && at->others_codec ? at->others_codec : at->codec;
  s->edges[0] = (lam_edge){sizeof(lam_edge), TENSORS, s->shapes, codec, at->gradient_codec};
  s->edges[1] = (lam_edge){sizeof(lam_edge), TENSORS, s->shapes, 0, 0};
  s->functions = (lam_stage)LAM_STAGE_INIT;
  s->functions.user = s, s->functions.forward = forward, s->functions.backward = backward;
  lam_pipeline_desc d = LAM_PIPELINE_DESC_INIT;
  d.group = s->pipe, d.schedule = at->schedule, d.stages = &s->functions, d.n_stages = 1;
  d.edges = s->edges, d.n_edges = (uint32_t)last_stage(at);
  d.tensor = at->tp > 1 ? s->tensor : NULL, d.split = at->split;
  d.edge_bytes_per_second = at->speed;
  d.device_type = place_device_type(), d.stream = place_stream();
  if (differs && at->others_split) d.split = at->others_split;
  if (differs && at->others_speed > 0) d.edge_bytes_per_second = at->others_speed;
  return lam_pipeline_create(NULL, &d, &s->pipeline);
}

static void leave(side *s) {
  lam_pipeline_destroy(s->pipeline);
  lam_group_destroy(s->tensor);
  lam_group_destroy(s->pipe);
  lam_group_destroy(s->world);
}

static void train(int rank, int size, void *arg) {
  side s = {.at = arg};
  join(&s, rank, size);
  if (CHECK_OK(start(&s)))
    for (int step = 0; step < STEPS; step++) CHECK_OK(lam_pipeline_run(s.pipeline, step, NULL));
  const int n_edges = s.stage > 0 && s.stage < last_stage(s.at) ? 2 : 1;
  CHECK_EQ(s.checked, STEPS * MICROS * n_edges);
  leave(&s);
}

static void refused(int rank, int size, void *arg) {
  side s = {.at = arg};
  join(&s, rank, size);
  CHECK_STATUS(start(&s), s.at->want);
  CHECK_CONTAINS(lam_last_error(), s.at->said);
  leave(&s);
}

static void run(given *at, void (*fn)(int, int, void *)) {
  lam_schedule *s = NULL;
  const int n_stages = last_stage(at) + 1;
  REQUIRE_OK(lam_schedule_build("1f1b", n_stages, 1, MICROS, &s));
  at->schedule = s;
  REQUIRE_OK(lam_group_id_create(&at->id));
  run_threads(n_stages * at->tp, fn, at);
  lam_schedule_destroy(s);
}

TEST(form, every_codec_brings_both_kinds_within_its_bound) {
  FOR_EACH(codec, 0, 1, 2, 3, 4) FOR_EACH(gradient, 0, 1, 4) {
    given at = {.tp = 1, .codec = (uint32_t)codec, .gradient_codec = (uint32_t)gradient};
    run(&at, train);
  }
}

TEST(form, a_codec_is_its_edges_own) {
  FOR_EACH(codec, LAM_CODEC_BF16, LAM_CODEC_INT8) FOR_EACH(gradient, 0, LAM_CODEC_INT8) {
    given at = {.tp = 1, .codec = (uint32_t)codec, .gradient_codec = (uint32_t)gradient};
    at.third = true;
    run(&at, train);
  }
}

static void look_at_edges(int rank, int size, void *arg) {
  side s = {.at = arg};
  join(&s, rank, size);
  if (CHECK_OK(start(&s))) FOR_EACH(kind, LAM_KIND_F, LAM_KIND_I) FOR_EACH(edge, 0, 1) {
      lam_edge_info info = LAM_EDGE_INFO_INIT;
      const bool mine = s.stage == edge || s.stage == edge + 1;
      const lam_status status = lam_pipeline_get_edge(s.pipeline, edge, kind, &info);
      CHECK_STATUS(status, mine ? LAM_OK : LAM_NOT_FOUND);
      if (!mine) continue;
      CHECK_EQ(info.codec, edge || kind == LAM_KIND_I ? LAM_CODEC_NONE : LAM_CODEC_INT8);
      CHECK_EQ(info.wire_bytes < info.slot_bytes, info.codec == LAM_CODEC_INT8);
    }
  leave(&s);
}

TEST(form, an_edge_tells_its_own_codec) {
  given at = {.tp = 1, .codec = LAM_CODEC_INT8, .third = true};
  run(&at, look_at_edges);
}

TEST(form, parts_are_gathered_to_the_same_bits) {
  FOR_EACH(tp, 2, 3) {
    given at = {.tp = tp, .split = LAM_SPLIT_ALWAYS};
    run(&at, train);
  }
}

TEST(form, parts_may_be_coded) {
  FOR_EACH(codec, 1, 2, 4) {
    given at = {.tp = 2, .split = LAM_SPLIT_ALWAYS, .codec = (uint32_t)codec, .gradient_codec = 1};
    run(&at, train);
  }
}

TEST(form, ranks_of_other_codecs_are_a_mismatch_that_names_both) {
  given at = {.tp = 1, .codec = LAM_CODEC_INT8, .others_codec = LAM_CODEC_F8E4M3};
  at.want = LAM_MISMATCH, at.said = "as int8 on rank 0 and ";
  run(&at, refused);
}

TEST(form, a_codec_that_does_not_exist_is_refused) {
  given at = {.tp = 1, .codec = 5, .want = LAM_INVALID_ARGUMENT};
  at.said = "edges[0]: codec is 5, expected 0 to 4";
  run(&at, refused);
}

TEST(form, a_split_that_does_not_exist_is_refused) {
  given at = {.tp = 2, .split = 3, .want = LAM_INVALID_ARGUMENT, .said = "split is 3"};
  run(&at, refused);
}

TEST(form, ranks_that_are_asked_to_split_otherwise_are_a_mismatch_that_names_both) {
  FOR_EACH(of_tensor, 0, 1) {
    given at = {.tp = 2, .split = LAM_SPLIT_ALWAYS, .others_split = LAM_SPLIT_NEVER};
    at.want = LAM_MISMATCH, at.of_tensor = of_tensor;
    at.said = of_tensor ? "split is 2 and edge_bytes_per_second 0 on rank 0 of the tensor-parallel "
                          "group, 1 and 0 on rank 1"
                        : "on rank 0 of the pipeline's group, 1 and 0 on rank 1";
    run(&at, refused);
    given speeds = {.tp = 2, .speed = 1e9, .others_speed = 2e9, .want = LAM_MISMATCH};
    speeds.of_tensor = of_tensor, speeds.said = "0 and 2e+09 on rank 1";
    run(&speeds, refused);
  }
}

/* -- what was decided -- */

typedef struct decision {
  given at;
  uint32_t parts;
  const char *why;
} decision;

static void decide(int rank, int size, void *arg) {
  const decision *d = arg;
  side s = {.at = &d->at};
  join(&s, rank, size);
  if (CHECK_OK(start(&s))) FOR_EACH(kind, LAM_KIND_F, LAM_KIND_I) {
      lam_edge_info info = LAM_EDGE_INFO_INIT;
      CHECK_OK(lam_pipeline_get_edge(s.pipeline, 0, kind, &info));
      CHECK_EQ(info.parts, d->parts);
      CHECK_CONTAINS(info.why, d->why);
      CHECK_EQ(info.peer, 1 - s.stage);
      CHECK_EQ(info.codec, kind == LAM_KIND_F ? d->at.codec : d->at.gradient_codec);
      CHECK_EQ(info.wire_bytes<info.slot_bytes, d->parts> 1 || info.codec > 0);
      CHECK_STATUS(lam_pipeline_get_edge(s.pipeline, 1, kind, &info), LAM_NOT_FOUND);
    }
  leave(&s);
}

static void check_decision(given at, uint32_t parts, const char *why) {
  decision d = {.at = at, .parts = parts, .why = why};
  lam_schedule *s = NULL;
  REQUIRE_OK(lam_schedule_build("1f1b", 2, 1, MICROS, &s));
  d.at.schedule = s;
  REQUIRE_OK(lam_group_id_create(&d.at.id));
  run_threads(2 * at.tp, decide, &d);
  lam_schedule_destroy(s);
}

TEST(form, messages_are_split_where_that_is_faster) {
  check_decision((given){.tp = 2, .speed = 1e3}, 2, "split: a part and a gather take less");
  check_decision((given){.tp = 2, .speed = 1e18}, 1, "whole: a gather would take longer");
  check_decision((given){.tp = 2}, 1, "whole: the edge's speed was not given");
  check_decision((given){.tp = 1}, 1, "whole: no tensor-parallel group");
  check_decision((given){.tp = 2, .split = LAM_SPLIT_NEVER, .speed = 1e3}, 1, "as asked for");
  check_decision((given){.tp = 3, .split = LAM_SPLIT_ALWAYS}, 3, "split: as asked for");
  check_decision((given){.tp = 1, .codec = LAM_CODEC_INT8}, 1, "whole");
}
