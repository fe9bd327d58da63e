/* nccl.c: NCCL's calls that make, ask and end communicators.
 *
 * Invariant: a call on a communicator whose last one is under way is misuse; a communicator serves no
 * call before all its ranks have joined.
 * Leaves what is queued to nccl_run.c. */
#include "tests/standin/nccl.h"

#include <stdlib.h>
#include <string.h>

static nc_clique *cliques;
static uint64_t n_ids;
static _Thread_local int version = 23007;
static _Thread_local int depth; /* of groups of calls */
static _Thread_local nc_comm *grouped[NC_RANKS * NC_RANKS];
static _Thread_local int n_grouped;
static const char *_Atomic last_error = ""; /* of any thread, as NCCL's own */

static ncclResult_t leave(ncclResult_t r) {
  si_leave_as_is(cudaSuccess);
  return r;
}

/* why: a text that stays. */
ncclResult_t nc_fail(nc_comm *c, ncclResult_t error, const char *why) {
  last_error = why;
  if (c && c->error == ncclSuccess) c->error = error;
  return error;
}

static ncclResult_t misuse(const char *who, const char *what) {
  si_report("%s: %s", who, what);
  return nc_fail(NULL, ncclInvalidUsage, what);
}

void standin_set_nccl(int is) { version = is; }

/* ---- Cliques ----------------------------------------------------------------------------------- */

static nc_clique *clique_new(const ncclUniqueId *id, int size) {
  nc_clique *q = si_new(sizeof *q);
  q->id = *id;
  q->size = size;
  q->next = cliques;
  return cliques = q;
}

static void clique_unref(nc_clique *q) {
  if (!q || --q->refs) return;
  for (nc_clique **at = &cliques; *at; at = &(*at)->next)
    if (*at == q) {
      *at = q->next;
      break;
    }
  while (q->rounds) {
    nc_round *r = q->rounds;
    q->rounds = r->next;
    free(r);
  }
  free(q);
}

static nc_clique *clique_of(const ncclUniqueId *id) {
  nc_clique *q = cliques;
  while (q && memcmp(&q->id, id, sizeof *id) != 0) q = q->next;
  return q;
}

static void join(nc_comm *c, nc_clique *q, int rank) {
  c->clique = q;
  c->rank = rank;
  q->ranks[rank] = c;
  q->joined++;
  q->refs++;
}

/* ---- Communicators ----------------------------------------------------------------------------- */

static nc_comm *comm_new(void) {
  nc_comm *c = si_new(sizeof *c);
  c->refs = 1;
  c->device = si_device;
  c->joining = true;
  c->busy = 1 + (int)si_chance(4);
  c->handle = si_handle_new(SI_NCCL, c);
  return c;
}

void nc_unref(nc_comm *c) {
  if (--c->refs) return;
  clique_unref(c->clique);
  free(c);
}

nc_comm *nc_find(ncclComm_t comm, const char *who) { return si_handle_find(SI_NCCL, comm, who); }

static nc_comm *find_idle(ncclComm_t comm, const char *who, ncclResult_t *out) {
  nc_comm *c = nc_find(comm, who);
  *out = c ? c->error : ncclInvalidArgument;
  if (c && *out == ncclSuccess && c->busy)
    *out = misuse(who, "the communicator's last call is still under way");
  return *out == ncclSuccess ? c : NULL;
}

static bool is_config(const ncclConfig_t *g) {
  return g && g->size >= sizeof(ncclConfig_t) && g->magic == NCCL_CONFIG_MAGIC &&
         g->version >= NCCL_LEAST_VERSION && g->blocking == 0;
}

ncclResult_t ncclGetVersion(int *out) {
  *out = version;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *out) {
  si_enter();
  memset(out, 0, sizeof *out);
  const uint64_t id[2] = {0x6c63636eu, ++n_ids};
  memcpy(out, id, sizeof id);
  return leave(ncclSuccess);
}

static ncclResult_t init(ncclComm_t *out, int size, const ncclUniqueId *id, int rank) {
  uint64_t is[2];
  memcpy(is, id, sizeof is);
  if (is[0] != 0x6c63636eu || is[1] > n_ids) return misuse(__func__, "nobody made this id");
  nc_clique *q = clique_of(id);
  if (!q) q = clique_new(id, size);
  if (q->size != size || rank < 0 || rank >= size || q->ranks[rank])
    return misuse(__func__, "the ranks of an id do not agree");
  nc_comm *c = comm_new();
  join(c, q, rank);
  *out = c->handle;
  return ncclInProgress;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
  si_enter();
  *out = NULL;
  if (!is_config(config)) return leave(misuse(__func__, "a configuration that is not nonblocking"));
  if (size > NC_RANKS) return leave(misuse(__func__, "more ranks than the stand-in has"));
  return leave(init(out, size, &id, rank));
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out,
                           ncclConfig_t *config) {
  ncclResult_t r;
  si_enter();
  *out = NULL;
  nc_comm *c = find_idle(comm, __func__, &r);
  if (!c) return leave(r);
  if (!is_config(config)) return leave(misuse(__func__, "a configuration that is not nonblocking"));
  c->splitting = true;
  c->color = color;
  c->key = key;
  c->busy = 1 + (int)si_chance(4);
  c->splits_into = color >= 0 ? comm_new() : NULL;
  if (c->splits_into) c->splits_into->split_of = c->clique, *out = c->splits_into->handle;
  return leave(ncclInProgress);
}

/* ---- What is under way ------------------------------------------------------------------------- */

/* Two ranks on one card, which one process cannot tell NCCL to take for two machines. */
static bool shares_card(const nc_clique *q) {
  for (int r = 0; r < q->size; r++)
    for (int s = 0; s < r; s++)
      if (q->ranks[r] && q->ranks[s] && q->ranks[r]->device == q->ranks[s]->device) return true;
  return false;
}

static int place_in(const nc_clique *q, const nc_comm *c, int *out_size) {
  int place = 0;
  *out_size = 0;
  for (int r = 0; r < q->size; r++) {
    const nc_comm *o = q->ranks[r];
    if (o->color != c->color) continue;
    ++*out_size;
    place += o->key < c->key || (o->key == c->key && o->rank < c->rank);
  }
  return place;
}

/* One clique for each colour, once every rank has called. */
static void split_all(nc_clique *q) {
  nc_clique *made[NC_RANKS] = {0};
  for (int r = 0; r < q->size; r++)
    if (!q->ranks[r] || !q->ranks[r]->splitting) return;
  for (int r = 0; r < q->size; r++) {
    int size = 0, first = 0;
    nc_comm *c = q->ranks[r];
    const int place = place_in(q, c, &size);
    if (!c->splits_into) continue;
    while (q->ranks[first]->color != c->color) first++;
    const ncclUniqueId none = {{0}};
    if (!made[first]) made[first] = clique_new(&none, size);
    join(c->splits_into, made[first], place);
  }
  for (int r = 0; r < q->size; r++) {
    q->ranks[r]->splitting = false;
    if (q->ranks[r]->splits_into) q->ranks[r]->splits_into->split_of = NULL;
    q->ranks[r]->splits_into = NULL;
  }
}

static bool all_joined(const nc_comm *c) {
  return c->clique && c->clique->joined == c->clique->size;
}

static bool all_started(const nc_clique *q) {
  for (int r = 0; r < q->size; r++)
    if (!q->ranks[r] || !q->ranks[r]->started) return false;
  return true;
}

static bool all_finalize(const nc_clique *q) {
  for (int r = 0; r < q->size; r++)
    if (q->ranks[r] && !q->ranks[r]->finalizing) return false;
  return true;
}

/* Does what the call waits for go on? */
static bool may_end(nc_comm *c) {
  if (c->split_of) split_all(c->split_of);
  if (c->joining) return all_joined(c);
  if (c->splitting) split_all(c->clique);
  if (c->splitting) return false;
  if (c->finalizing) return c->n_running == 0 && all_finalize(c->clique);
  if (c->n_ops == 0 || c->connected) return true;
  c->started = true;
  return c->connected = all_started(c->clique);
}

static void end_call(nc_comm *c) {
  c->busy = 0;
  if (c->joining && shares_card(c->clique))
    nc_fail(c, ncclInvalidUsage, "Duplicate GPU detected: two ranks are on one CUDA device");
  c->joining = false;
  if (c->n_ops > 0 && c->error == ncclSuccess) {
    const ncclResult_t r = nc_queue(c);
    if (r != ncclSuccess) nc_fail(c, r, "an operation could not be queued");
  }
  c->n_ops = 0;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out) {
  si_enter();
  nc_comm *c = nc_find(comm, __func__);
  if (!c) return leave(ncclInvalidArgument);
  if (c->busy > 1) c->busy--;
  if (c->busy == 1 && may_end(c)) end_call(c);
  *out = c->error != ncclSuccess ? c->error : c->busy ? ncclInProgress : ncclSuccess;
  if (c->busy) si_queue_some();
  return leave(ncclSuccess);
}

/* ---- Groups of calls --------------------------------------------------------------------------- */

ncclResult_t nc_call(ncclComm_t comm, cudaStream_t stream, const nc_op *op, const char *who) {
  ncclResult_t r;
  si_enter();
  nc_comm *c = find_idle(comm, who, &r);
  if (!c) return leave(r);
  if (depth == 0) return leave(misuse(who, "the stand-in wants it in a group of calls"));
  if (si_fails_now(STANDIN_NCCL)) return leave(nc_fail(c, ncclSystemError, "a socket was closed"));
  if (c->n_ops == NC_OPS) return leave(misuse(who, "more calls in a group than the stand-in has"));
  if (c->n_ops > 0 && c->stream != stream)
    return leave(misuse(who, "a communicator used from two streams"));
  if (c->n_ops == 0) grouped[n_grouped++] = c;
  c->stream = stream;
  c->ops[c->n_ops++] = *op;
  return leave(ncclSuccess);
}

ncclResult_t ncclGroupStart(void) {
  depth++;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
  ncclResult_t r = ncclSuccess;
  if (depth == 0 || --depth > 0) return depth ? ncclSuccess : ncclInvalidUsage;
  si_enter();
  for (int i = 0; i < n_grouped; i++) {
    nc_comm *c = grouped[i];
    c->busy = 1 + (c->connected ? (int)si_chance(3) : 2);
    if (c->busy == 1 && may_end(c)) end_call(c);
    if (c->busy) r = ncclInProgress;
    if (c->error != ncclSuccess) r = c->error;
  }
  n_grouped = 0;
  return leave(r);
}

/* ---- Questions --------------------------------------------------------------------------------- */

const char *ncclGetErrorString(ncclResult_t r) {
  static const char *const texts[] = {"no error",
                                      "unhandled cuda error",
                                      "unhandled system error",
                                      "internal error",
                                      "invalid argument",
                                      "invalid usage",
                                      "remote process exited or there was a network error",
                                      "NCCL operation in progress"};
  return (unsigned)r < sizeof texts / sizeof *texts ? texts[r] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm) {
  (void)comm;
  return last_error;
}

static ncclResult_t ask(ncclComm_t comm, const char *who, int *out, int what) {
  si_enter();
  const nc_comm *c = nc_find(comm, who);
  if (c) *out = what == 0 ? c->clique->size : what == 1 ? c->rank : c->device;
  return leave(c ? ncclSuccess : ncclInvalidArgument);
}
ncclResult_t ncclCommCount(ncclComm_t comm, int *out) { return ask(comm, __func__, out, 0); }
ncclResult_t ncclCommUserRank(ncclComm_t comm, int *out) { return ask(comm, __func__, out, 1); }
ncclResult_t ncclCommCuDevice(ncclComm_t comm, int *out) { return ask(comm, __func__, out, 2); }

/* ---- The end ----------------------------------------------------------------------------------- */

/* What a split under way makes is no more. */
static void forget_split(const nc_comm *c) {
  for (int r = 0; c->split_of && r < c->split_of->size; r++)
    if (c->split_of->ranks[r] && c->split_of->ranks[r]->splits_into == c)
      c->split_of->ranks[r]->splits_into = NULL;
}

/* Its work that runs or waits ends when it is next looked at. */
static void gone(nc_comm *c) {
  si_handle_drop(SI_NCCL, c->handle);
  c->aborted = true;
  c->n_ops = 0;
  forget_split(c);
  if (c->splits_into) c->splits_into->split_of = NULL;
  if (c->clique) c->clique->ranks[c->rank] = NULL;
  nc_unref(c);
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  si_enter();
  nc_comm *c = nc_find(comm, __func__);
  if (c) gone(c);
  return leave(c ? ncclSuccess : ncclInvalidArgument);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  ncclResult_t r;
  si_enter();
  nc_comm *c = find_idle(comm, __func__, &r);
  if (!c) return leave(r);
  c->finalizing = true;
  c->busy = 1 + (int)si_chance(3);
  return leave(ncclInProgress);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  ncclResult_t r;
  si_enter();
  nc_comm *c = find_idle(comm, __func__, &r);
  if (!c) return leave(r);
  if (!c->finalizing || c->n_running > 0) misuse(__func__, "what was queued may not have ended");
  gone(c);
  return leave(ncclSuccess);
}
