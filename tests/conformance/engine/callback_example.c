/* callback_example.c: a host's communication for lam_group_from_callbacks: messages are copied
 * into a list and taken from it.
 *
 * send never waits; recv waits for the oldest message of its (sender, channel) and gives up
 * after 10 s. The collectives are made of them, on channels of their own, sums in rank order.
 * Invariant: a message belongs to the list until it is received. */
#include "tests/conformance/engine/callback_example.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OWN_CHANNEL 0xffffffffu

typedef struct message {
  struct message *next;
  int from, to;
  uint32_t channel;
  uint64_t bytes;
  unsigned char data[];
} message;

struct mailbox {
  pthread_mutex_t lock;
  pthread_cond_t arrived;
  message *first, **last;
};

mailbox *mailbox_create(int size) {
  (void)size;
  mailbox *m = calloc(1, sizeof *m);
  pthread_mutex_init(&m->lock, NULL);
  pthread_cond_init(&m->arrived, NULL);
  m->last = &m->first;
  return m;
}

void mailbox_destroy(mailbox *m) {
  for (message *next, *at = m->first; at; at = next) {
    next = at->next;
    free(at);
  }
  pthread_mutex_destroy(&m->lock);
  pthread_cond_destroy(&m->arrived);
  free(m);
}

static lam_status post_send(void *user, int32_t peer, uint32_t channel, const void *data,
                            uint64_t bytes) {
  const post *p = user;
  message *m = malloc(sizeof *m + bytes);
  if (!m) return LAM_RESOURCE_EXHAUSTED;
  *m = (message){.from = p->rank, .to = peer, .channel = channel, .bytes = bytes};
  memcpy(m->data, data, bytes);
  pthread_mutex_lock(&p->box->lock);
  *p->box->last = m;
  p->box->last = &m->next;
  pthread_cond_broadcast(&p->box->arrived);
  pthread_mutex_unlock(&p->box->lock);
  return LAM_OK;
}

/* Takes the oldest message that fits out of the list; NULL: none has come. */
static message *take(mailbox *box, int from, int to, uint32_t channel) {
  for (message **at = &box->first; *at; at = &(*at)->next) {
    message *m = *at;
    if (m->from != from || m->to != to || m->channel != channel) continue;
    *at = m->next;
    if (box->last == &m->next) box->last = at;
    return m;
  }
  return NULL;
}

static lam_status post_recv(void *user, int32_t peer, uint32_t channel, void *data,
                            uint64_t bytes) {
  const post *p = user;
  struct timespec until;
  message *m = NULL;
  int late = 0;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 10;
  pthread_mutex_lock(&p->box->lock);
  while (!(m = take(p->box, peer, p->rank, channel)) && !late)
    late = pthread_cond_timedwait(&p->box->arrived, &p->box->lock, &until);
  pthread_mutex_unlock(&p->box->lock);
  if (!m) return LAM_PEER_STALLED;
  const lam_status status = m->bytes == bytes ? LAM_OK : LAM_MISMATCH;
  if (status == LAM_OK) memcpy(data, m->data, bytes);
  free(m);
  return status;
}

static lam_status post_all_gather(void *user, const void *mine, void *all, const uint64_t *counts) {
  const post *p = user;
  char *at = all;
  lam_status status = LAM_OK;
  for (int r = 0; r < p->size && status == LAM_OK; r++)
    status = post_send(user, r, OWN_CHANNEL, mine, counts[p->rank]);
  for (int r = 0; r < p->size && status == LAM_OK; at += counts[r++])
    status = post_recv(user, r, OWN_CHANNEL, at, counts[r]);
  return status;
}

static float from_bf16(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

static uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* y[i] = sum over the `size` arrays, n elements each, that lie one after the other in `all`. */
static lam_status add(const void *all, void *y, int size, uint64_t n, DLDataType t) {
  for (uint64_t i = 0; i < n; i++) {
    double sum = 0;
    float sum_f32 = 0;
    int64_t sum_int = 0;
    for (int r = 0; r < size; r++) {
      const uint64_t at = n * (uint64_t)r + i;
      if (t.code == kDLBfloat)
        sum_f32 += from_bf16(((const uint16_t *)all)[at]);
      else if (t.code == kDLFloat && t.bits == 32)
        sum_f32 += ((const float *)all)[at];
      else if (t.code == kDLFloat && t.bits == 64)
        sum += ((const double *)all)[at];
      else if (t.code == kDLInt && t.bits == 32)
        sum_int += ((const int32_t *)all)[at];
      else if (t.code == kDLInt && t.bits == 64)
        sum_int += ((const int64_t *)all)[at];
      else
        return LAM_UNIMPLEMENTED;
    }
    if (t.code == kDLBfloat)
      ((uint16_t *)y)[i] = to_bf16(sum_f32);
    else if (t.code == kDLFloat && t.bits == 32)
      ((float *)y)[i] = sum_f32;
    else if (t.code == kDLFloat)
      ((double *)y)[i] = sum;
    else if (t.bits == 32)
      ((int32_t *)y)[i] = (int32_t)sum_int;
    else
      ((int64_t *)y)[i] = sum_int;
  }
  return LAM_OK;
}

static lam_status post_all_reduce(void *user, void *data, uint64_t n, DLDataType dtype) {
  const post *p = user;
  uint64_t counts[64];
  for (int r = 0; r < p->size; r++) counts[r] = n * dtype.bits / 8;
  void *all = malloc(n * dtype.bits / 8 * (uint64_t)p->size + 1);
  lam_status status = post_all_gather(user, data, all, counts);
  if (status == LAM_OK) status = add(all, data, p->size, n, dtype);
  free(all);
  return status;
}

static lam_status post_reduce_scatter(void *user, const void *all, void *mine,
                                      const uint64_t *counts, DLDataType dtype) {
  const post *p = user;
  const char *at = all;
  lam_status status = LAM_OK;
  char *blocks = malloc(counts[p->rank] * (uint64_t)p->size + 1);
  for (int r = 0; r < p->size && status == LAM_OK; at += counts[r++])
    status = post_send(user, r, OWN_CHANNEL, at, counts[r]);
  for (int r = 0; r < p->size && status == LAM_OK; r++)
    status =
        post_recv(user, r, OWN_CHANNEL, blocks + counts[p->rank] * (uint64_t)r, counts[p->rank]);
  if (status == LAM_OK)
    status = add(blocks, mine, p->size, counts[p->rank] * 8 / dtype.bits, dtype);
  free(blocks);
  return status;
}

lam_callbacks post_callbacks(post *p) {
  lam_callbacks c = LAM_CALLBACKS_INIT;
  c.user = p;
  c.send = post_send;
  c.recv = post_recv;
  c.all_reduce = post_all_reduce;
  c.all_gather = post_all_gather;
  c.reduce_scatter = post_reduce_scatter;
  return c;
}
