/* client.h: includes lamella.h as hosts do: alone, before or after a dlpack.h of their own choice.
 * Compiled as C11 and C++17, by gcc and clang, with every warning an error: it is the header that
 * is tested. */
#ifndef LAMELLA_TESTS_CLIENTS_CLIENT_H_
#define LAMELLA_TESTS_CLIENTS_CLIENT_H_

#ifdef DLPACK_FIRST
#include <dlpack/dlpack.h>
#endif
#include <lamella.h>
#ifdef DLPACK_LAST
#include <dlpack/dlpack.h>
#endif
#if defined(DLPACK_IS_1) != defined(DLPACK_MAJOR_VERSION)
#error "another dlpack.h was found than the one to compile with"
#endif
#include <stdio.h>
#include <string.h>

#define EXPECT(cond)                                                          \
  do {                                                                        \
    if (!(cond)) {                                                            \
      printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #cond, lam_last_error()); \
      return 1;                                                               \
    }                                                                         \
  } while (0)

/* Every initializer, in both languages, without a warning. */
static inline int initializers_set_the_size(void) {
  lam_context_desc context = LAM_CONTEXT_DESC_INIT;
  lam_context_stats stats = LAM_CONTEXT_STATS_INIT;
  lam_call call = LAM_CALL_INIT;
  lam_inferred inferred = LAM_INFERRED_INIT;
  lam_shard_info shard = LAM_SHARD_INFO_INIT;
  lam_group_desc group = LAM_GROUP_DESC_INIT;
  lam_callbacks callbacks = LAM_CALLBACKS_INIT;
  lam_group_info group_info = LAM_GROUP_INFO_INIT;
  lam_schedule_info schedule = LAM_SCHEDULE_INFO_INIT;
  lam_costs costs = LAM_COSTS_INIT;
  lam_simulated simulated = LAM_SIMULATED_INIT;
  lam_stage stage = LAM_STAGE_INIT;
  lam_edge edge = LAM_EDGE_INIT;
  lam_pipeline_desc pipeline = LAM_PIPELINE_DESC_INIT;
  lam_pipeline_report report = LAM_PIPELINE_REPORT_INIT;
  EXPECT(context.struct_size == sizeof context);
  EXPECT(stats.struct_size == sizeof stats);
  EXPECT(call.struct_size == sizeof call);
  EXPECT(inferred.struct_size == sizeof inferred);
  EXPECT(shard.struct_size == sizeof shard);
  EXPECT(group.struct_size == sizeof group);
  EXPECT(callbacks.struct_size == sizeof callbacks);
  EXPECT(group_info.struct_size == sizeof group_info);
  EXPECT(schedule.struct_size == sizeof schedule);
  EXPECT(costs.struct_size == sizeof costs);
  EXPECT(simulated.struct_size == sizeof simulated);
  EXPECT(stage.struct_size == sizeof stage);
  EXPECT(edge.struct_size == sizeof edge);
  EXPECT(pipeline.struct_size == sizeof pipeline);
  EXPECT(report.struct_size == sizeof report);
  EXPECT(report.worst_edge == -1 && report.worst_kind == -1);
  return 0;
}

#endif
