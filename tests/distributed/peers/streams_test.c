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

/* Once unseen: products are timed then, to choose among them. */
static void run(rank *r) {
  float *host = calloc(ROWS * COLS, sizeof *host);
  void *x = to_card(r, host, ROWS * K * 4), *w = to_card(r, host, COLS * K * 4);
  void *y = to_card(r, host, ROWS * COLS * 4);
  for (int i = 0; i < 2; i++) {
    CHECK_OK(layer(r, x, w, y));
    from_card(r, host, y, ROWS * COLS * 4);
    pthread_barrier_wait(&all);
    if (i == 0 && r->rank == 0) standin_trace(spans, SPANS);
    pthread_barrier_wait(&all);
  }
  CHECK_STR(way(r), "threads");
  free(host);
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

/* How many spans there were, in one order that chance gives. */
static int trace_once(uint64_t chance) {
  pthread_barrier_init(&all, NULL, 2);
  on_cards(&(world){.chance = chance, .each = true}, 2, run, NULL);
  const int n = standin_traced();
  standin_trace(NULL, 0);
  pthread_barrier_destroy(&all);
  return n <= SPANS ? n : 0;
}

/* Where both may run, chance may still take all products first: one order in twenty does. */
TEST(streams, a_chunks_sum_runs_beside_the_next_ones_product) {
  const char *folder = getenv("TEST_UNDECLARED_OUTPUTS_DIR");
  int n = 0;
  standin_devices(2);
  for (uint64_t k = 0; k < 10 && count_beside(n) == 0; k++) {
    n = trace_once(seed() + k);
    CHECK_EQ(count(n, is_product), 2 * CHUNKS);
    CHECK_EQ(count(n, is_sum), 2 * CHUNKS);
  }
  CHECK(count_beside(n) > 0);
  if (folder) write_trace(n, folder);
}
