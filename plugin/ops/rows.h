/* rows.h: the functions behind the rows of lamella_ops.def, gathered by table.c; and the few that
 * one family's files share. Leaves what they have in common to common.h. */
#ifndef LAMELLA_PLUGIN_OPS_ROWS_H
#define LAMELLA_PLUGIN_OPS_ROWS_H

#include "plugin/ops/common.h"

lam_status lam_op_send_activation_run(const lam_op_call *call); /* transfer.c */
void lam_op_send_activation_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_recv_activation_run(const lam_op_call *call);
void lam_op_recv_activation_needs(const lam_op_call *call, lam_op_needs *out);

lam_status lam_op_all_reduce_run(const lam_op_call *call); /* collective.c */
lam_status lam_op_all_gather_run(const lam_op_call *call);
lam_status lam_op_reduce_scatter_run(const lam_op_call *call);
lam_status lam_op_broadcast_run(const lam_op_call *call);
lam_status lam_op_reduce_run(const lam_op_call *call);
void lam_op_collective_needs(const lam_op_call *call, lam_op_needs *out);

lam_status lam_op_copy_to_group_run(const lam_op_call *call); /* region.c */
lam_status lam_op_gather_from_group_run(const lam_op_call *call);
lam_status lam_op_scatter_to_group_run(const lam_op_call *call);
lam_status lam_op_gather_sequence_run(const lam_op_call *call);
lam_status lam_op_scatter_sequence_run(const lam_op_call *call);

lam_status lam_op_linear_col_run(const lam_op_call *call); /* linear.c */
void lam_op_linear_col_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_linear_col_dgrad_run(const lam_op_call *call);
void lam_op_linear_col_dgrad_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_linear_col_wgrad_run(const lam_op_call *call);
void lam_op_linear_col_wgrad_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_linear_col_bwd_run(const lam_op_call *call);
void lam_op_linear_col_bwd_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_act_bwd_run(const lam_op_call *call);

lam_status lam_op_linear_row_run(const lam_op_call *call); /* linear_row.c */
void lam_op_linear_row_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_linear_row_dgrad_run(const lam_op_call *call);
void lam_op_linear_row_dgrad_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_linear_row_wgrad_run(const lam_op_call *call);
void lam_op_linear_row_wgrad_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_linear_row_bwd_run(const lam_op_call *call);
void lam_op_linear_row_bwd_needs(const lam_op_call *call, lam_op_needs *out);

lam_status lam_op_ffn_run(const lam_op_call *call); /* ffn.c */
void lam_op_ffn_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_ffn_check_weights(const lam_op_call *call, lam_matrix w1, lam_matrix w2);

lam_status lam_op_ffn_dgrad_run(const lam_op_call *call); /* ffn_grad.c */
void lam_op_ffn_dgrad_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_ffn_wgrad_run(const lam_op_call *call);
void lam_op_ffn_wgrad_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_ffn_bwd_run(const lam_op_call *call);
void lam_op_ffn_bwd_needs(const lam_op_call *call, lam_op_needs *out);

lam_status lam_op_embedding_vocab_run(const lam_op_call *call); /* vocab.c */
void lam_op_embedding_vocab_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_embedding_vocab_wgrad_run(const lam_op_call *call);
void lam_op_embedding_vocab_wgrad_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_cross_entropy_vocab_run(const lam_op_call *call);
void lam_op_cross_entropy_vocab_needs(const lam_op_call *call, lam_op_needs *out);
lam_status lam_op_cross_entropy_vocab_bwd_run(const lam_op_call *call);

lam_status lam_op_rmsnorm_run(const lam_op_call *call); /* norm.c */
lam_status lam_op_rmsnorm_bwd_run(const lam_op_call *call);
lam_status lam_op_all_reduce_add_rmsnorm_run(const lam_op_call *call);
void lam_op_all_reduce_add_rmsnorm_needs(const lam_op_call *call, lam_op_needs *out);

lam_status lam_op_pack_weight_run(const lam_op_call *call); /* pack.c */

lam_status lam_op_codec_pack_run(const lam_op_call *call); /* codec.c */
lam_status lam_op_codec_unpack_run(const lam_op_call *call);
lam_status lam_op_codec_check(const lam_op_call *call, lam_dtype t); /* attribute codec, for t */
uint64_t lam_op_coded_bytes(const lam_op_call *call, lam_matrix m);  /* 0: no codec */

#endif
