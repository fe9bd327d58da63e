/* pace.c: how fast cards are, by which work is cut into chunks.
 *
 * One row for each kind of card, of figures that others measured or published: nothing of Lamella
 * has been timed on a GPU yet. Where a figure is published, it is taken at the share of it that
 * large products reach on an H200. All ranks that have the same kind of card read the same row, so
 * that they cut alike; what is timed on the spot (algos.c) never enters here.
 * Invariant: the figures of a kind of card do not change while a program runs.
 * Leaves what is made of them to plugin/ops/tiles.c. */
#include "kernels/cuda/host.h"

enum {
  TILE_ROWS = 128, /* what cuBLASLt's large kernels cut products into */
  TILE_COLS = 256,
  LAUNCH_NS = 3000 /* a launch with the two events around it */
};

typedef struct kind {
  int sm;            /* from this compute capability on */
  int link_percent;  /* its links, of an H100's (NVLink 4, 450 GB/s each way); published */
  int f32, bf16, f8; /* TFLOP/s of large products; bf16 and f16 alike */
} kind;

/* H100, H200: 8192^3 in bf16, random data, 769 to 798 through PyTorch. The others: published. */
static const kind kinds[] = {
    {.sm = 100, .link_percent = 200, .f32 = 60, .bf16 = 1800, .f8 = 3600},
    {.sm = 90, .link_percent = 100, .f32 = 53, .bf16 = 780, .f8 = 1580},
    {.sm = 89, .link_percent = 14, .f32 = 60, .bf16 = 280, .f8 = 560}, /* no NVLink */
    {.sm = 80, .link_percent = 66, .f32 = 15, .bf16 = 250, .f8 = 0},
};

/* Sums over H100s: vLLM's kernel over peers' memory, and NCCL, of 0.5, 1 and 4 MB on 6 ranks (its
 * issue 24111); SGLang's, of 256 KB on 2 (its pull request 2904). A rank moves 2 (p - 1) / p of
 * it. */
static const lam_pace_step by_peers[LAM_PACE_STEPS] = {
    {262144, 7900}, {873813, 13000}, {1747626, 17000}, {6990506, 37000}};
static const lam_pace_step by_nccl[LAM_PACE_STEPS] = {
    {873813, 23000}, {1747626, 25000}, {6990506, 53000}};

static const kind *kind_of(int sm) {
  const int n = sizeof kinds / sizeof *kinds;
  for (int i = 0; i < n - 1; i++)
    if (sm >= kinds[i].sm) return &kinds[i];
  return &kinds[n - 1];
}

static void scale(const lam_pace_step *from, int percent, lam_pace_step *to) {
  for (int i = 0; i < LAM_PACE_STEPS; i++)
    to[i] = (lam_pace_step){from[i].bytes * percent / 100, from[i].ns};
}

lam_status lam_cuda_pace(lam_pace *out) {
  const lam_cuda_card *card;
  LAM_TRY(lam_cuda_card_here(&card));
  const kind *k = kind_of(card->sm);
  out->n_sms = card->n_sms;
  out->tile_rows = TILE_ROWS;
  out->tile_cols = TILE_COLS;
  out->launch_ns = LAUNCH_NS;
  out->product_flops_per_ns[LAM_F32] = k->f32 * 1000;
  out->product_flops_per_ns[LAM_BF16] = out->product_flops_per_ns[LAM_F16] = k->bf16 * 1000;
  out->product_flops_per_ns[LAM_F8E4M3] = out->product_flops_per_ns[LAM_F8E5M2] = k->f8 * 1000;
  scale(by_peers, k->link_percent, out->by_peers);
  scale(by_nccl, k->link_percent, out->by_nccl);
  return LAM_OK;
}
