/* launched.c: joins the world that its launcher made and sums over it: launched VALUE [FOLDER].
 *
 * With FOLDER it first writes to the pipe `ready` there, and waits until `go` is opened.
 * Rank r gives VALUE * 2^r, so that a sum tells exactly who took part. Short, middling and long
 * tensors travel on different paths; all of their elements must hold the same. */
#include <lamella.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define TRY(call) \
  if ((call) != LAM_OK) return fprintf(stderr, "launched: %s\n", lam_last_error()), 1

enum { LONGEST = 300000 };
static float x[LONGEST], y[LONGEST];

/* y = the sum over all ranks of x, n elements. */
static lam_status sum(lam_group *group, int64_t n) {
  DLTensor tx = {x, {kDLCPU, 0}, 1, {kDLFloat, 32, 1}, &n, NULL, 0}, ty = tx;
  ty.data = y;
  const DLTensor *inputs[] = {&tx};
  DLTensor *outputs[] = {&ty};
  const lam_attr attrs[] = {lam_attr_i(lam_group_handle(group))};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_all_reduce;
  call.inputs = inputs, call.n_inputs = 1;
  call.outputs = outputs, call.n_outputs = 1;
  call.attrs = attrs, call.n_attrs = 1;
  return lam_run(NULL, &call);
}

/* Ranks of several worlds join at one time, whichever launcher was the faster. */
static int wait_for_the_others(const char *folder) {
  FILE *ready = chdir(folder) == 0 ? fopen("ready", "w") : NULL;
  if (!ready || fputc('r', ready) == EOF || fclose(ready)) return perror("ready"), 1;
  FILE *go = fopen("go", "r");
  return go ? fclose(go) : (perror("go"), 1);
}

int main(int argc, char **argv) {
  static const int64_t sizes[] = {1, 5000, LONGEST};
  lam_group *group;
  lam_group_desc desc = LAM_GROUP_DESC_INIT;
  if (argc > 2 && wait_for_the_others(argv[2])) return 1;
  desc.deadline_ms = desc.first_deadline_ms = 60000;
  TRY(lam_group_create_from_env(NULL, &desc, &group));
  lam_group_info info = LAM_GROUP_INFO_INIT;
  TRY(lam_group_get_info(group, &info));
  const float mine = (float)(argc > 1 ? atof(argv[1]) : 1) * (float)(1 << info.rank);
  for (int64_t i = 0; i < LONGEST; i++) x[i] = mine;
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    TRY(sum(group, sizes[s]));
    for (int64_t i = 1; i < sizes[s]; i++)
      if (y[i] != y[0]) return fprintf(stderr, "launched: y[%ld] differs\n", (long)i), 1;
    printf("rank %d of %d: %ld x %g\n", info.rank, info.size, (long)sizes[s], (double)y[0]);
  }
  lam_group_destroy(group);
  return 0;
}
