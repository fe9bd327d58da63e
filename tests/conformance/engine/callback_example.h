/* callback_example.h: the five functions of lam_callbacks over a mailbox in one process: what a
 * host would write over its own transport. One mailbox per group, one post per rank. Leaves
 * ranks' threads to the test. */
#ifndef LAMELLA_TESTS_CONFORMANCE_ENGINE_CALLBACK_EXAMPLE_H_
#define LAMELLA_TESTS_CONFORMANCE_ENGINE_CALLBACK_EXAMPLE_H_

#include "abi/lamella.h"

typedef struct mailbox mailbox;
mailbox *mailbox_create(int size);
void mailbox_destroy(mailbox *m); /* with what was never received */

typedef struct
    /* a rank's access to the mailbox: the `user` of its callbacks; lives as long as its group */
    post {
  mailbox *box;
  int rank, size;
} post;
lam_callbacks post_callbacks(post *p);

#endif
