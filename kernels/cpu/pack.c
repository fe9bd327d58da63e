/* pack.c: packed weights: ordinary bytes that say themselves what they hold.
 *
 *   bytes 0-127   header
 *   bytes 128-    the matrix b of a product (w, or w^T for dgrad), in one of the layouts of cpu.h
 *
 * Invariant: packed data that lam_pack_open accepts can be read without leaving its tensor, whoever
 * wrote it: sizes are computed here from the header's fields, and compared with the tensor's.
 * Leaves the blocks themselves to the library that asked for them. */
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { VERSION = 1 };

typedef struct pack_header {
  char magic[8];
  uint32_t version, side, dtype, layout;
  int64_t n, k;             /* of the weight, whichever side */
  uint32_t instruction_set; /* that the layout was chosen for; 0 where rows lie plain */
  uint32_t zero[21];
} pack_header;
_Static_assert(sizeof(pack_header) == 128, "the packed format");

static const char magic[8] = "LAMPACK";

uint64_t lam_layout_bytes(lam_weight_layout layout, lam_dtype dtype, int64_t n, int64_t k) {
  static const int64_t block_rows[LAM_N_LAYOUTS] = {1, 64, 48, 32, 16};
  const int64_t block_k = layout == LAM_LAYOUT_ROWS ? 1 : dtype == LAM_BF16 ? 32 : 16;
  return (uint64_t)(lam_round_up(n, block_rows[layout]) * lam_round_up(k, block_k) *
                    lam_dtype_bytes(dtype));
}

static lam_weight_layout choose_layout(lam_dtype dtype, int64_t rows, int64_t cols) {
  const lam_library *library = lam_gemm_library_here();
  return library ? library->layout(dtype, rows, cols) : LAM_LAYOUT_ROWS;
}

/* The packed tensor is [R, cols]: R rows of b, of which all bytes together hold header and data. */
static int64_t cols_of(lam_weight_layout layout, lam_dtype dtype, int64_t rows, int64_t cols) {
  return lam_cuts((int64_t)(sizeof(pack_header) + lam_layout_bytes(layout, dtype, rows, cols)),
                  rows);
}

static bool sizes_fit(int64_t n, int64_t k) {
  const int64_t most = INT64_C(1) << 31;
  return n > 0 && k > 0 && n < most && k < most && n <= (INT64_C(1) << 56) / k;
}

lam_status lam_pack_cols(lam_dtype dtype, int64_t n, int64_t k, int side, int64_t *out_cols) {
  *out_cols = 0;
  if (!lam_is_float(dtype))
    return lam_fail(LAM_UNIMPLEMENTED, "pack_weight: w is %s, the CPU packs f32 and bf16",
                    lam_dtype_name(dtype));
  if (!sizes_fit(n, k))
    return lam_fail(LAM_INVALID_ARGUMENT, "pack_weight: w is [%lld, %lld], both must be at least 1",
                    (long long)n, (long long)k);
  if (side != 0 && side != 1)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "pack_weight: side is %d, expected 0 (forward) or 1 (dgrad)", side);
  const int64_t rows = side ? k : n, cols = side ? n : k;
  *out_cols = cols_of(choose_layout(dtype, rows, cols), dtype, rows, cols);
  return LAM_OK;
}

lam_status lam_pack_run(const lam_workers *w, lam_matrix weight, int side, void *packed,
                        int64_t cols, void *stream) {
  const lam_matrix b = side ? lam_matrix_transposed(weight) : weight;
  int64_t expected = 0;
  LAM_TRY(lam_pack_cols(weight.dtype, weight.rows, weight.cols, side, &expected));
  if (cols != expected)
    return lam_fail(
        LAM_INVALID_ARGUMENT,
        "pack_weight: packed has %lld columns, expected %lld (lam_packed_size gives them)",
        (long long)cols, (long long)expected);
  const lam_weight_layout layout = choose_layout(weight.dtype, b.rows, b.cols);
  pack_header h = {.version = VERSION,
                   .side = (uint32_t)side,
                   .dtype = weight.dtype,
                   .layout = layout,
                   .n = weight.rows,
                   .k = weight.cols};
  memcpy(h.magic, magic, sizeof magic);
  if (layout != LAM_LAYOUT_ROWS) h.instruction_set = lam_gemm_library()->instruction_set();

  const uint64_t data_bytes = lam_layout_bytes(layout, weight.dtype, b.rows, b.cols);
  char *data = (char *)packed + sizeof h;
  memcpy(packed, &h, sizeof h);
  memset(data + data_bytes, 0, (uint64_t)(b.rows * cols) - sizeof h - data_bytes);
  if (layout != LAM_LAYOUT_ROWS) return lam_gemm_library()->pack(w, b, layout, data);
  return lam_copy_run(w, b, (lam_matrix){data, b.rows, b.cols, b.cols, 1, b.dtype, false}, stream);
}

static lam_status refuse(const char *reason) {
  return lam_fail(LAM_INVALID_ARGUMENT, "packed weight: %s", reason);
}

static lam_status check_fields(const pack_header *h) {
  if (memcmp(h->magic, magic, sizeof magic) != 0)
    return refuse("it does not begin with what pack_weight writes");
  if (h->version != VERSION)
    return lam_fail(LAM_INVALID_ARGUMENT,
                    "packed weight: format version %u, expected %d: pack it again", h->version,
                    VERSION);
  const bool known =
      h->side <= 1 && (h->dtype == LAM_F32 || h->dtype == LAM_BF16) && h->layout < LAM_N_LAYOUTS;
  if (!known || !sizes_fit(h->n, h->k))
    return refuse("its header is damaged (side, dtype, layout or sizes)");
  return LAM_OK;
}

/* Blocks are only read by the library, on the instruction set they were laid out for. */
static lam_status check_machine(const pack_header *h) {
  if (h->layout == LAM_LAYOUT_ROWS) return LAM_OK;
  const lam_library *library = lam_gemm_library_here();
  if (!library)
    return refuse("it is laid out for oneDNN, which this process does not have: pack it again");
  if (library->instruction_set() == h->instruction_set) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "packed weight: laid out for instruction set 0x%x, this machine has 0x%x: pack "
                  "it again on this machine",
                  h->instruction_set, library->instruction_set());
}

lam_status lam_pack_open(const void *packed, uint64_t bytes, int *side, lam_dtype *dtype,
                         int64_t *n, int64_t *k) {
  pack_header h;
  if (bytes < sizeof h)
    return lam_fail(LAM_INVALID_ARGUMENT, "packed weight: %llu bytes, the header alone has %zu",
                    (unsigned long long)bytes, sizeof h);
  if ((uintptr_t)packed % 64 != 0) return refuse("it must start on a multiple of 64 bytes");
  memcpy(&h, packed, sizeof h);
  LAM_TRY(check_fields(&h));
  const uint64_t needed =
      sizeof h + lam_layout_bytes(h.layout, h.dtype, h.side ? h.k : h.n, h.side ? h.n : h.k);
  if (bytes < needed)
    return lam_fail(
        LAM_INVALID_ARGUMENT, "packed weight: %llu bytes, a [%lld, %lld] weight needs %llu",
        (unsigned long long)bytes, (long long)h.n, (long long)h.k, (unsigned long long)needed);
  LAM_TRY(check_machine(&h));
  *side = (int)h.side;
  *dtype = (lam_dtype)h.dtype;
  *n = h.n;
  *k = h.k;
  return LAM_OK;
}

lam_weight_layout lam_pack_layout(const void *packed, void **out_data) {
  const pack_header *h = packed;
  *out_data = (char *)packed + sizeof *h;
  return (lam_weight_layout)h->layout;
}
