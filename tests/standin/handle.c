/* handle.c: handles of streams, events, graphs and descriptors.
 *
 * Invariant: a handle's number is used once, so that one that was destroyed is told from one that
 * never was. Handles are no addresses: a program that looks inside one traps.
 * Leaves the objects to those who made them. */
#include <stdlib.h>

#include "tests/standin/inside.h"

typedef struct table {
  const char *name;
  void **objects; /* NULL: destroyed */
  int64_t n, alive;
} table;

static table tables[SI_N_KINDS] = {
    [SI_STREAM] = {"stream", NULL, 0, 0},      [SI_EVENT] = {"event", NULL, 0, 0},
    [SI_GRAPH] = {"graph", NULL, 0, 0},        [SI_EXEC] = {"instantiated graph", NULL, 0, 0},
    [SI_LT] = {"cuBLASLt handle", NULL, 0, 0}, [SI_NCCL] = {"communicator", NULL, 0, 0},
};

/* At the bottom of the address space, where nothing is: handle i at 16 (i + 1) of its kind. */
static uintptr_t base(si_kind kind) { return ((uintptr_t)kind + 1) << 24; }

void *si_handle_new(si_kind kind, void *object) {
  table *t = &tables[kind];
  const size_t n = (size_t)t->n;
  if ((n & (n - 1)) == 0) /* full: twice as long, for sanitizers copy it each time */
    t->objects = si_grown(t->objects, (n ? 2 * n : 1) * sizeof *t->objects);
  t->objects[t->n++] = object;
  t->alive++;
  return (void *)(base(kind) + 16 * (uintptr_t)t->n);
}

static int64_t number(si_kind kind, const void *handle) {
  const uintptr_t at = (uintptr_t)handle - base(kind);
  return (uintptr_t)handle < base(kind) || at % 16 || at / 16 > (uintptr_t)tables[kind].n
             ? -1
             : (int64_t)(at / 16) - 1;
}

void *si_handle_find(si_kind kind, const void *handle, const char *who) {
  const table *t = &tables[kind];
  const int64_t i = number(kind, handle);
  if (i >= 0 && t->objects[i]) return t->objects[i];
  if (i >= 0)
    si_report("%s: %s %p was destroyed before", who, t->name, handle);
  else
    si_report("%s: %p is no %s", who, handle, t->name);
  return NULL;
}

void si_handle_drop(si_kind kind, const void *handle) {
  const int64_t i = number(kind, handle);
  if (i < 0 || !tables[kind].objects[i]) return;
  tables[kind].objects[i] = NULL;
  tables[kind].alive--;
}

int64_t si_handles_alive(si_kind kind) { return tables[kind].alive; }

bool si_handle_at(si_kind kind, int64_t i, void **out_object) {
  *out_object = i < tables[kind].n ? tables[kind].objects[i] : NULL;
  return i < tables[kind].n;
}

void si_handles_forget(void) {
  for (int kind = 0; kind < SI_N_KINDS; kind++) {
    for (int64_t i = 0; i < tables[kind].n; i++) {
      if (kind == SI_LT) free(tables[kind].objects[i]); /* nothing refers to it */
      tables[kind].objects[i] = NULL;
    }
    tables[kind].alive = 0;
  }
}
