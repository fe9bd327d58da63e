/* probe.c: says which CUDA device Lamella finds here, and what with; or why it finds none (status
 * 2). */
#include <stdio.h>

#include "kernels/device.h"

enum { CUDA = 2 /* kDLCUDA */ };

int main(void) {
  const lam_device *device = NULL;
  int32_t was;
  if (lam_device_open(CUDA, &device) != LAM_OK || lam_device_enter(device, 0, &was) != LAM_OK) {
    printf("%s\n", lam_last_error());
    return 2;
  }
  printf("%s\n", device->describe());
  lam_device_leave(device, was);
  return 0;
}
