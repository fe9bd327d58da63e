/* card.c: the driver and the cards of this machine, looked at once.
 *
 * Invariant: a card that was given never changes; one for products has its cuBLASLt handle.
 * Leaves which card a thread works on to order.c. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/host.h"

enum { LEAST_SM = 80 }; /* what the kernels are compiled for, at least */

static lam_cuda_card cards[LAM_CUDA_CARDS];
static _Atomic bool is_known[LAM_CUDA_CARDS]; /* all but its handle may be read */
static _Atomic bool is_made[LAM_CUDA_CARDS];  /* and that too */
static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

static int n_cards;
static pid_t opened_by;
static lam_status open_status;
static char open_text[LAM_MESSAGE_BYTES];

static void version_text(int version, char text[16]) { /* 13000: 13.0 */
  snprintf(text, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

/* A runtime of one major version runs on every driver of that version or a later one. */
static lam_status check_driver(void) {
  int driver = 0;
  LAM_TRY_CUDA(cudaDriverGetVersion(&driver), "ask for the driver's version");
  char has[16], needs[16];
  version_text(driver, has);
  version_text(CUDART_VERSION / 1000 * 1000, needs);
  if (driver == 0)
    return lam_fail(LAM_UNAVAILABLE, "cuda: there is no NVIDIA driver on this machine");
  if (driver / 1000 < CUDART_VERSION / 1000)
    return lam_fail(LAM_UNAVAILABLE, "cuda: the driver is for CUDA %s, this build needs CUDA %s",
                    has, needs);
  return LAM_OK;
}

static lam_status count_cards(void) {
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && n == 0)) {
    (void)cudaGetLastError();
    return lam_fail(LAM_UNAVAILABLE, "cuda: the driver finds no GPU on this machine");
  }
  LAM_TRY_CUDA(error, "count the GPUs");
  n_cards = n < LAM_CUDA_CARDS ? n : LAM_CUDA_CARDS;
  return LAM_OK;
}

static void open_once(void) {
  opened_by = getpid();
  open_status = check_driver();
  if (open_status == LAM_OK) open_status = count_cards();
  if (open_status != LAM_OK) snprintf(open_text, sizeof open_text, "%s", lam_last_error());
}

lam_status lam_cuda_open(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, open_once);
  return open_status == LAM_OK ? LAM_OK : lam_fail(open_status, "%s", open_text);
}

bool lam_cuda_is_forked(void) { return opened_by != 0 && opened_by != getpid(); }

/* -- one card -- */

static lam_status read_card(int id, lam_cuda_card *c) {
  struct cudaDeviceProp about;
  LAM_TRY_CUDA(cudaGetDeviceProperties(&about, id), "ask what the GPU is");
  c->id = id;
  c->sm = about.major * 10 + about.minor;
  c->n_sms = about.multiProcessorCount;
  snprintf(c->name, sizeof c->name, "%.*s", (int)sizeof c->name - 1, about.name);
  c->workspace_bytes = (uint64_t)(c->sm >= 90 ? 32 : 4) << 20; /* what NVIDIA recommends */
  if (c->sm >= LEAST_SM) return LAM_OK;
  return lam_fail(LAM_UNIMPLEMENTED, "cuda: %s is sm_%d, Lamella needs sm_%d or newer", c->name,
                  c->sm, LEAST_SM);
}

static lam_status make_known(int id) {
  lam_status status = LAM_OK;
  if (atomic_load_explicit(&is_known[id], memory_order_acquire)) return LAM_OK;
  pthread_mutex_lock(&making);
  if (!atomic_load(&is_known[id])) status = read_card(id, &cards[id]);
  if (status == LAM_OK) atomic_store(&is_known[id], true);
  pthread_mutex_unlock(&making);
  return status;
}

lam_status lam_cuda_check_card(int id) {
  LAM_TRY(lam_cuda_open());
  if (id < 0 || id >= n_cards)
    return lam_fail(LAM_INVALID_ARGUMENT, "cuda: found device %d, this machine has %d", id,
                    n_cards);
  return make_known(id);
}

static lam_status make_handle(lam_cuda_card *card, void *stream) {
  const lam_cublaslt *lt;
  bool captured;
  LAM_TRY(lam_cuda_capturing(stream, &captured));
  if (captured)
    return lam_fail(LAM_FAILED_PRECONDITION,
                    "cuda: the first product on this GPU cannot be captured: call once before the "
                    "capture");
  LAM_TRY(lam_cublaslt_open(&lt));
  LAM_TRY_CUBLAS(lt->cublasLtCreate(&card->handle), "begin");
  atomic_store(&is_made[card->id], true);
  return LAM_OK;
}

lam_status lam_cuda_card_here(const lam_cuda_card **out) {
  int id = 0;
  LAM_TRY(lam_cuda_device_here(&id));
  *out = &cards[id];
  return lam_cuda_check_card(id);
}

lam_status lam_cuda_card_for_products(void *stream, const lam_cuda_card **out) {
  lam_status status = LAM_OK;
  LAM_TRY(lam_cuda_card_here(out));
  const int id = (*out)->id;
  if (atomic_load_explicit(&is_made[id], memory_order_acquire)) return LAM_OK;
  pthread_mutex_lock(&making);
  if (!atomic_load(&is_made[id])) status = make_handle(&cards[id], stream);
  pthread_mutex_unlock(&making);
  return status;
}

lam_status lam_cuda_place(char *out, int room) {
  const lam_cuda_card *card;
  struct cudaDeviceProp about;
  LAM_TRY(lam_cuda_card_here(&card));
  LAM_TRY_CUDA(cudaGetDeviceProperties(&about, card->id), "ask where the GPU is");
  snprintf(out, (size_t)room, "%04x:%02x:%02x.0", (unsigned)about.pciDomainID,
           (unsigned)about.pciBusID, (unsigned)about.pciDeviceID);
  return LAM_OK;
}

const char *lam_cuda_describe(void) {
  static _Thread_local char text[160];
  char runtime[16];
  lam_cuda_card card;
  const lam_cublaslt *lt;
  version_text(CUDART_VERSION, runtime);
  if (lam_cuda_open() != LAM_OK || lam_cublaslt_open(&lt) != LAM_OK ||
      read_card(0, &card) != LAM_OK)
    return lam_last_error();
  const int v = (int)lt->cublasLtGetVersion(); /* 130101: 13.1.1 */
  snprintf(text, sizeof text, "CUDA %s, cuBLASLt %d.%d.%d, %s, sm_%d", runtime, v / 10000,
           v / 100 % 100, v % 100, card.name, card.sm);
  return text;
}
