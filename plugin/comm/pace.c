/* pace.c: what the ranks of a group on a device know alike of how fast they are.
 *
 * When they meet, each tells the others the figures of its card and where that card is; from the
 * same rows all come to the same.
 * Invariant: where ranks differ, nothing of them is used: then no rank cuts its products.
 * Leaves what is made of the figures to the operators. */
#include <stdio.h>
#include <string.h>

#include "plugin/comm/comm.h"

void lam_pace_row_fill(const lam_device *d, const char *card, lam_pace_row *out) {
  memset(out, 0, sizeof *out);
  snprintf(out->card, sizeof out->card, "%s", card);
  out->is_known = d->pace && lam_device_pace(d, &out->pace) == LAM_OK;
}

static const char *reason(const lam_pace_row *const *rows, int size) {
  for (int r = 0; r < size; r++) {
    if (!rows[r]->is_known) return "there are no figures of a rank's card";
    if (memcmp(&rows[r]->pace, &rows[0]->pace, sizeof rows[0]->pace) != 0)
      return "the ranks' cards are not of one kind";
    for (int q = 0; q < r; q++)
      if (strcmp(rows[q]->card, rows[r]->card) == 0)
        return "ranks share a card: none of it is idle while a sum is under way";
  }
  return NULL;
}

void lam_pace_agree(const lam_pace_row *const *rows, int size, bool by_nccl, lam_group_pace *out) {
  out->card = rows[0]->pace;
  memcpy(out->way, by_nccl ? out->card.by_nccl : out->card.by_peers, sizeof out->way);
  out->why_not = reason(rows, size);
}
