/* status_test.c: a thread's message: written, put in context, cut to its room. */
#include "abi/status.h"
#include "tests/unit/core/host.h"

TEST(status, a_message_may_quote_the_last_one) {
  lam_fail(LAM_INTERNAL, "rank 1 is gone");
  CHECK_EQ(lam_fail(LAM_POISONED, "the step failed: %s", lam_last_error()), LAM_POISONED);
  CHECK_STR(lam_last_error(), "the step failed: rank 1 is gone");
  lam_fail(LAM_POISONED, "%s, %s", lam_last_error() + 4, lam_last_error());
  CHECK_STR(lam_last_error(), "step failed: rank 1 is gone, the step failed: rank 1 is gone");
}

TEST(status, a_message_may_be_the_last_one) {
  lam_fail(LAM_INTERNAL, "rank 1 is gone");
  lam_fail(LAM_POISONED, "%s", lam_last_error());
  CHECK_STR(lam_last_error(), "rank 1 is gone");
}

TEST(status, context_comes_before_a_message_that_it_may_quote) {
  lam_fail(LAM_INTERNAL, "no memory");
  CHECK_EQ(lam_fail_within(LAM_INTERNAL, "step 3"), LAM_INTERNAL);
  CHECK_STR(lam_last_error(), "step 3: no memory");
  lam_fail_within(LAM_INTERNAL, "again (%s)", lam_last_error());
  CHECK_STR(lam_last_error(), "again (step 3: no memory): step 3: no memory");
}

TEST(status, a_message_that_is_too_long_is_cut) {
  char word[2 * LAM_MESSAGE_BYTES];
  memset(word, 'x', sizeof word - 1);
  word[sizeof word - 1] = 0;
  lam_fail(LAM_INTERNAL, "%s", word);
  CHECK_EQ(strlen(lam_last_error()), LAM_MESSAGE_BYTES - 1);
  lam_fail_within(LAM_INTERNAL, "%s", word);
  CHECK_EQ(strlen(lam_last_error()), LAM_MESSAGE_BYTES - 1);
}
