/* form.h: in which form the messages of an edge travel between two ranks: as the stages see them,
 * in place; coded; or a part of each tensor per rank of the tensor-parallel group, gathered by the
 * receivers.
 *
 * Where it is not "as they are", a stage works on a slot beside the channel; the message is packed
 * into the channel's slot, and unpacked out of it.
 * Invariant: both ends of an edge compute the same form, and all ranks of a tensor-parallel group
 * decide alike. Leaves what a codec does to kernels/codec.h, waiting and order to slots.c. */
#ifndef LAMELLA_PLUGIN_PIPELINE_RUN_FORM_H
#define LAMELLA_PLUGIN_PIPELINE_RUN_FORM_H

#include "plugin/pipeline/run/runtime.h"

/* Whether messages are split over p->tensor, for each edge and kind, with sizes and offsets.
 * Collective over p->tensor, then p->group, where a gather must be timed (form_choose.c). */
lam_status lam_forms_choose(lam_pipeline *p, const lam_pipeline_desc *desc);
/* Sizes and offsets of `plan` in form `f`, whose codec and parts are set. */
lam_status lam_form_init(lam_pipeline *p, const lam_edge_plan *plan, lam_form *f);

static inline bool lam_form_is_plain(const lam_form *f) {
  return f->codec == LAM_CODEC_NONE && f->n_parts == 1;
}
static inline const lam_form *lam_form_of(const lam_edge_plan *plan, int kind) {
  return &plan->forms[kind != LAM_KIND_F];
}

/* The message in port->slot into port->wire, a slot of the channel's; its bytes. */
lam_status lam_form_pack(const lam_pipeline *p, const lam_port *port, uint64_t *out_bytes);
/* And back. The dims in `front`, which is wire's or a note's, were checked. */
lam_status lam_form_unpack(const lam_pipeline *p, const lam_port *port, unsigned char *front,
                           unsigned char *wire, unsigned char *slot);

#endif
