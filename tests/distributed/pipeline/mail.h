/* mail.h: a host's own communication between threads of one process: letters in boxes, one list
 * for all. Sends never wait.
 * Leaves everything that is slow about it as it is. */
#ifndef LAMELLA_TESTS_DISTRIBUTED_PIPELINE_MAIL_H_
#define LAMELLA_TESTS_DISTRIBUTED_PIPELINE_MAIL_H_

#include "abi/lamella.h"

typedef struct mail mail;
typedef struct mail_rank { /* a callback's user */
  mail *m;
  int rank;
} mail_rank;

mail *mail_create(void);
void mail_destroy(mail *m);
lam_status mail_send(void *user, int32_t peer, uint32_t channel, const void *data, uint64_t bytes);
lam_status mail_recv(void *user, int32_t peer, uint32_t channel, void *data, uint64_t bytes);

#endif
