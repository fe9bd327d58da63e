/* demo.h: what the files of the demo share. The demo is a host of Lamella: it trains a small
 * Transformer decoder on bytes of text, its layers spread over worker processes, and uses nothing
 * of Lamella but <lamella.h>.
 *
 *   options.c    the command line, and which layers go to which stage
 *   plan.c       the schedule, and which stage goes to which worker
 *   data.c       text to micro-batches
 *   model.c      the weights of one stage: its layers, this worker's share of each matrix
 *   layer.c      one decoder layer, forward and backward
 *   attention.c, norm.c, loss.c   what Lamella leaves to its host
 *   stage.c      the layers of a stage as the functions that a Lamella pipeline calls
 *   adamw.c      the optimizer
 *   worker.c     groups, pipelines; train.c: the steps
 *   observe.c, report.c, bench.c  where the time went
 *   save.c       the whole model, or its gradients, into one safetensors file
 *   gradients.c  gradients beside such a file
 *   call.c       matrices, and operator calls on them; memory.c: every byte taken is counted
 *   arithmetic.h what is computed for one number, the same on the host and on a GPU
 *   device.c     where a worker's matrices lie: in the host's memory, or (cuda.c, cuda.cu) on a GPU
 *
 * Letters: T tokens of a micro-batch, H hidden size, A this worker's share of H in attention, F
 * its share of the FFN width.
 * Invariant: every function that can fail returns a lam_status, and the reason is error_text(). */
#ifndef LAMELLA_DEMO_H_
#define LAMELLA_DEMO_H_

#include <lamella.h>
#include <stdbool.h>
#include <stddef.h>

#include "bindings/cli/demo/arithmetic.h"
#include "bindings/cli/demo/matrix.h"

enum { MAX_MICRO = 64, MAX_LAYERS = 256, MAX_WORKERS = 64 };
enum { MAX_PIPELINE = 16, MAX_HELD = 4 }; /* workers of a pipeline, stages of a worker */
enum { MAX_STAGES = MAX_PIPELINE * MAX_HELD };

/* Writes the reason and gives back `code`. Lamella's own failures keep theirs. */
lam_status fail(lam_status code, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *error_text(void);
#define TRY(expr)                    \
  do {                               \
    const lam_status try_ = (expr);  \
    if (try_ != LAM_OK) return try_; \
  } while (0)

/* -- options.c -- */

typedef struct options {
  const char *text, *schedule, *assign, *dtype, *device, *draw, *save, *out;
  const char *save_gradients, *check_gradients; /* of the first step */
  int pp, tp, layers, hidden, sequence, sequences, micro_batches, stages_per_rank;
  int steps, seed, threads, check, bench;
  int mixed;    /* other ranks are other programs: they know the steps, nothing else */
  int deadline; /* seconds that a peer may be late once training runs; 0: Lamella's */
  /* Made from the above. */
  int bits;                  /* of an element of weights and activations: 32 (f32) or 16 (bf16) */
  int heads, head_size, ffn; /* of the whole model */
  int64_t tokens;            /* T: of a micro-batch */
  int per_worker, n_stages;  /* stages; n_stages = pp per_worker */
  bool on_gpu;               /* device is cuda */
  bool splits;               /* some backwards are done in two: for the input, for the weight */
  char why[240];             /* "auto" chose the schedule */
  /* Stage s holds layers first_layer[s] .. first_layer[s + 1] - 1, counted from 0. */
  int first_layer[MAX_STAGES + 1];
  int rank_of_stage[MAX_STAGES]; /* in the pipeline */
  /* Of a pipeline's rank: activations (stage, micro-batch) held at once; slots between stages of
   * its own. */
  int32_t peaks[MAX_PIPELINE];
  int slots[MAX_PIPELINE];
} options;

lam_status options_parse(int argc, char **argv, options *out);
/* assign: "1-4|5-8|9-12", layers counted from 1; NULL = evenly, earlier stages take one more. */
lam_status options_place(const char *assign, int layers, int stages, int *first_layer);
void print_plan(const options *o);

/* -- plan.c -- */

/* The schedule's name, pp and per_worker; stages: as many as --assign names, 0 = none. */
lam_status plan_shape(options *o, int stages);
lam_status plan_make(options *o); /* what the schedule tells: from rank_of_stage on, and splits */
lam_status plan_schedule(const options *o, const char *name, lam_schedule **out);
lam_status plan_as_run(const lam_schedule *s, lam_schedule **out); /* for the simulator */
const char *plan_about(const char *name);

/* -- memory.c: all memory of the demo, and what Lamella asks for through its context -- */

void *memory_take(uint64_t bytes); /* 64-byte aligned, zeroed; NULL when there is none */
void memory_give(void *p, uint64_t bytes);
uint64_t memory_peak(void);
void memory_count(int64_t bytes); /* taken (given back: below 0) elsewhere */
void *memory_hook_take(void *user, uint64_t bytes, uint64_t alignment); /* lam_context_desc.alloc */
void memory_hook_give(void *user, void *p, uint64_t bytes);
/* What worker (rank in its pipeline, part) should take at most, by formula. */
uint64_t memory_predict(const options *o, int rank, int part);

/* -- call.c -- */

DLDataType matrix_dtype(matrix m);

#define LIST(type, ...) \
  (const type[]){__VA_ARGS__}, (int)(sizeof((const type[]){__VA_ARGS__}) / sizeof(type))
#define IN(...) LIST(matrix, __VA_ARGS__)
#define OUT(...) LIST(matrix, __VA_ARGS__)
#define ATTRS(...) LIST(lam_attr, __VA_ARGS__)
#define ABSENT matrix_at(NULL, 0, 0, 32)
#define I(value) lam_attr_i(value)
#define S(text) lam_attr_s(text)
/* call_op(ctx, LAM_OP_linear, IN(x, w), OUT(y), ATTRS(S("gelu"))), of matrices where the worker
 * computes */
lam_status call_op(lam_context *ctx, uint32_t op, const matrix *in, int n_in, const matrix *out,
                   int n_out, const lam_attr *attrs, int n_attrs);
/* The same of matrices in the host's memory. */
lam_status call_host_op(lam_context *ctx, uint32_t op, const matrix *in, int n_in,
                        const matrix *out, int n_out, const lam_attr *attrs, int n_attrs);

/* -- data.c -- */

typedef struct text {
  uint8_t *bytes;
  int64_t n;
  uint8_t *there; /* the same where the worker computes */
} text;

lam_status text_read(const options *o, text *out);
lam_status text_place(text *t); /* to where the worker computes */
void text_free(text *t);
/* Micro-batch `micro` of `step`: T tokens, and for each the one that follows it in the text. */
void text_batch(const text *t, const options *o, int64_t step, int micro, uint8_t *tokens,
                uint8_t *targets);

/* -- model.c -- */

typedef struct span { /* half open */
  int64_t begin, end;
} span;

/* One weight: what the whole is, which part of it is here, and what training keeps for it. */
typedef struct param {
  char name[48];
  int64_t whole_rows, whole_cols;
  span rows[3]; /* the part: these rows of the whole, one block after the other */
  int n_rows;
  span cols;           /* and these columns */
  bool split;          /* else every part of the tensor-parallel group holds all of it */
  float deviation;     /* of its first values; 0 = all ones */
  matrix w;            /* what the products read */
  float *master;       /* the same in f32: w itself where that is f32 */
  float *grad, *m, *v; /* f32: summed over the step's micro-batches; AdamW's moments */
} param;

enum { NORM1, QKV, ATTENTION_OUT, NORM2, GATE_UP, DOWN, N_LAYER_PARAMS };

typedef struct model { /* the weights of (stage, part) */
  const options *o;
  int stage, part;
  int n_layers, n_params;
  int64_t attention, ffn;      /* A, F */
  param *params;               /* the layers' first, N_LAYER_PARAMS each */
  param *embedding, *position; /* first stage, else NULL */
  param *last_norm, *head;     /* last stage, else NULL */
  span heads;                  /* which of the model's heads are here */
} model;

/* Describes; model_fill takes memory and makes the first values, equal for any pp and tp. */
lam_status model_describe(const options *o, int stage, int part, model *out);
lam_status model_fill(model *m);
void model_free(model *m);
static inline int64_t param_size(const param *p) { return p->w.rows * p->w.cols; }
static inline matrix param_grad(const param *p) {
  return matrix_at(p->grad, p->w.rows, p->w.cols, 32);
}
int64_t param_whole_row(const param *p, int64_t row);

/* -- layer.c and what it calls -- */

typedef struct layer_saved { /* what one layer keeps of one micro-batch until its backward */
  matrix h1;                 /* [T, H]   norm1(x) */
  matrix qkv;                /* [T, 3A]  queries, keys, values of this worker's heads */
  matrix o;                  /* [T, A]   attention's output */
  matrix mid;                /* [T, H]   x + attention_out(o) */
  matrix h2;                 /* [T, H]   norm2(mid) */
  matrix aux;                /* [T, 2F]  [gate | up] before the activation */
  matrix y;                  /* [T, H]   mid + ffn(h2) */
  /* Of a split backward, from its first half to its second, with what qkv and mid hold then: their
   * own gradients. */
  matrix d_aux, d_y; /* [T, 2F], [T, H] */
  float *lse;        /* [heads, T] log of the sum of exp of a query's scores */
  float *r1, *r2;    /* [T]      1 / root mean square of x, of mid */
} layer_saved;

typedef struct
    layer_room { /* one for all layers and micro-batches: nothing in it outlives a call */
  lam_context *ctx;
  int64_t tp;        /* handle of the tensor-parallel group */
  matrix out;        /* [T, H] */
  matrix d_h, d_mid; /* [T, H] gradients */
  matrix d_o, d_qkv; /* [T, A], [T, 3A] */
  float *attention;  /* attention_room_floats() */
} layer_room;

lam_status layer_forward(const model *m, int layer, layer_room *room, matrix x, layer_saved *s);
/* d_y and d_x [T, H] may be the same memory. Gradients of the weights are added to. */
lam_status layer_backward(const model *m, int layer, layer_room *room, matrix x,
                          const layer_saved *s, matrix d_y, matrix d_x);
/* The same in two: for the input (and the norms' few weights), s->d_y to d_x, which may be x; then
 * for the weights of the products. */
lam_status layer_backward_input(const model *m, int layer, layer_room *room, matrix x,
                                const layer_saved *s, matrix d_x);
lam_status layer_backward_weight(const model *m, int layer, layer_room *room, const layer_saved *s);

/* Causal attention of `heads` heads over sequences of `sequence` rows. */
int64_t attention_room_floats(int sequence, int head_size, int threads);
void attention_forward(matrix qkv, int sequence, int heads, float *room, matrix o, float *lse);
void attention_backward(matrix qkv, int sequence, int heads, float *room, matrix o,
                        const float *lse, matrix d_o, matrix d_qkv);

/* sum = x + add (add absent: sum is not written); y = sum * r * gain with r = 1 / root mean square
 * of the row. */
void norm_forward(matrix x, matrix add, const float *gain, matrix sum, matrix y, float *r);
/* d_x = d_sum + the gradient through the norm (d_sum absent: 0); gain's gradient is added to.
 * d_x may be d_sum, or x. */
void norm_backward(matrix d_y, matrix x, const float *gain, const float *r, matrix d_sum,
                   matrix d_x, float *d_gain);
void add(matrix a, matrix b, matrix sum);

/* x[t] = embedding[tokens[t]] + position[t % sequence] */
void embed_forward(const uint8_t *tokens, int sequence, const float *embedding,
                   const float *position, matrix x);
void embed_backward(const uint8_t *tokens, int sequence, matrix d_x, float *d_embedding,
                    float *d_position);

/* Mean cross entropy of the rows; logits become its gradient times `scale`. */
double cross_entropy(matrix logits, const uint8_t *targets, float scale);

/* -- adamw.c -- */

adamw adamw_at(int64_t step, int64_t steps); /* warms up, then falls */
/* One step, counted from 0; gradients are zero afterwards. */
void adamw_step(param *p, adamw a, int64_t step);
void adamw_update(adamw a, int64_t n, float *w, float *grad, float *m, float *v, uint16_t *bf16);

/* -- device.c -- */

/* Where a worker's matrices lie, and what the demo does to them there by itself. On a GPU all of it
 * is queued on one stream; what fails there is told by the next `finish`. */
typedef struct device {
  const char *name;
  int32_t type, id; /* as in a DLDevice */
  void *stream;
  lam_status (*open)(const options *o, int rank);
  void (*close)(void);
  void *(*take)(uint64_t bytes); /* zeroed; counted as memory_take does; NULL when there is none */
  void (*give)(void *p, uint64_t bytes);
  void (*copy)(const void *from, void *to, uint64_t bytes);
  lam_status (*read)(const void *there, void *host, uint64_t bytes);
  lam_status (*write)(const void *host, void *there, uint64_t bytes);
  lam_status (*finish)(void);          /* waits for all that is queued */
  lam_status (*loss)(double *inout);   /* adds what cross_entropy kept, which is then 0 */
  /* The functions above of the same names. */
  void (*batch)(const text *t, const options *o, int64_t step, int micro, uint8_t *tokens,
                uint8_t *targets);
  void (*norm_forward)(matrix x, matrix add, const float *gain, matrix sum, matrix y, float *r);
  void (*norm_backward)(matrix d_y, matrix x, const float *gain, const float *r, matrix d_sum,
                        matrix d_x, float *d_gain);
  void (*add)(matrix a, matrix b, matrix sum);
  void (*embed_forward)(const uint8_t *tokens, int sequence, const float *embedding,
                        const float *position, matrix x);
  void (*embed_backward)(const uint8_t *tokens, int sequence, matrix d_x, float *d_embedding,
                         float *d_position);
  void (*attention_forward)(matrix qkv, int sequence, int heads, float *room, matrix o, float *lse);
  void (*attention_backward)(matrix qkv, int sequence, int heads, float *room, matrix o,
                             const float *lse, matrix d_o, matrix d_qkv);
  /* The mean over rows, times `share`, is added to *loss, or kept. */
  void (*cross_entropy)(matrix logits, const uint8_t *targets, float scale, double share,
                        double *loss);
  /* bf16: rounded from w afterwards, or NULL */
  void (*adamw)(adamw a, int64_t n, float *w, float *grad, float *m, float *v, uint16_t *bf16);
} device;

extern device device_host;
extern device device_cuda __attribute__((weak)); /* not in every program */
extern device *here;                             /* this process's; device_host at first */
lam_status device_open(const options *o, int rank);
/* A matrix that the host can read: m itself, or a copy, which matrix_unread gives back. */
lam_status matrix_read(matrix m, matrix *out);
void matrix_unread(matrix m, matrix *read);

/* -- stage.c -- */

typedef struct stage_saved stage_saved;
typedef struct desk { /* of a worker: what its stages use by turns */
  const options *o;
  layer_room room;
  matrix d;          /* [T, H] the gradient on its way down */
  stage_saved *idle; /* blocks kept for the next micro-batch, of any stage */
  int most_layers;   /* of a stage */
  uint64_t block_bytes;
} desk;

enum { N_TIMED = 4 }; /* LAM_KIND_F, I, W, B */
typedef struct stage {
  model *m;
  const text *text;
  desk *desk;
  stage_saved *by_micro[MAX_MICRO]; /* in flight */
  int64_t cpu[N_TIMED][MAX_MICRO];  /* thread CPU time of the last step's actions, ns */
} stage;

lam_status desk_create(const model *models, int n_models, lam_context *ctx, int64_t tp, desk *out);
void desk_destroy(desk *d); /* after its stages */
void stage_destroy(stage *s);
lam_stage stage_functions(stage *s);

/* -- worker.c -- */

typedef struct worker {
  const options *o;
  int rank, size, index, part; /* index: in its pipeline; part: in its tensor-parallel group */
  bool crowded;                /* more threads than cores: wall-clock times are of shared cores */
  lam_context *ctx;
  lam_group *world, *pp, *tp;
  text text;
  desk desk;
  int n_stages; /* held here */
  model models[MAX_HELD];
  stage stages[MAX_HELD];
} worker;

typedef struct line { /* a pipeline over this worker's pp group */
  const char *name;
  lam_schedule *schedule;
  lam_pipeline *pipeline;
} line;

lam_status worker_open(const options *o, worker *out);
void worker_close(worker *w);
lam_status line_open(worker *w, const char *schedule, line *out);
void line_close(line *l);
/* `bytes` (a multiple of 4) of every worker, in rank order, into `all` on rank 0. Collective. */
lam_status gather(worker *w, const void *mine, uint64_t bytes, void *all);
lam_status worker_send(worker *w, int to, matrix data);
lam_status worker_recv(worker *w, int from, matrix data);
int64_t now_ns(void);
int64_t cpu_ns(void);                 /* of this thread */
double median(double *values, int n); /* sorts them */

/* -- train.c, observe.c, report.c, save.c, gradients.c, bench.c -- */

/* F, I, W of a micro-batch of a stage, each after two waits at most. */
enum { MAX_EVENTS = 3 * 3 * MAX_HELD * MAX_MICRO, MAX_TEXT = 8192 };

/* Each held stage's two edges, both ways. */
enum { MAX_CARRIERS = 4 * MAX_HELD, MAX_PATH = 16 };
typedef struct carrier { /* how messages of an edge travel */
  int32_t edge, kind;
  char path[MAX_PATH];
} carrier;

typedef struct record { /* one step of one worker */
  lam_pipeline_report report;
  int64_t cpu[MAX_HELD][N_TIMED][MAX_MICRO]; /* by its stages, ascending */
  carrier carriers[MAX_CARRIERS];            /* of edges to other workers */
  int64_t n_carriers;
  lam_event events[MAX_EVENTS];
} record;

lam_status train(worker *w);
lam_status observe(worker *w, const char *schedule);
lam_status record_take(worker *w, line *l, record *out);
/* records [n_steps][size] of one schedule, on rank 0; explained: what the library says of the last
 * of these steps. */
lam_status report(worker *w, const line *l, const record *records, int n_steps,
                  const char *explained);
lam_status save(worker *w, const char *path);
lam_status save_gradients(worker *w, const char *path);
/* This worker's gradients beside those that save_gradients wrote, as a line of JSON. */
lam_status check_gradients(const worker *w, const char *path);
lam_status bench(worker *w);
/* One step without its loss: when the pipeline had run (now_ns) comes out, then AdamW. */
lam_status bench_step(worker *w, line *l, int64_t step, int64_t *out_ran);
void update(worker *w, int64_t step, int64_t steps); /* AdamW on all weights here */
/* One line of JSON to stdout. */
void emit(const char *format, ...) __attribute__((format(printf, 1, 2)));
void emit_text(const char *key,
               const char *text); /* "key": "text", escaped; no newline, part of a line */

#endif
