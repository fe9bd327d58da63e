/* table.c: which functions stand behind each row of lamella_ops.def.
 * Invariant: every row has an entry; a row without one fails the tests.
 * A family is one set of functions: `linear` is linear_col with nobody else in the group. */
#include "plugin/ops/rows.h"

#define ENTRY(name, run, needs) [LAM_OP_##name] = {LAM_OP_##name, run, needs}

static const lam_op_entry entries[LAM_OP_END_] = {
    ENTRY(send_activation, lam_op_send_activation_run, lam_op_send_activation_needs),
    ENTRY(recv_activation, lam_op_recv_activation_run, lam_op_recv_activation_needs),

    ENTRY(all_reduce, lam_op_all_reduce_run, lam_op_collective_needs),
    ENTRY(all_gather, lam_op_all_gather_run, lam_op_collective_needs),
    ENTRY(reduce_scatter, lam_op_reduce_scatter_run, lam_op_collective_needs),
    ENTRY(broadcast, lam_op_broadcast_run, lam_op_collective_needs),
    ENTRY(reduce, lam_op_reduce_run, lam_op_collective_needs),

    ENTRY(copy_to_group, lam_op_copy_to_group_run, NULL),
    ENTRY(reduce_from_group, lam_op_all_reduce_run, lam_op_collective_needs),
    ENTRY(gather_from_group, lam_op_gather_from_group_run, lam_op_collective_needs),
    ENTRY(scatter_to_group, lam_op_scatter_to_group_run, NULL),
    ENTRY(gather_sequence, lam_op_gather_sequence_run, lam_op_collective_needs),
    ENTRY(scatter_sequence, lam_op_scatter_sequence_run, lam_op_collective_needs),

    ENTRY(linear, lam_op_linear_col_run, lam_op_linear_col_needs),
    ENTRY(linear_dgrad, lam_op_linear_col_dgrad_run, lam_op_linear_col_dgrad_needs),
    ENTRY(linear_wgrad, lam_op_linear_col_wgrad_run, lam_op_linear_col_wgrad_needs),
    ENTRY(act_bwd, lam_op_act_bwd_run, NULL),
    ENTRY(linear_col, lam_op_linear_col_run, lam_op_linear_col_needs),
    ENTRY(linear_col_dgrad, lam_op_linear_col_dgrad_run, lam_op_linear_col_dgrad_needs),
    ENTRY(linear_col_wgrad, lam_op_linear_col_wgrad_run, lam_op_linear_col_wgrad_needs),
    ENTRY(linear_row, lam_op_linear_row_run, lam_op_linear_row_needs),
    ENTRY(linear_row_dgrad, lam_op_linear_row_dgrad_run, lam_op_linear_row_dgrad_needs),
    ENTRY(linear_row_wgrad, lam_op_linear_row_wgrad_run, lam_op_linear_row_wgrad_needs),
    ENTRY(linear_col_bwd, lam_op_linear_col_bwd_run, lam_op_linear_col_bwd_needs),
    ENTRY(linear_row_bwd, lam_op_linear_row_bwd_run, lam_op_linear_row_bwd_needs),

    ENTRY(ffn, lam_op_ffn_run, lam_op_ffn_needs),
    ENTRY(ffn_dgrad, lam_op_ffn_dgrad_run, lam_op_ffn_dgrad_needs),
    ENTRY(ffn_wgrad, lam_op_ffn_wgrad_run, lam_op_ffn_wgrad_needs),
    ENTRY(ffn_bwd, lam_op_ffn_bwd_run, lam_op_ffn_bwd_needs),

    ENTRY(embedding_vocab, lam_op_embedding_vocab_run, lam_op_embedding_vocab_needs),
    ENTRY(embedding_vocab_wgrad, lam_op_embedding_vocab_wgrad_run,
          lam_op_embedding_vocab_wgrad_needs),
    ENTRY(cross_entropy_vocab, lam_op_cross_entropy_vocab_run, lam_op_cross_entropy_vocab_needs),
    ENTRY(cross_entropy_vocab_bwd, lam_op_cross_entropy_vocab_bwd_run, NULL),

    ENTRY(rmsnorm, lam_op_rmsnorm_run, NULL),
    ENTRY(rmsnorm_bwd, lam_op_rmsnorm_bwd_run, NULL),
    ENTRY(all_reduce_add_rmsnorm, lam_op_all_reduce_add_rmsnorm_run,
          lam_op_all_reduce_add_rmsnorm_needs),

    ENTRY(pack_weight, lam_op_pack_weight_run, NULL),

    ENTRY(codec_pack, lam_op_codec_pack_run, NULL),
    ENTRY(codec_unpack, lam_op_codec_unpack_run, NULL),
};

const lam_op_entry *lam_op_entry_find(uint32_t op) {
  return op < LAM_OP_END_ && entries[op].run ? &entries[op] : NULL;
}
