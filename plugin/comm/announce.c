/* announce.c: what ranks say to each other in clear: names of operations, their comparison, the
 * header of a message.
 * Invariant: a text about a disagreement is the same on every rank that has seen the same
 * announcements.
 * Leaves carrying announcements and headers to the engines. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "plugin/comm/comm.h"

int64_t lam_clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static const char *const op_names[LAM_OP_END_] = {
#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect) [id] = #name,
#include "abi/lamella_ops.def"
#undef LAM_OP
};
static const char *const comm_names[] = {"split", "warmup", "channel", "pipeline", "peers",
                                         "nccl"};

const char *lam_comm_op_name(uint32_t op) {
  const char *name = NULL;
  if (op < LAM_OP_END_)
    name = op_names[op];
  else if (op - LAM_COMM_SPLIT < sizeof comm_names / sizeof *comm_names)
    name = comm_names[op - LAM_COMM_SPLIT];
  return name ? name : "an unknown operation";
}

/* "linear_row bf16 [64, 128]" */
static void op_text(const lam_comm_op *op, char *text, size_t room) {
  const char *dtype = op->dtype < LAM_N_DTYPES ? lam_dtype_name((lam_dtype)op->dtype) : "?";
  size_t n = (size_t)snprintf(text, room, "%s %s [", lam_comm_op_name(op->op), dtype);
  for (int i = 0; i < op->ndim && i < 8 && n < room; i++)
    n += (size_t)snprintf(text + n, room - n, "%s%lld", i ? ", " : "", (long long)op->dims[i]);
  if (n < room) snprintf(text + n, room - n, "]");
}

static lam_status say_mismatch(int rank, const lam_comm_op *theirs, const lam_comm_op *first) {
  char a[160], b[160], extra[80] = "";
  op_text(theirs, a, sizeof a);
  op_text(first, b, sizeof b);
  if (theirs->sequence != first->sequence)
    snprintf(extra, sizeof extra, "; it is operation %llu there, %llu here",
             (unsigned long long)theirs->sequence, (unsigned long long)first->sequence);
  else if (theirs->captured != first->captured)
    snprintf(extra, sizeof extra, "; only the call on rank %d is captured into a graph",
             theirs->captured ? rank : 0);
  else if (theirs->extra != first->extra)
    snprintf(extra, sizeof extra, "; root, dimension or what else must agree: %lld and %lld",
             (long long)theirs->extra, (long long)first->extra);
  return lam_fail(LAM_MISMATCH, "rank %d called %s, rank 0 %s%s", rank, a, b, extra);
}

lam_status lam_comm_compare(const lam_comm_op *const *ops, int n) {
  for (int r = 1; r < n; r++)
    if (memcmp(ops[r], ops[0], sizeof **ops) != 0) return say_mismatch(r, ops[r], ops[0]);
  return LAM_OK;
}

/* Not against an attacker: it tells a header from what was never one, or was torn. */
static uint64_t wire_check(const lam_wire *w) {
  uint64_t words[sizeof *w / 8], sum = 0x9e3779b97f4a7c15u;
  memcpy(words, w, sizeof words);
  for (size_t i = 0; i < sizeof words / 8 - 1; i++)
    sum = (sum ^ words[i]) * 0xff51afd7ed558ccdu, sum ^= sum >> 32;
  return sum;
}

void lam_wire_seal(lam_wire *w, uint64_t sequence) {
  w->magic = LAM_WIRE_MAGIC;
  w->version = LAM_WIRE_VERSION;
  w->sequence = sequence;
  w->check = wire_check(w);
}

lam_status lam_wire_verify(const lam_wire *w, int peer, uint64_t sequence, uint64_t room) {
  if (w->magic != LAM_WIRE_MAGIC || w->version != LAM_WIRE_VERSION || w->check != wire_check(w))
    return lam_fail(LAM_INTERNAL, "message from rank %d: its header is damaged", peer);
  if (w->sequence != sequence)
    return lam_fail(LAM_MISMATCH, "message from rank %d: it is number %llu, expected %llu", peer,
                    (unsigned long long)w->sequence, (unsigned long long)sequence);
  if (w->bytes > room)
    return lam_fail(LAM_MISMATCH, "message from rank %d: rank %d sent %llu bytes, room is for %llu",
                    peer, peer, (unsigned long long)w->bytes, (unsigned long long)room);
  return LAM_OK;
}
