/* streams_test.c: what a layer's chunks do on a card's streams: the sum of one runs beside the next one's
 * product. What ran is written as a trace, for a picture.
 * Leaves results to the conformance suite, the picture to bindings/cli/streams.py. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/distributed/peers/cards.h"

enum { ROWS = 1024, K = 32, COLS = 256, CHUNKS = 4, SPANS = 4000 };

static standin_span spans[SPANS];
static pthread_barrier_t all;
static int n_spans;
static bool is_found; /* written between two barriers */

/* y [ROWS, COLS] = the sum over the ranks of x [ROWS, K] w [COLS, K]^T, in chunks */
static lam_status layer(rank *r, void *x, void *w, void *y) {
  const DLDevice card = {2 /* kDLCUDA */, r->card};
  const DLDataType f32 = {kDLFloat, 32, 1};
  int64_t xs[] = {ROWS, K}, ws[] = {COLS, K}, ys[] = {ROWS, COLS};
  DLTensor tx = {x, card, 2, f32, xs, NULL, 0}, tw = {w, card, 2, f32, ws, NULL, 0};
  DLTensor ty = {y, card, 2, f32, ys, NULL, 0};
  const DLTensor *ins[] = {&tx, &tw};
  DLTensor *outs[] = {&ty};
  const lam_attr attrs[] = {lam_attr_i(lam_group_handle(r->g)),
                            lam_attr_i(1),
                            lam_attr_i(0),
                            lam_attr_i(0),
                            lam_attr_i(1),
                            lam_attr_i(CHUNKS)};
  lam_call c = LAM_CALL_INIT;
  c.op = LAM_OP_linear_row;
  c.inputs = ins, c.outputs = outs, c.attrs = attrs;
  c.n_inputs = 2, c.n_outputs = 1, c.n_attrs = 6;
  c.stream = r->stream;
  return lam_run(NULL, &c);
}

static bool is_product(const standin_span *s) { return strcmp(s->name, "a product") == 0; }
static bool is_sum(const standin_span *s) { return strcmp(s->name, "peer_sum") == 0; }

/* Of one rank, so of one card: otherwise a sum of the peer's would do. */
static bool beside(const standin_span *sum, const standin_span *product) {
  return sum->device == product->device && sum->stream != product->stream &&
         sum->begin < product->end && product->begin < sum->end;
}

static int count(int n, bool (*is)(const standin_span *s)) {
  int found = 0;
  for (int i = 0; i < n; i++) found += is(&spans[i]);
  return found;
}

static int count_beside(int n) {
  int found = 0;
  for (int i = 0; i < n; i++)
    for (int k = 0; k < n && is_sum(&spans[i]); k++)
      if (is_product(&spans[k]) && beside(&spans[i], &spans[k])) {
        found++;
        break;
      }
  return found;
}

/* Where both may run, chance may still take all products first: one time in twenty. Then once more. The
 * first time is not looked at: products are timed, to choose among them. */
static bool look(int time) {
  const int n = standin_traced();
  if (time > 0) {
    CHECK_EQ(count(n, is_product), 2 * CHUNKS);
    CHECK_EQ(count(n, is_sum), 2 * CHUNKS);
    n_spans = n <= SPANS ? n : 0;
  }
  const bool found = time > 0 && count_beside(n_spans) > 0;
  standin_trace(found ? NULL : spans, SPANS);
  return found;
}

static void run(rank *r) {
  float *host = calloc(ROWS * COLS, sizeof *host);
  void *x = to_card(r, host, ROWS * K * 4), *w = to_card(r, host, COLS * K * 4);
  void *y = to_card(r, host, ROWS * COLS * 4);
  for (int time = 0; time < 10 && !is_found; time++) {
    CHECK_OK(layer(r, x, w, y));
    from_card(r, host, y, ROWS * COLS * 4);
    pthread_barrier_wait(&all);
    if (r->rank == 0) is_found = look(time);
    pthread_barrier_wait(&all);
  }
  CHECK_STR(way(r), "threads");
  free(host);
}

/* 1, 2, ... as they come. */
static int stream_number(int i) {
  int number = 1;
  for (int k = 0; spans[k].stream != spans[i].stream; k++) {
    bool again = false;
    for (int j = 0; j < k; j++) again |= spans[j].stream == spans[k].stream;
    number += !again;
  }
  return number;
}

/* As torch's profiler writes what ran on a card. */
static void write_trace(int n, const char *folder) {
  char path[4096];
  snprintf(path, sizeof path, "%s/trace.json", folder);
  FILE *f = fopen(path, "w");
  if (!CHECK(f != NULL)) return;
  fprintf(f, "{\"machine\": \"a stand-in for CUDA\", \"traceEvents\": [\n");
  for (int i = 0; i < n; i++) {
    const standin_span *s = &spans[i];
    fprintf(f,
            "{\"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"%s\", \"ts\": %.3f, \"dur\": %.3f, "
            "\"args\": {\"device\": %d, \"stream\": %d}}%s\n",
            s->name, (double)(s->begin - spans[0].begin) * 1e-3, (double)(s->end - s->begin) * 1e-3,
            s->device, stream_number(i), i + 1 < n ? "," : "");
  }
  fprintf(f, "]}\n");
  fclose(f);
}

TEST(streams, a_chunks_sum_runs_beside_the_next_ones_product) {
  const char *folder = getenv("TEST_UNDECLARED_OUTPUTS_DIR");
  standin_devices(2);
  pthread_barrier_init(&all, NULL, 2);
  on_cards(&(world){.chance = seed(), .each = true}, 2, run, NULL);
  pthread_barrier_destroy(&all);
  standin_trace(NULL, 0);
  CHECK(is_found);
  if (folder && is_found) write_trace(n_spans, folder);
}
