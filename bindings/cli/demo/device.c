/* device.c: where this process's matrices lie: the host's own table, and which table is taken.
 *
 * Invariant: a process has one device, from device_open to its close. Leaves the loops to norm.c,
 * attention.c, loss.c, adamw.c, a GPU to cuda.c. */
#include <string.h>

#include "bindings/cli/demo/demo.h"

static lam_status host_open(const options *o, int rank) { return (void)o, (void)rank, LAM_OK; }
static void host_close(void) {}

static void host_copy(const void *from, void *to, uint64_t bytes) { memcpy(to, from, bytes); }
static lam_status host_move(const void *from, void *to, uint64_t bytes) {
  return memcpy(to, from, bytes), LAM_OK;
}
static lam_status host_finish(void) { return LAM_OK; }
static lam_status host_loss(double *inout) { return (void)inout, LAM_OK; }

static void host_cross_entropy(matrix logits, const uint8_t *targets, float scale, double share,
                               double *loss) {
  *loss += cross_entropy(logits, targets, scale) * share;
}

device device_host = {
    .name = "cpu",
    .type = kDLCPU,
    .open = host_open,
    .close = host_close,
    .take = memory_take,
    .give = memory_give,
    .copy = host_copy,
    .read = host_move,
    .write = host_move,
    .finish = host_finish,
    .loss = host_loss,
    .batch = text_batch,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .add = add,
    .embed_forward = embed_forward,
    .embed_backward = embed_backward,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .cross_entropy = host_cross_entropy,
    .adamw = adamw_update,
};

device *here = &device_host;

lam_status device_open(const options *o, int rank) {
  device *wanted = o->on_gpu ? &device_cuda : &device_host;
  if (!wanted)
    return fail(LAM_UNIMPLEMENTED, "--device cuda: this program was built without CUDA");
  TRY(wanted->open(o, rank));
  here = wanted;
  return LAM_OK;
}

lam_status matrix_read(matrix m, matrix *out) {
  *out = m;
  if (here == &device_host) return LAM_OK;
  out->data = memory_take(matrix_bytes(m));
  if (!out->data) return fail(LAM_RESOURCE_EXHAUSTED, "no memory to read a matrix");
  const lam_status status = here->read(m.data, out->data, matrix_bytes(m));
  if (status != LAM_OK) matrix_unread(m, out);
  return status;
}

void matrix_unread(matrix m, matrix *read) {
  if (read->data != m.data) memory_give(read->data, matrix_bytes(m));
  read->data = NULL;
}
