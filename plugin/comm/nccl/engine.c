/* engine.c: the nccl engine as two tables: of the group, whose control channel and operands in the
 * host's memory go over shm, and of its operands on a device.
 * Invariant: a group that is handed out has its links; one of a single rank has none.
 * Leaves links to meet.c, operations to the files of their names, announcing and poisoning to calls.c. */
#include "plugin/comm/nccl/nccl.h"

/* ---- Life -------------------------------------------------------------------------------------- */

static lam_status meet_or_destroy(lam_group *g, void *comm, uint32_t gpu) {
  if (g->size == 1) return LAM_OK;
  const lam_status status = lam_nccl_meet(g, comm, gpu);
  if (status == LAM_OK) return LAM_OK;
  lam_nccl_leave(g);
  lam_engine_shm.destroy(g);
  return status;
}

/* Of an id of its own: the ranks that are left out of a split do not take part in it, as
 * ncclCommSplit would ask. */
static lam_status nccl_split(lam_group *parent, const int *members, int n, lam_group *sub) {
  LAM_TRY(lam_engine_shm.split(parent, members, n, sub));
  return meet_or_destroy(sub, NULL, (uint32_t)parent->nccl->device_id + 1);
}

/* ---- Tables ------------------------------------------------------------------------------------ */

static bool nccl_queues(const lam_group *g) { return g->device && g->device->order && g->nccl; }

static const char *nccl_path(const lam_group *g, uint32_t op, uint64_t bytes) {
  (void)g, (void)op, (void)bytes;
  return "nccl; the host's memory: shm";
}

static const lam_engine on_device = {
    .name = "nccl",
    .what = "operands on GPUs, through the host's libnccl",
    .prepare = lam_nccl_prepare,
    .end = lam_nccl_end,
    .leave = lam_nccl_leave,
    .all_reduce = lam_nccl_all_reduce,
    .all_gather = lam_nccl_all_gather,
    .gather_start = lam_nccl_gather_start,
    .gather_wait = lam_nccl_gather_wait,
    .reduce_scatter = lam_nccl_reduce_scatter,
    .broadcast = lam_nccl_broadcast,
    .reduce = lam_nccl_reduce,
    .partial = lam_nccl_partial,
    .sum_start = lam_nccl_sum_start,
    .sum_finish = lam_nccl_sum_finish,
    .send = lam_nccl_send,
    .recv = lam_nccl_recv,
    .channel_open = lam_nccl_channel_open,
    .channel_acquire = lam_nccl_channel_acquire,
    .channel_push = lam_nccl_channel_push,
    .channel_pull = lam_nccl_channel_pull,
    .channel_release = lam_nccl_channel_release,
    .channel_close = lam_nccl_channel_close,
};

/* shm's cells, but for these. */
static lam_engine alone, whole;
static void fill_tables(void) {
  alone = lam_engine_shm;
  alone.name = lam_engine_nccl.name;
  alone.what = lam_engine_nccl.what;
  whole = alone;
  whole.on_device = &on_device;
  whole.create = NULL; /* of lam_engine_nccl alone */
  whole.split = nccl_split;
  whole.queues = nccl_queues;
  whole.path = nccl_path;
}

static lam_status open_group(const lam_group_desc *desc, void *comm, lam_group *g) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, fill_tables);
  g->engine = desc->size == 1 ? &alone : &whole;
  LAM_TRY(lam_engine_shm.create(desc, g));
  return meet_or_destroy(g, comm, desc->gpu);
}

static lam_status nccl_create(const lam_group_desc *desc, lam_group *g) {
  return open_group(desc, NULL, g);
}

lam_status lam_nccl_adopt(const lam_group_desc *desc, void *comm, lam_group *g) {
  return open_group(desc, comm, g);
}

/* What it is asked for by. A group's own table is shm's with what is different in it. */
const lam_engine lam_engine_nccl = {
    .name = "nccl",
    .what = "GPUs of one machine, through the host's libnccl; ranks are processes or threads",
    .create = nccl_create,
};
