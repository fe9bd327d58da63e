/* mail.c: see mail.h. Letters of one (sender, receiver, channel) are found in the order they were
 * posted. */
#include "tests/distributed/pipeline/mail.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct letter {
  struct letter *next;
  int from, to;
  uint32_t channel;
  uint64_t bytes;
  unsigned char data[];
} letter;

struct mail {
  pthread_mutex_t lock;
  pthread_cond_t posted;
  letter *first, **end;
};

mail *mail_create(void) {
  mail *m = calloc(1, sizeof *m);
  pthread_mutex_init(&m->lock, NULL);
  pthread_cond_init(&m->posted, NULL);
  m->end = &m->first;
  return m;
}

void mail_destroy(mail *m) {
  for (letter *l = m->first, *next; l; l = next) next = l->next, free(l);
  pthread_cond_destroy(&m->posted);
  pthread_mutex_destroy(&m->lock);
  free(m);
}

lam_status mail_send(void *user, int32_t peer, uint32_t channel, const void *data, uint64_t bytes) {
  const mail_rank *me = user;
  letter *l = malloc(sizeof *l + bytes);
  *l = (letter){.from = me->rank, .to = peer, .channel = channel, .bytes = bytes};
  memcpy(l->data, data, bytes);
  pthread_mutex_lock(&me->m->lock);
  *me->m->end = l;
  me->m->end = &l->next;
  pthread_cond_broadcast(&me->m->posted);
  pthread_mutex_unlock(&me->m->lock);
  return LAM_OK;
}

static letter *take(mail *m, int from, int to, uint32_t channel) {
  letter **at = &m->first;
  while (*at && ((*at)->from != from || (*at)->to != to || (*at)->channel != channel))
    at = &(*at)->next;
  letter *l = *at;
  if (!l) return NULL;
  *at = l->next;
  if (!l->next) m->end = at;
  return l;
}

lam_status mail_recv(void *user, int32_t peer, uint32_t channel, void *data, uint64_t bytes) {
  const mail_rank *me = user;
  letter *l;
  pthread_mutex_lock(&me->m->lock);
  while (!(l = take(me->m, peer, me->rank, channel)))
    pthread_cond_wait(&me->m->posted, &me->m->lock);
  pthread_mutex_unlock(&me->m->lock);
  const lam_status status = l->bytes == bytes ? LAM_OK : LAM_INTERNAL;
  memcpy(data, l->data, l->bytes < bytes ? l->bytes : bytes);
  free(l);
  return status;
}
