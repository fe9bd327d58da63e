/* device.c: which cards there are, what they can do, and the names of errors.
 *
 * Invariant: the numbers are those of a real card of the compute capability that the test set; the
 * name says that there is none.
 * Leaves memory and streams to copy.c and stream.c. */
#include <stdio.h>
#include <string.h>

#include "tests/standin/inside.h"

cudaError_t CUDARTAPI cudaDriverGetVersion(int *out) {
  *out = si_machine_is.driver;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaRuntimeGetVersion(int *out) {
  *out = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGetDeviceCount(int *out) {
  si_enter();
  *out = 0;
  const cudaError_t e = si_lost(si_device);
  const bool none = e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice;
  if (!none) *out = si_machine_is.n_devices;
  return si_leave_as_is(none ? e : cudaSuccess);
}

cudaError_t CUDARTAPI cudaGetDevice(int *out) {
  si_enter();
  *out = si_device;
  return si_leave(cudaSuccess);
}

static bool is_device(int device) { return device >= 0 && device < si_machine_is.n_devices; }

cudaError_t CUDARTAPI cudaSetDevice(int device) {
  si_enter();
  if (!is_device(device)) return si_leave(cudaErrorInvalidDevice);
  si_device = device;
  return si_leave(cudaSuccess);
}

int si_n_sms(void) { return si_machine_is.sm >= 100 ? 148 : si_machine_is.sm >= 90 ? 132 : 108; }

static int most_shared(void) { return si_machine_is.sm >= 90 ? 232448 : 166912; }

static cudaError_t attribute(int *out, enum cudaDeviceAttr attr) {
  switch (attr) {
    case cudaDevAttrComputeCapabilityMajor:
      *out = si_machine_is.sm / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *out = si_machine_is.sm % 10;
      break;
    case cudaDevAttrMultiProcessorCount:
      *out = si_n_sms();
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *out = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *out = 2048;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *out = 32;
      break;
    case cudaDevAttrWarpSize:
      *out = 32;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *out = 49152;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *out = most_shared();
      break;
    case cudaDevAttrL2CacheSize:
      *out = 50 << 20;
      break;
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrCooperativeLaunch:
      *out = 1;
      break;
    case cudaDevAttrIntegrated:
      *out = 0;
      break;
    default:
      return si_misuse(cudaErrorInvalidValue, "attribute %d is not in the stand-in", (int)attr);
  }
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr attr, int device) {
  si_enter();
  return si_leave(is_device(device) ? attribute(out, attr) : cudaErrorInvalidDevice);
}

cudaError_t CUDARTAPI cudaGetDeviceProperties(struct cudaDeviceProp *out, int device) {
  si_enter();
  if (!is_device(device)) return si_leave(cudaErrorInvalidDevice);
  memset(out, 0, sizeof *out);
  snprintf(out->name, sizeof out->name, "stand-in for sm_%d (no GPU)", si_machine_is.sm);
  out->totalGlobalMem = si_machine_is.memory;
  out->pciBusID = device + 1;
  out->major = si_machine_is.sm / 10;
  out->minor = si_machine_is.sm % 10;
  out->multiProcessorCount = si_n_sms();
  out->warpSize = 32;
  out->maxThreadsPerBlock = 1024;
  out->maxThreadsPerMultiProcessor = 2048;
  out->sharedMemPerBlock = 49152;
  out->sharedMemPerBlockOptin = (size_t)most_shared();
  out->l2CacheSize = 50 << 20;
  out->unifiedAddressing = out->canMapHostMemory = out->concurrentKernels = 1;
  return si_leave(cudaSuccess);
}

cudaError_t CUDARTAPI cudaDeviceCanAccessPeer(int *out, int device, int peer) {
  si_enter();
  if (!is_device(device) || !is_device(peer)) return si_leave(cudaErrorInvalidDevice);
  *out = device != peer && !si_machine_is.cards_apart;
  return si_leave(cudaSuccess);
}

/* -- errors -- */

#define FOR_EACH_ERROR(E)                                                                         \
  E(cudaSuccess, "no error")                                                                      \
  E(cudaErrorInvalidValue, "invalid argument")                                                    \
  E(cudaErrorMemoryAllocation, "out of memory")                                                   \
  E(cudaErrorInvalidConfiguration, "invalid configuration argument")                              \
  E(cudaErrorInvalidPitchValue, "invalid pitch argument")                                         \
  E(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")  \
  E(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable")             \
  E(cudaErrorNoDevice, "no CUDA-capable device is detected")                                      \
  E(cudaErrorInvalidDevice, "invalid device ordinal")                                             \
  E(cudaErrorDeviceUninitialized, "invalid device context")                                       \
  E(cudaErrorInvalidResourceHandle, "invalid resource handle")                                    \
  E(cudaErrorIllegalState, "the operation cannot be performed in the present state")              \
  E(cudaErrorNotReady, "device not ready")                                                        \
  E(cudaErrorIllegalAddress, "an illegal memory access was encountered")                          \
  E(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                     \
  E(cudaErrorLaunchTimeout, "the launch timed out and was terminated")                            \
  E(cudaErrorPeerAccessUnsupported, "peer access is not supported between these two devices")     \
  E(cudaErrorHostMemoryAlreadyRegistered,                                                         \
    "part or all of the requested memory range is already mapped")                                \
  E(cudaErrorHostMemoryNotRegistered,                                                             \
    "pointer does not correspond to a registered memory region")                                  \
  E(cudaErrorMapBufferObjectFailed, "mapping of buffer object failed")                            \
  E(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled")                          \
  E(cudaErrorContextIsDestroyed, "context is destroyed")                                          \
  E(cudaErrorMisalignedAddress, "misaligned address")                                             \
  E(cudaErrorLaunchFailure, "unspecified launch failure")                                         \
  E(cudaErrorNotSupported, "operation not supported")                                             \
  E(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")        \
  E(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture") \
  E(cudaErrorStreamCaptureMerge,                                                                  \
    "operation would result in a merge of separate capture sequences")                            \
  E(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began")      \
  E(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                         \
  E(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")   \
  E(cudaErrorStreamCaptureImplicit,                                                               \
    "operation would make the legacy stream depend on a capturing blocking stream")               \
  E(cudaErrorCapturedEvent,                                                                       \
    "operation not permitted on an event last recorded in a capturing stream")                    \
  E(cudaErrorStreamCaptureWrongThread,                                                            \
    "attempt to terminate a thread-local capture sequence from another thread")

static const struct {
  cudaError_t code;
  const char *name, *text;
} errors[] = {
#define ROW(code, text) {code, #code, text},
    FOR_EACH_ERROR(ROW)
#undef ROW
};

const char *CUDARTAPI cudaGetErrorName(cudaError_t e) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == e) return errors[i].name;
  return "unrecognized error code";
}

const char *CUDARTAPI cudaGetErrorString(cudaError_t e) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == e) return errors[i].text;
  return "unrecognized error code";
}
