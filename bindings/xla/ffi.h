/* ffi.h: the part of XLA's FFI C ABI that a handler needs, declared here: XLA's own header changes
 * with each jaxlib, the layouts below have been the same from API 0.1 to 0.5.
 *
 * Invariant: only fields and function slots whose place is equal in all those versions are named;
 * the sizes are checked where they are compiled. Nothing here is ever allocated by Lamella but the
 * arguments of xla_error_create.
 * Leaves what a call means to call.c. */
#ifndef LAMELLA_BINDINGS_XLA_FFI_H
#define LAMELLA_BINDINGS_XLA_FFI_H

#include <stddef.h>
#include <stdint.h>

typedef struct xla_error xla_error; /* XLA's; one that a handler returns belongs to XLA */

typedef struct xla_extension {
  size_t struct_size;
  int32_t type;
  struct xla_extension *next;
} xla_extension;
#define XLA_EXTENSION_METADATA 1

typedef struct xla_api_version {
  size_t struct_size;
  xla_extension *extension_start;
  int major_version, minor_version;
} xla_api_version;

typedef struct xla_metadata { /* newer runtimes have fields after these; they stay zero */
  size_t struct_size;
  xla_api_version api_version;
  uint32_t traits;
} xla_metadata;

typedef struct xla_metadata_extension {
  xla_extension base;
  xla_metadata *metadata;
} xla_metadata_extension;

typedef struct xla_error_create_args {
  size_t struct_size;
  xla_extension *extension_start;
  const char *message;
  int32_t code; /* an Abseil code */
} xla_error_create_args;

typedef struct xla_stream_get_args {
  size_t struct_size;
  xla_extension *extension_start;
  void *context;
  void *stream; /* out; on CUDA a CUstream */
} xla_stream_get_args;

typedef struct xla_api { /* longer in every version; two slots are used */
  size_t struct_size;
  xla_extension *extension_start;
  xla_api_version api_version;
  const void *internal_api;
  xla_error *(*error_create)(xla_error_create_args *args);
  const void *unused[3]; /* Error_GetMessage, Error_Destroy, Handler_Register */
  xla_error *(*stream_get)(xla_stream_get_args *args);
} xla_api;

typedef struct xla_buffer { /* dense, row-major */
  size_t struct_size;
  xla_extension *extension_start;
  int32_t dtype; /* xla::PrimitiveType */
  void *data;
  int64_t rank;
  int64_t *dims;
} xla_buffer;

typedef struct xla_span { /* without a NUL */
  const char *ptr;
  size_t len;
} xla_span;

typedef struct xla_scalar {
  int32_t dtype;
  void *value;
} xla_scalar;

typedef struct xla_array {
  int32_t dtype;
  size_t size;
  void *data;
} xla_array;

typedef struct xla_values { /* arguments or results */
  size_t struct_size;
  xla_extension *extension_start;
  int64_t size;
  int32_t *types;
  void **values;
} xla_values;
#define XLA_BUFFER 1

typedef struct xla_attrs { /* sorted by name */
  size_t struct_size;
  xla_extension *extension_start;
  int64_t size;
  int32_t *types;
  xla_span **names;
  void **values;
} xla_attrs;
#define XLA_ATTR_ARRAY 1
#define XLA_ATTR_SCALAR 3
#define XLA_ATTR_STRING 4

typedef struct xla_frame {
  size_t struct_size;
  xla_extension *extension_start;
  const xla_api *api; /* NULL when only metadata is asked for, before API 0.2 */
  void *context;
  int32_t stage;
  xla_values args, rets;
  xla_attrs attrs;
} xla_frame;
#define XLA_STAGE_EXECUTE 3

#define XLA_PRED 1
#define XLA_S8 2
#define XLA_S16 3
#define XLA_S32 4
#define XLA_S64 5
#define XLA_U8 6
#define XLA_U16 7
#define XLA_U32 8
#define XLA_U64 9
#define XLA_F16 10
#define XLA_F32 11
#define XLA_F64 12
#define XLA_BF16 16
#define XLA_F8E5M2 19
#define XLA_F8E4M3FN 20

_Static_assert(sizeof(void *) == 8, "the sizes below are those of a 64-bit machine");
_Static_assert(sizeof(xla_extension) == 24, "XLA_FFI_Extension_Base");
_Static_assert(sizeof(xla_api_version) == 24, "XLA_FFI_Api_Version");
_Static_assert(offsetof(xla_metadata, traits) == 32, "XLA_FFI_Metadata");
_Static_assert(offsetof(xla_metadata_extension, metadata) == 24, "XLA_FFI_Metadata_Extension");
_Static_assert(offsetof(xla_error_create_args, code) == 24, "XLA_FFI_Error_Create_Args");
_Static_assert(offsetof(xla_stream_get_args, stream) == 24, "XLA_FFI_Stream_Get_Args");
_Static_assert(offsetof(xla_api, error_create) == 48, "XLA_FFI_Api");
_Static_assert(offsetof(xla_api, stream_get) == 80, "XLA_FFI_Api");
_Static_assert(sizeof(xla_buffer) == 48, "XLA_FFI_Buffer");
_Static_assert(sizeof(xla_values) == 40, "XLA_FFI_Args, XLA_FFI_Rets");
_Static_assert(sizeof(xla_attrs) == 48, "XLA_FFI_Attrs");
_Static_assert(offsetof(xla_frame, args) == 40, "XLA_FFI_CallFrame.args");
_Static_assert(offsetof(xla_frame, attrs) == 120, "XLA_FFI_CallFrame.attrs");

typedef xla_error *xla_handler(xla_frame *frame);

#endif
