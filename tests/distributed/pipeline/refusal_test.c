/* refusal_test.c: pipelines that are not made: descriptions that cannot be, and ranks that disagree,
 * each with its reason on every rank that is concerned.
 * Leaves steps that fail to failure_test.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/distributed/pipeline/worker.h"
#include "tests/place.h"

/* -- ranks that disagree -- */

typedef struct disagreement {
  setup at;
  const lam_schedule *other; /* rank 1's */
  void (*change)(worker *w); /* rank 1's desc */
  const char *message, *also;
} disagreement;

static void disagree(int rank, int size, void *arg) {
  disagreement *d = arg;
  setup at = d->at;
  worker k;
  if (rank == 1 && d->other) at.s = d->other, at.m.n_micro = d->other->n_micro;
  worker_prepare(&k, &at, rank, size);
  if (rank == 1 && d->change) d->change(&k);
  CHECK_STATUS(worker_start(&k), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(), d->message);
  CHECK_CONTAINS(lam_last_error(), d->also);
  CHECK(k.pipeline == NULL);
  worker_close(&k);
}

static void other_dims(worker *w) { w->shapes[3].dims[1] = 6; }
static void other_dtype(worker *w) { w->shapes[0].dtype.bits = 32; }
static void other_count(worker *w) { w->edges[1].n_tensors = 3; }
static void other_flags(worker *w) { w->desc.flags ^= LAM_PIPELINE_FORWARD_ONLY; }

static void on_the_host(worker *w) { w->desc.device_type = 0; }

TEST(pipeline_refusal, ranks_whose_tensors_lie_elsewhere_are_told_so) {
  if (place_is_host()) SKIP("all of them are the host's");
  lam_schedule *s = build("1f1b", 3, 4);
  disagreement d = {.at = {.m = small_model(3, 4), .s = s}, .change = on_the_host};
  d.message = "tensors are of device type 2 on rank 0", d.also = "of 1 on rank 1";
  CHECK_OK(lam_group_id_create(&d.at.id));
  run_threads(3, disagree, &d);
  lam_schedule_destroy(s);
}

TEST(pipeline_refusal, ranks_that_disagree_are_told_so_at_create) {
  lam_schedule *s = build("1f1b", 3, 4), *order = build("gpipe", 3, 4),
               *micro = build("1f1b", 3, 5);
  const disagreement all[] = {
      {.other = order,
       .message = "rank 1's schedule has other actions than rank 0's",
       .also = "schedule"},
      {.other = micro, .message = "3 ranks, 3 stages,", .also = "micro-batches"},
      {.change = other_dims,
       .message = "edge 1 is f64[3,5] on rank 0 and f64[3,6] on rank 1",
       .also = "edge 1"},
      {.change = other_dtype,
       .message = "edge 0 is f64[3,5] on rank 0 and f32[3,5] on rank 1",
       .also = "edge 0"},
      {.change = other_count,
       .message = "edge 1 is f64[3,5] on rank 0",
       .also = "f64[3,5] i64[3] f32[3] on rank 1"},
      {.change = other_flags,
       .message = "FORWARD_ONLY is clear on rank 0",
       .also = "set on rank 1"},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    disagreement d = all[i];
    d.at = (setup){.m = small_model(3, 4), .s = s};
    NOTE("%s", d.message);
    CHECK_OK(lam_group_id_create(&d.at.id));
    run_threads(3, disagree, &d);
  }
  lam_schedule_destroy(s), lam_schedule_destroy(order), lam_schedule_destroy(micro);
}

static void run_other_step(int rank, int size, void *arg) {
  worker k;
  REQUIRE_OK(worker_open(&k, arg, rank, size));
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  CHECK_STATUS(lam_pipeline_run(k.pipeline, 1 + rank, NULL), LAM_MISMATCH);
  CHECK_CONTAINS(lam_last_error(),
                 "rank 0 sent {step 1, edge 0, activation, micro-batch 0, dtype 0x14002, 2 dims}");
  CHECK_CONTAINS(lam_last_error(), "rank 1 expects {step 2, edge 0, activation, micro-batch 0,");
  worker_close(&k);
}

TEST(pipeline_refusal, ranks_in_other_steps_are_told_so) {
  lam_schedule *s = build("1f1b", 2, 4);
  setup at = {.m = small_model(2, 4), .s = s};
  CHECK_OK(lam_group_id_create(&at.id));
  run_threads(2, run_other_step, &at);
  lam_schedule_destroy(s);
}

/* -- what create refuses on its own -- */

static void no_schedule(worker *w) { w->desc.schedule = NULL; }
static void no_stages(worker *w) { w->desc.stages = NULL; }
static void no_edges(worker *w) { w->desc.edges = NULL; }
static void few_stages(worker *w) { w->desc.n_stages = 1; }
static void many_edges(worker *w) { w->desc.n_edges = 2; }
static void no_forward(worker *w) { w->stages[1].forward = NULL; }
static void no_backward(worker *w) { w->stages[1].backward = NULL; }
static void half_backward(worker *w) {
  w->stages[1].backward_input = w->stages[1].backward, w->stages[1].backward = NULL;
}
static void unknown_stage_flag(worker *w) { w->stages[0].flags = 2; }
static void unknown_flag(worker *w) { w->desc.flags = 4; }
static void wrong_size(worker *w) { w->desc.struct_size = 8; }
static void wrong_stage_size(worker *w) { w->stages[0].struct_size = 0; }
static void wrong_edge_size(worker *w) { w->edges[0].struct_size = 0; }
static void no_tensors(worker *w) { w->edges[0].n_tensors = 0; }
static void null_tensors(worker *w) { w->edges[0].tensors = NULL; }
static void negative_dim(worker *w) { w->shapes[0].dims[1] = -1; }
static void huge_dims(worker *w) { w->shapes[0].dims[0] = w->shapes[0].dims[1] = INT64_C(1) << 40; }
static void large_dims(worker *w) { w->shapes[0].dims[0] = INT64_C(1) << 45; }
static void many_dims(worker *w) { w->shapes[0].ndim = 9; }
static void lanes(worker *w) { w->shapes[0].dtype.lanes = 2; }
static void no_bits(worker *w) { w->shapes[0].dtype.bits = 0; }
static void sub_byte(worker *w) { w->shapes[0].dtype.bits = 4; }
static void other_device(worker *w) { w->desc.device_type = 99; }

static void *alloc_a_little(void *user, uint64_t bytes, uint64_t alignment) {
  (void)user;
  return bytes < 1 << 20 ? aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                         : NULL;
}
static void free_it(void *user, void *p, uint64_t bytes) {
  (void)user, (void)bytes;
  free(p);
}

TEST(pipeline_refusal, malformed_descriptions_are_refused_with_the_reason) {
  static const struct {
    void (*change)(worker *w);
    lam_status status;
    const char *message;
  } cases[] = {
      {no_schedule, LAM_INVALID_ARGUMENT, "schedule is NULL"},
      {no_stages, LAM_INVALID_ARGUMENT, "stages is NULL"},
      {no_edges, LAM_INVALID_ARGUMENT, "edges is NULL"},
      {few_stages, LAM_INVALID_ARGUMENT, "rank 0 was given 1 stages, the schedule puts 2 on it"},
      {many_edges, LAM_INVALID_ARGUMENT, "2 edges, expected 1"},
      {no_forward, LAM_INVALID_ARGUMENT, "stage 1 has no forward function"},
      {no_backward, LAM_INVALID_ARGUMENT, "stage 1 has no backward function"},
      {half_backward, LAM_INVALID_ARGUMENT, "stage 1 has no backward function"},
      {unknown_stage_flag, LAM_UNIMPLEMENTED, "stage 0 has flags 0x2"},
      {unknown_flag, LAM_UNIMPLEMENTED, "flags are 0x4"},
      {wrong_size, LAM_INVALID_ARGUMENT, "lam_pipeline_desc: struct_size is 8"},
      {wrong_stage_size, LAM_INVALID_ARGUMENT, "lam_stage: struct_size is 0"},
      {wrong_edge_size, LAM_INVALID_ARGUMENT, "lam_edge: struct_size is 0"},
      {no_tensors, LAM_INVALID_ARGUMENT, "edges[0] has 0 tensors, expected 1 to 64"},
      {null_tensors, LAM_INVALID_ARGUMENT, "edges[0] has 1 tensors at NULL"},
      {negative_dim, LAM_INVALID_ARGUMENT, "edges[0], tensor 0: a dimension is -1"},
      {huge_dims, LAM_INVALID_ARGUMENT, "a tensor that fits in memory"},
      {large_dims, LAM_RESOURCE_EXHAUSTED, "no memory for"},
      {many_dims, LAM_INVALID_ARGUMENT, "ndim is 9, expected 0 to 8"},
      {lanes, LAM_INVALID_ARGUMENT, "dtype.lanes is 2, expected 1"},
      {no_bits, LAM_INVALID_ARGUMENT, "dtype.bits is 0, expected whole bytes"},
      {sub_byte, LAM_INVALID_ARGUMENT, "dtype.bits is 4, expected whole bytes"},
      {other_device, LAM_UNIMPLEMENTED, "device_type is 99, a device that this library has not"},
  };
  lam_schedule *s = parse("0F0 1F0 1B0 0B0");
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    setup at = {.m = small_model(2, 1), .s = s, .hooks = LAM_CONTEXT_DESC_INIT};
    worker k;
    at.hooks.alloc = alloc_a_little, at.hooks.free = free_it;
    NOTE("%s", cases[i].message);
    worker_prepare(&k, &at, 0, 1);
    cases[i].change(&k);
    CHECK_STATUS(worker_start(&k), cases[i].status);
    CHECK_CONTAINS(lam_last_error(), cases[i].message);
    worker_close(&k);
  }
  lam_schedule_destroy(s);
}

typedef struct refusal {
  setup at;
  void (*change)(worker *w); /* rank 1's desc */
  const char *message;
} refusal;

static void refused_once(int rank, int size, void *arg) {
  const refusal *r = arg;
  worker k;
  worker_prepare(&k, &r->at, rank, size);
  const lam_stage stage = k.stages[0];
  const lam_shape shape = k.shapes[0];
  const lam_pipeline_desc desc = k.desc;
  if (rank == 1) r->change(&k);
  CHECK_STATUS(worker_start(&k), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), r->message);
  if (rank != 1) CHECK_CONTAINS(lam_last_error(), "rank 1: ");
  k.stages[0] = stage, k.shapes[0] = shape, k.desc = desc;
  REQUIRE_OK(worker_start(&k)); /* the group is as good as before */
  CHECK_OK(lam_pipeline_run(k.pipeline, 0, NULL));
  worker_close(&k);
}

static void no_first_forward(worker *w) { w->stages[0].forward = NULL; }

TEST(pipeline_refusal, what_one_rank_is_refused_all_are_told) {
  static const refusal all[] = {
      {.change = no_schedule, .message = "schedule is NULL"},
      {.change = no_edges, .message = "edges is NULL"},
      {.change = no_first_forward, .message = "stage 1 has no forward function"},
      {.change = negative_dim, .message = "edges[0], tensor 0: a dimension is -1"},
  };
  lam_schedule *s = build("1f1b", 3, 4);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    refusal r = all[i];
    r.at = (setup){.m = small_model(3, 4), .s = s};
    NOTE("%s", r.message);
    CHECK_OK(lam_group_id_create(&r.at.id));
    run_threads(3, refused_once, &r);
  }
  lam_schedule_destroy(s);
}

TEST(pipeline_refusal, schedules_that_cannot_run_are_refused) {
  lam_schedule *deadlock = parse("0F0 0B0 1F0 1B0"), *two = build("1f1b", 2, 2);
  setup at = {.m = small_model(2, 1), .s = deadlock};
  worker k;
  worker_prepare(&k, &at, 0, 1);
  CHECK_STATUS(worker_start(&k), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "deadlock");
  k.desc.schedule = two;
  CHECK_STATUS(worker_start(&k), LAM_INVALID_ARGUMENT);
  CHECK_CONTAINS(lam_last_error(), "the schedule has 2 ranks, the group 1");
  worker_close(&k);
  lam_schedule_destroy(deadlock), lam_schedule_destroy(two);
}

TEST(pipeline_refusal, nothing_where_a_pipeline_is_needed_is_refused) {
  lam_pipeline *p = NULL;
  lam_pipeline_report r = LAM_PIPELINE_REPORT_INIT;
  double loss = 3;
  CHECK_STATUS(lam_pipeline_create(NULL, NULL, &p), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_pipeline_create(NULL, NULL, NULL), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_pipeline_run(NULL, 0, &loss), LAM_INVALID_ARGUMENT);
  CHECK(loss == 0);
  CHECK_STATUS(lam_pipeline_get_report(NULL, &r), LAM_INVALID_ARGUMENT);
  lam_pipeline_destroy(NULL);
}
