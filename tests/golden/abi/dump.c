/* dump.c: what the ABI promises, as text: `dump layout` every public struct's sizes and offsets,
 * `dump ops` every row of the operator table, `dump functions` the exported functions of
 * lamella_api.def.
 * Invariant: made by the compiler from lamella.h itself; a field that is missing in the list below
 * shows as a hole and fails.
 * Leaves comparing with the goldens to golden.sh. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "abi/lamella.h"

typedef struct line {
  const char *type, *field; /* field NULL: the struct itself */
  size_t offset, size;
} line;

#define S(type) \
  { #type, NULL, 0, sizeof(type) }
#define F(type, field) \
  { #type, #field, offsetof(type, field), sizeof(((type *)0)->field) }

static const line lines[] = {
    S(lam_context_desc),
    F(lam_context_desc, struct_size),
    F(lam_context_desc, threads),
    F(lam_context_desc, user),
    F(lam_context_desc, alloc),
    F(lam_context_desc, free),
    F(lam_context_desc, parallel_for),
    F(lam_context_desc, should_stop),
    F(lam_context_desc, log),
    F(lam_context_desc, tf32),
    F(lam_context_desc, reserved),
    S(lam_context_stats),
    F(lam_context_stats, struct_size),
    F(lam_context_stats, reserved),
    F(lam_context_stats, allocations),
    F(lam_context_stats, bytes),
    F(lam_context_stats, peak_bytes),
    F(lam_context_stats, arena_bytes),
    S(lam_attr),
    F(lam_attr, type),
    F(lam_attr, n),
    F(lam_attr, v),
    S(lam_call),
    F(lam_call, struct_size),
    F(lam_call, op),
    F(lam_call, inputs),
    F(lam_call, outputs),
    F(lam_call, attrs),
    F(lam_call, n_inputs),
    F(lam_call, n_outputs),
    F(lam_call, n_attrs),
    F(lam_call, flags),
    F(lam_call, stream),
    F(lam_call, scratch),
    F(lam_call, scratch_bytes),
    S(lam_shape),
    F(lam_shape, ndim),
    F(lam_shape, dtype),
    F(lam_shape, dims),
    S(lam_inferred),
    F(lam_inferred, struct_size),
    F(lam_inferred, n_outputs),
    F(lam_inferred, outputs),
    F(lam_inferred, scratch_bytes),
    F(lam_inferred, n_chunks),
    F(lam_inferred, capturable),
    S(lam_shard_piece),
    F(lam_shard_piece, begin),
    F(lam_shard_piece, end),
    S(lam_shard_info),
    F(lam_shard_info, struct_size),
    F(lam_shard_info, n_pieces),
    F(lam_shard_info, pieces),
    S(lam_group_id),
    F(lam_group_id, bytes),
    S(lam_group_desc),
    F(lam_group_desc, struct_size),
    F(lam_group_desc, rank),
    F(lam_group_desc, size),
    F(lam_group_desc, deadline_ms),
    F(lam_group_desc, first_deadline_ms),
    F(lam_group_desc, reserved),
    F(lam_group_desc, engine),
    F(lam_group_desc, id),
    S(lam_callbacks),
    F(lam_callbacks, struct_size),
    F(lam_callbacks, reserved),
    F(lam_callbacks, user),
    F(lam_callbacks, send),
    F(lam_callbacks, recv),
    F(lam_callbacks, all_reduce),
    F(lam_callbacks, all_gather),
    F(lam_callbacks, reduce_scatter),
    S(lam_group_info),
    F(lam_group_info, struct_size),
    F(lam_group_info, rank),
    F(lam_group_info, size),
    F(lam_group_info, poison),
    F(lam_group_info, engine),
    F(lam_group_info, error),
    F(lam_group_info, operations),
    F(lam_group_info, waits),
    F(lam_group_info, sleeps),
    S(lam_schedule_info),
    F(lam_schedule_info, struct_size),
    F(lam_schedule_info, n_ranks),
    F(lam_schedule_info, n_stages),
    F(lam_schedule_info, n_micro),
    F(lam_schedule_info, peak_in_flight),
    F(lam_schedule_info, ring_depth),
    F(lam_schedule_info, n_actions),
    F(lam_schedule_info, n_transfers),
    F(lam_schedule_info, makespan),
    F(lam_schedule_info, bubble),
    F(lam_schedule_info, rank_bubble),
    F(lam_schedule_info, peaks),
    F(lam_schedule_info, ring_depths),
    F(lam_schedule_info, n_peaks),
    F(lam_schedule_info, n_ring_depths),
    S(lam_event),
    F(lam_event, rank),
    F(lam_event, stage),
    F(lam_event, micro),
    F(lam_event, kind),
    F(lam_event, part),
    F(lam_event, start),
    F(lam_event, end),
    S(lam_costs),
    F(lam_costs, struct_size),
    F(lam_costs, n_stages),
    F(lam_costs, forward),
    F(lam_costs, backward_input),
    F(lam_costs, backward_weight),
    F(lam_costs, transfer),
    F(lam_costs, forward_backward),
    F(lam_costs, reduce_grad),
    S(lam_rank_time),
    F(lam_rank_time, busy),
    F(lam_rank_time, warm_up),
    F(lam_rank_time, drain),
    F(lam_rank_time, waiting),
    S(lam_simulated),
    F(lam_simulated, struct_size),
    F(lam_simulated, reserved),
    F(lam_simulated, makespan),
    F(lam_simulated, bubble),
    F(lam_simulated, rank_bubble),
    F(lam_simulated, events),
    F(lam_simulated, n_events),
    F(lam_simulated, ranks),
    F(lam_simulated, waits),
    F(lam_simulated, n_ranks),
    F(lam_simulated, n_waits),
    S(lam_stage_io),
    F(lam_stage_io, struct_size),
    F(lam_stage_io, stage),
    F(lam_stage_io, micro),
    F(lam_stage_io, n_in),
    F(lam_stage_io, n_out),
    F(lam_stage_io, flags),
    F(lam_stage_io, step),
    F(lam_stage_io, in),
    F(lam_stage_io, out),
    F(lam_stage_io, stream),
    F(lam_stage_io, loss),
    S(lam_stage),
    F(lam_stage, struct_size),
    F(lam_stage, flags),
    F(lam_stage, user),
    F(lam_stage, forward),
    F(lam_stage, backward),
    F(lam_stage, backward_input),
    F(lam_stage, backward_weight),
    F(lam_stage, forward_backward),
    F(lam_stage, reduce_grad),
    F(lam_stage, backward_user),
    F(lam_stage, backward_input_user),
    F(lam_stage, backward_weight_user),
    F(lam_stage, first_layer),
    F(lam_stage, n_layers),
    S(lam_edge),
    F(lam_edge, struct_size),
    F(lam_edge, n_tensors),
    F(lam_edge, tensors),
    F(lam_edge, codec),
    F(lam_edge, gradient_codec),
    S(lam_pipeline_desc),
    F(lam_pipeline_desc, struct_size),
    F(lam_pipeline_desc, flags),
    F(lam_pipeline_desc, group),
    F(lam_pipeline_desc, schedule),
    F(lam_pipeline_desc, stages),
    F(lam_pipeline_desc, edges),
    F(lam_pipeline_desc, n_stages),
    F(lam_pipeline_desc, n_edges),
    F(lam_pipeline_desc, tensor),
    F(lam_pipeline_desc, edge_bytes_per_second),
    F(lam_pipeline_desc, split),
    F(lam_pipeline_desc, n_tied),
    F(lam_pipeline_desc, tied),
    F(lam_pipeline_desc, device_type),
    F(lam_pipeline_desc, device_id),
    F(lam_pipeline_desc, stream),
    S(lam_tied),
    F(lam_tied, struct_size),
    F(lam_tied, n_stages),
    F(lam_tied, stages),
    F(lam_tied, shape),
    F(lam_tied, gradient),
    S(lam_edge_info),
    F(lam_edge_info, struct_size),
    F(lam_edge_info, peer),
    F(lam_edge_info, codec),
    F(lam_edge_info, parts),
    F(lam_edge_info, depth),
    F(lam_edge_info, reserved),
    F(lam_edge_info, slot_bytes),
    F(lam_edge_info, wire_bytes),
    F(lam_edge_info, whole_seconds),
    F(lam_edge_info, split_seconds),
    F(lam_edge_info, why),
    S(lam_pipeline_report),
    F(lam_pipeline_report, struct_size),
    F(lam_pipeline_report, n_actions),
    F(lam_pipeline_report, step_time),
    F(lam_pipeline_report, busy),
    F(lam_pipeline_report, cpu),
    F(lam_pipeline_report, warm_up),
    F(lam_pipeline_report, drain),
    F(lam_pipeline_report, waiting),
    F(lam_pipeline_report, overhead),
    F(lam_pipeline_report, worst_edge),
    F(lam_pipeline_report, worst_kind),
    F(lam_pipeline_report, slot_bytes),
    F(lam_pipeline_report, events),
    F(lam_pipeline_report, n_events),
    F(lam_pipeline_report, capturable),
    F(lam_pipeline_report, device_times),
    S(lam_idle),
    F(lam_idle, work),
    F(lam_idle, warm_up),
    F(lam_idle, drain),
    F(lam_idle, waiting),
    F(lam_idle, imbalance),
    F(lam_idle, other),
    F(lam_idle, predicted),
    F(lam_idle, worst),
    F(lam_idle, worst_edge),
    F(lam_idle, worst_kind),
    S(lam_explained),
    F(lam_explained, struct_size),
    F(lam_explained, reserved),
    F(lam_explained, step),
    F(lam_explained, predicted_step),
    F(lam_explained, level_step),
    F(lam_explained, metering),
    F(lam_explained, ranks),
    F(lam_explained, text),
    F(lam_explained, n_ranks),
    F(lam_explained, text_bytes),
    S(lam_layer),
    F(lam_layer, forward),
    F(lam_layer, backward_input),
    F(lam_layer, backward_weight),
    F(lam_layer, cut_time),
    F(lam_layer, cut_bytes),
    F(lam_layer, static_bytes),
    F(lam_layer, activation_bytes),
    S(lam_partition_desc),
    F(lam_partition_desc, struct_size),
    F(lam_partition_desc, flags),
    F(lam_partition_desc, layers),
    F(lam_partition_desc, schedule),
    F(lam_partition_desc, caps),
    F(lam_partition_desc, pinned),
    F(lam_partition_desc, n_layers),
    F(lam_partition_desc, reserved),
    S(lam_partition),
    F(lam_partition, struct_size),
    F(lam_partition, proven),
    F(lam_partition, proof),
    F(lam_partition, step),
    F(lam_partition, bottleneck),
    F(lam_partition, bound),
    F(lam_partition, first_layer),
    F(lam_partition, stage_time),
    F(lam_partition, rank_bytes),
    S(lam_profile_desc),
    F(lam_profile_desc, struct_size),
    F(lam_profile_desc, n_layers),
    F(lam_profile_desc, layers),
    F(lam_profile_desc, forward),
    F(lam_profile_desc, backward),
    F(lam_profile_desc, rounds),
    F(lam_profile_desc, warm_up),
    S(lam_layout),
    F(lam_layout, struct_size),
    F(lam_layout, reserved),
    F(lam_layout, n_layers),
    F(lam_layout, n_stages),
    F(lam_layout, layers),
    F(lam_layout, first_layer),
    S(lam_choice_desc),
    F(lam_choice_desc, struct_size),
    F(lam_choice_desc, flags),
    F(lam_choice_desc, p),
    F(lam_choice_desc, v),
    F(lam_choice_desc, m),
    F(lam_choice_desc, reserved),
    F(lam_choice_desc, static_bytes),
    F(lam_choice_desc, activation_bytes),
    F(lam_choice_desc, cap_bytes),
    S(lam_choice),
    F(lam_choice, struct_size),
    F(lam_choice, v),
    F(lam_choice, name),
    F(lam_choice, bytes),
    F(lam_choice, reason),
    S(lam_api),
    F(lam_api, struct_size),
    F(lam_api, reserved),
#define LAM_FUNCTION(result, name, arguments) F(lam_api, name),
#include "abi/lamella_api.def"
#undef LAM_FUNCTION
};
#define N_LINES (sizeof lines / sizeof *lines)

/* Where the bytes before line i that no field covers begin; no public struct has a hole that big.
 * */
static int hole_before(size_t i, size_t end, size_t at) {
  if (at == end) return 0;
  fprintf(stderr, "%s: bytes %zu to %zu are no field of the list in dump.c\n", lines[i].type, end,
          at);
  return 1;
}

static int dump_layout(void) {
  size_t end = 0, whole = 0;
  int n_holes = 0;
  for (size_t i = 0; i < N_LINES; i++) {
    if (!lines[i].field) {
      if (i) n_holes += hole_before(i - 1, end, whole);
      printf("%s: %zu bytes\n", lines[i].type, lines[i].size);
      whole = lines[i].size;
      end = 0;
      continue;
    }
    n_holes += hole_before(i, end, lines[i].offset);
    end = lines[i].offset + lines[i].size;
    printf("  %3zu +%-3zu %s\n", lines[i].offset, lines[i].size, lines[i].field);
  }
  return n_holes + hole_before(N_LINES - 1, end, whole) > 0;
}

static int dump_ops(void) {
  for (uint32_t op = 0; op < LAM_OP_END_; op++)
    if (lam_op_row(op)) puts(lam_op_row(op));
  return 0;
}

static int dump_functions(void) {
#define LAM_FUNCTION(result, name, arguments) puts("lam_" #name);
#include "abi/lamella_api.def"
#undef LAM_FUNCTION
  puts("lam_get_api");
  return 0;
}

int main(int argc, char **argv) {
  const char *what = argc == 2 ? argv[1] : "";
  if (!strcmp(what, "layout")) return dump_layout();
  if (!strcmp(what, "ops")) return dump_ops();
  if (!strcmp(what, "functions")) return dump_functions();
  fputs("usage: dump layout|ops|functions\n", stderr);
  return 2;
}
