/* schedule_test.c: the memory of a schedule: lists filled rank by rank, ranges, peaks. */
#include <stdlib.h>

#include "tests/unit/pipeline/tables.h"

TEST(schedule, lists_lie_one_after_the_other) {
  lam_schedule *s = NULL;
  REQUIRE_OK(lam_schedule_alloc(5, 2, 1, &s));
  CHECK_OK(lam_schedule_push(s, 1, LAM_KIND_F, 0, 0)); /* ranks 0, 2 and 4 stay empty */
  CHECK_OK(lam_schedule_push(s, 3, LAM_KIND_F, 1, 0));
  CHECK_OK(lam_schedule_push(s, 3, LAM_KIND_B, 1, 0));
  CHECK_OK(lam_schedule_seal(s));
  const int64_t first[] = {0, 0, 1, 1, 3, 3};
  for (int r = 0; r <= 5; r++) CHECK_EQ(s->first[r], first[r]);
  CHECK_EQ(s->rank_of_stage[0], 1);
  CHECK_EQ(s->rank_of_stage[1], 3);
  lam_schedule_destroy(s);
}

TEST(schedule, a_push_out_of_range_or_order_is_refused_and_ends_the_filling) {
  const int bad[][4] = {{0, LAM_KIND_F, 0, 0},  {3, LAM_KIND_F, 0, 0},  {-1, LAM_KIND_F, 0, 0},
                        {1, LAM_KIND_F, 2, 0},  {1, LAM_KIND_F, -1, 0}, {1, LAM_KIND_F, 0, 2},
                        {1, LAM_KIND_F, 0, -1}, {1, 4, 0, 0},           {1, 14, 0, 0},
                        {1, -1, 0, 0},          {1, 7, 0, 0},           {1, 12, 2, -1}};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    lam_schedule *s = NULL;
    NOTE("case %d", (int)i);
    REQUIRE_OK(lam_schedule_alloc(3, 2, 2, &s));
    CHECK_OK(lam_schedule_push(s, 1, LAM_KIND_F, 0, 0));
    CHECK_STATUS(lam_schedule_push(s, bad[i][0], bad[i][1], bad[i][2], bad[i][3]),
                 LAM_INVALID_ARGUMENT);
    CHECK_STATUS(lam_schedule_push(s, 1, LAM_KIND_B, 0, 0), LAM_INVALID_ARGUMENT);
    CHECK_STATUS(lam_schedule_seal(s), LAM_INVALID_ARGUMENT);
    CHECK_EQ(s->first[3], 1);
    lam_schedule_destroy(s);
  }
}

TEST(schedule, sizes_below_one_or_above_the_most_are_refused) {
  lam_schedule *s = NULL;
  CHECK_STATUS(lam_schedule_alloc(0, 1, 1, &s), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_schedule_alloc(1, 0, 1, &s), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_schedule_alloc(1, 1, 0, &s), LAM_INVALID_ARGUMENT);
  CHECK_STATUS(lam_schedule_alloc(1, LAM_SCHEDULE_MOST + 1, 1, &s), LAM_INVALID_ARGUMENT);
  CHECK(!s);
}

TEST(schedule, a_split_backward_holds_its_activation_until_the_weight_gradient) {
  lam_schedule *s = table_of("0F0 0F1 0I0 0F2 0W0 0B1 0I2 0W2\n");
  int32_t peak = 0;
  lam_schedule_peaks(s, &peak);
  CHECK_EQ(peak, 3);
  lam_schedule_destroy(s);
}

TEST(schedule, an_action_has_a_text) {
  char buf[LAM_ACTION_BYTES];
  const lam_action a = {.stage = 1048575, .micro = 1048574, .kind = LAM_KIND_RECV_B};
  CHECK_STR(lam_action_text(&a, buf), "1048575RECV_B1048574");
  CHECK(!lam_kind_name(4) && !lam_kind_name(-1) && !lam_kind_name(LAM_N_KINDS));
  const lam_action whole = {.stage = 3, .micro = -1, .kind = LAM_KIND_REDUCE_GRAD};
  CHECK_STR(lam_action_text(&whole, buf), "3REDUCE_GRAD");
}
