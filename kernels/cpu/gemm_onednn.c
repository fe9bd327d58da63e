/* gemm_onednn.c: products through oneDNN: which it takes, its threads, and the products that each
 * thread keeps.
 *
 * Making a product costs 0.2 ms and more, so every thread keeps those it used last, by their whole
 * shape; no locks, and a thread that makes what another one has made gets it from oneDNN's own
 * cache in 4 us.
 * Invariant: a call whose shape is in the cache makes nothing; a host's team size is what it was
 * when a call returns.
 * Leaves aux, few rows and what oneDNN does not take to gemm.c. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/forks.h"
#include "kernels/cpu/onednn.h"
#include "kernels/cpu/parallel.h"

/* -- each thread's products -- */

enum { SETS = 128, WAYS = 4 };

typedef struct entry {
  lam_onednn_shape shape;
  lam_onednn_product product;
  uint64_t last_use; /* 0: empty */
} entry;

typedef struct cache {
  entry sets[SETS][WAYS];
  uint64_t uses;
} cache;

static _Thread_local cache *mine;
static pthread_key_t at_thread_end;

static void free_cache(void *p) {
  cache *c = p;
  lam_forks_wait();
  for (int set = 0; set < SETS; set++)
    for (int way = 0; way < WAYS; way++) lam_onednn_free(&c->sets[set][way].product);
  lam_forks_go_on();
  free(c);
  mine = NULL;
}

static void make_key(void) { pthread_key_create(&at_thread_end, free_cache); }

static cache *my_cache(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  if (mine) return mine;
  pthread_once(&once, make_key);
  mine = calloc(1, sizeof *mine);
  if (mine) pthread_setspecific(at_thread_end, mine);
  return mine;
}

/* FNV-1a over the words of a shape. */
static uint64_t hash(const lam_onednn_shape *s) {
  uint64_t words[sizeof *s / sizeof(uint64_t)], h = 0xcbf29ce484222325u;
  memcpy(words, s, sizeof words);
  for (size_t i = 0; i < sizeof words / sizeof *words; i++) h = (h ^ words[i]) * 0x100000001b3u;
  return h ^ h >> 32;
}

static lam_status find_product(const lam_onednn_shape *s, const lam_onednn_product **out) {
  cache *c = my_cache();
  if (!c) return lam_fail(LAM_RESOURCE_EXHAUSTED, "cpu gemm: no memory for a thread's products");
  entry *set = c->sets[hash(s) % SETS], *oldest = set;
  for (entry *e = set; e < set + WAYS; e++) {
    if (e->last_use && memcmp(&e->shape, s, sizeof *s) == 0) {
      e->last_use = ++c->uses;
      *out = &e->product;
      return LAM_OK;
    }
    if (e->last_use < oldest->last_use) oldest = e;
  }
  lam_forks_wait();
  lam_onednn_free(&oldest->product);
  oldest->last_use = 0;
  const lam_status status = lam_onednn_make(s, &oldest->product);
  lam_forks_go_on();
  if (status != LAM_OK) return status;
  oldest->shape = *s;
  oldest->last_use = ++c->uses;
  *out = &oldest->product;
  return LAM_OK;
}

/* -- one product -- */

static bool is_by_rows(lam_matrix m) { return m.col_stride == 1 && m.row_stride >= m.cols; }
static bool is_by_cols(lam_matrix m) { return m.row_stride == 1 && m.col_stride >= m.rows; }

static bool takes_bias(lam_matrix bias, lam_dtype dtype) {
  if (!lam_matrix_here(bias)) return true;
  const int64_t stride = bias.rows > 1 ? bias.row_stride : bias.col_stride;
  return (bias.dtype == LAM_F32 || bias.dtype == dtype) &&
         (stride == 1 || bias.rows * bias.cols == 1);
}

/* Its relu makes 0 of what is not a number, which would hide a model that has gone astray. */
static bool takes_act(lam_act act) { return act != LAM_ACT_RELU && act != LAM_ACT_RELU2; }

static bool takes(const lam_gemm *g) {
  const lam_matrix a = g->a, b = g->b, d = g->d;
  return lam_is_float(a.dtype) && a.dtype == b.dtype &&
         (d.dtype == LAM_F32 || d.dtype == a.dtype) && (is_by_rows(a) || is_by_cols(a)) &&
         (b.packed || is_by_rows(b) || is_by_cols(b)) && is_by_rows(d) &&
         !lam_matrix_here(g->aux) && takes_bias(g->bias, a.dtype) && takes_act(g->act) &&
         a.cols > 0;
}

/* b.data: a plain matrix, or blocks of a layout. */
static lam_onednn_shape shape_of(const lam_gemm *g, lam_weight_layout layout, int n_threads) {
  const bool a_by_cols = !is_by_rows(g->a),
             b_by_cols = layout == LAM_LAYOUT_ROWS && !is_by_rows(g->b);
  return (lam_onednn_shape){
      .m = g->a.rows,
      .n = g->b.rows,
      .k = g->a.cols,
      .a_stride = a_by_cols ? g->a.col_stride : g->a.row_stride,
      .b_stride = layout != LAM_LAYOUT_ROWS ? 0
                  : b_by_cols               ? g->b.col_stride
                                            : g->b.row_stride,
      .d_stride = g->d.row_stride,
      .a_by_cols = a_by_cols,
      .b_by_cols = b_by_cols,
      .b_layout = layout,
      .dtype = g->a.dtype,
      .d_dtype = g->d.dtype,
      .bias_dtype = g->bias.dtype,
      .has_bias = lam_matrix_here(g->bias),
      .act = g->act,
      .accumulate = g->accumulate,
      .n_threads = (uint32_t)n_threads,
  };
}

static lam_status run_product(const lam_workers *w, const lam_gemm *g,
                              const lam_onednn_product *product) {
  void *scratch = product->scratch_bytes ? lam_cpu_borrow(w, product->scratch_bytes) : NULL;
  if (product->scratch_bytes && !scratch) return LAM_RESOURCE_EXHAUSTED;
  const lam_onednn_operands operands = {g->a.data, g->b.data, g->bias.data, g->d.data, scratch};
  const lam_status status = lam_onednn_run(product, &operands);
  lam_cpu_give_back(w, scratch);
  return status;
}

static lam_status run_on_team(const lam_workers *w, const lam_gemm *g, lam_weight_layout layout,
                              int n_threads) {
  const lam_onednn_shape shape = shape_of(g, layout, n_threads);
  const lam_onednn_product *product = NULL;
  const int before = lam_cpu_set_team(n_threads);
  lam_status status = find_product(&shape, &product);
  if (status == LAM_OK) status = run_product(w, g, product);
  lam_cpu_set_team(before);
  return status;
}

/* -- a host's pool: one-thread pieces along n -- */

typedef struct pieces {
  const lam_workers *workers;
  const lam_gemm *g;
  lam_weight_layout layout;
  int64_t cols;
  _Atomic lam_status status; /* of a piece that failed */
} pieces;

/* Rows [first, ...) of b, which starts a block of its layout. */
static void *b_from(lam_matrix b, lam_weight_layout layout, int64_t first) {
  if (layout == LAM_LAYOUT_ROWS) return lam_matrix_rows(b, first, 0).data;
  return (char *)b.data + lam_layout_bytes(layout, b.dtype, first, b.cols);
}

static lam_matrix vector_from(lam_matrix v, int64_t first, int64_t n) {
  if (!lam_matrix_here(v)) return v;
  return v.rows > 1 ? lam_matrix_rows(v, first, n) : lam_matrix_cols(v, first, n);
}

static void run_piece(void *arg, int64_t i) {
  pieces *p = arg;
  lam_gemm g = *p->g;
  const int64_t first = i * p->cols, n = lam_least(p->cols, g.b.rows - first);
  g.b.data = b_from(g.b, p->layout, first);
  g.b.rows = n;
  g.bias = vector_from(g.bias, first, n);
  g.d = lam_matrix_cols(g.d, first, n);
  const lam_status status = run_on_team(p->workers, &g, p->layout, 1);
  if (status != LAM_OK) p->status = status;
}

static lam_status run_in_pieces(const lam_workers *w, const lam_gemm *g, lam_weight_layout layout) {
  enum { BLOCK_COLS = 192 }; /* whole blocks of every layout: 64, 48, 32, 16 */
  pieces p = {.workers = w,
              .g = g,
              .layout = layout,
              .cols = lam_round_up(lam_cuts(g->b.rows, w->n_threads), BLOCK_COLS)};
  lam_cpu_spread(w, lam_cuts(g->b.rows, p.cols), run_piece, &p);
  return p.status == LAM_OK
             ? LAM_OK
             : lam_fail(p.status, "cpu gemm: oneDNN failed in a piece for the host's pool");
}

static lam_status run(const lam_workers *w, const lam_gemm *g, lam_weight_layout layout) {
  return w->own_pool && w->n_threads > 1 ? run_in_pieces(w, g, layout)
                                         : run_on_team(w, g, layout, w->n_threads);
}

/* -- the table -- */

static void *open_handle(void) { return lam_onednn_open() ? lam_onednn_open()->library : NULL; }

static uint32_t instruction_set(void) {
  return (uint32_t)lam_onednn_open()->dnnl_get_effective_cpu_isa();
}

static const struct {
  uint32_t isa;
  const char *name;
} isas[] = {
    {dnnl_cpu_isa_sse41, "sse41"},
    {dnnl_cpu_isa_avx, "avx"},
    {dnnl_cpu_isa_avx2, "avx2"},
    {dnnl_cpu_isa_avx2_vnni, "avx2_vnni"},
    {dnnl_cpu_isa_avx512_core, "avx512_core"},
    {dnnl_cpu_isa_avx512_core_vnni, "avx512_core_vnni"},
    {dnnl_cpu_isa_avx512_core_bf16, "avx512_core_bf16"},
    {dnnl_cpu_isa_avx512_core_amx, "avx512_core_amx"},
};

static const char *describe(void) {
  static _Thread_local char text[80];
  const dnnl_version_t *v = lam_onednn_open()->dnnl_version();
  const char *name = "another instruction set";
  for (size_t i = 0; i < sizeof isas / sizeof *isas; i++)
    if (isas[i].isa == instruction_set()) name = isas[i].name;
  snprintf(text, sizeof text, "oneDNN %d.%d.%d %s", v->major, v->minor, v->patch, name);
  return text;
}

static lam_status pack(const lam_workers *w, lam_matrix b, lam_weight_layout layout, void *data) {
  const int before = lam_cpu_set_team(w->own_pool ? 1 : w->n_threads);
  lam_forks_wait();
  const lam_status status = lam_onednn_pack(b, layout, data);
  lam_forks_go_on();
  lam_cpu_set_team(before);
  return status;
}

static lam_weight_layout best_layout(lam_dtype dtype, int64_t n, int64_t k) {
  lam_forks_wait();
  const lam_weight_layout best = lam_onednn_best_layout(dtype, n, k);
  lam_forks_go_on();
  return best;
}

const lam_library lam_library_onednn = {
    .open = open_handle,
    .describe = describe,
    .instruction_set = instruction_set,
    .takes = takes,
    .run = run,
    .layout = best_layout,
    .pack = pack,
};
