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

/* Every initializer: clients.sh compares with the headers. */
#define INITIALIZERS(X)                   \
  X(CONTEXT_DESC, lam_context_desc)       \
  X(CONTEXT_STATS, lam_context_stats)     \
  X(CALL, lam_call)                       \
  X(INFERRED, lam_inferred)               \
  X(SHARD_INFO, lam_shard_info)           \
  X(GROUP_DESC, lam_group_desc)           \
  X(CALLBACKS, lam_callbacks)             \
  X(GROUP_INFO, lam_group_info)           \
  X(SCHEDULE_INFO, lam_schedule_info)     \
  X(COSTS, lam_costs)                     \
  X(SIMULATED, lam_simulated)             \
  X(STAGE, lam_stage)                     \
  X(EDGE, lam_edge)                       \
  X(TIED, lam_tied)                       \
  X(PIPELINE_DESC, lam_pipeline_desc)     \
  X(PIPELINE_REPORT, lam_pipeline_report) \
  X(EXPLAINED, lam_explained)             \
  X(EDGE_INFO, lam_edge_info)             \
  X(PARTITION_DESC, lam_partition_desc)   \
  X(PARTITION, lam_partition)             \
  X(PROFILE_DESC, lam_profile_desc)       \
  X(LAYOUT, lam_layout)                   \
  X(CHOICE_DESC, lam_choice_desc)         \
  X(CHOICE, lam_choice)

/* In both languages, without a warning. */
static inline int initializers_set_the_size(void) {
#define MAKE(NAME, type) type made_##type = LAM_##NAME##_INIT;
  INITIALIZERS(MAKE)
#undef MAKE
#define CHECK_SIZE(NAME, type) EXPECT(made_##type.struct_size == sizeof(type));
  INITIALIZERS(CHECK_SIZE)
#undef CHECK_SIZE
  EXPECT(made_lam_pipeline_report.worst_edge == -1 && made_lam_pipeline_report.worst_kind == -1);
  return 0;
}

#endif
