/* options.c: the command line of the demo's program, and which layers go to which stage.
 *
 * Invariant: options that options_parse gives back fit together; a mistake is one line that names
 * the option, what was found and what was expected. Leaves files and the number of workers that
 * came to those who open them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bindings/cli/demo/demo.h"

enum { TEXT, NUMBER, FLAG };

static const struct {
  const char *name;
  int kind;
  size_t at;
  int min, max;
} table[] = {
    {"--text", TEXT, offsetof(options, text), 0, 0},
    {"--pp", NUMBER, offsetof(options, pp), 1, MAX_PIPELINE},
    {"--tp", NUMBER, offsetof(options, tp), 1, MAX_WORKERS},
    {"--schedule", TEXT, offsetof(options, schedule), 0, 0},
    {"--stages-per-rank", NUMBER, offsetof(options, stages_per_rank), 1, MAX_HELD},
    {"--micro-batches", NUMBER, offsetof(options, micro_batches), 1, MAX_MICRO},
    {"--layers", NUMBER, offsetof(options, layers), 1, MAX_LAYERS},
    {"--hidden", NUMBER, offsetof(options, hidden), 32, 8192},
    {"--dtype", TEXT, offsetof(options, dtype), 0, 0},
    {"--device", TEXT, offsetof(options, device), 0, 0},
    {"--steps", NUMBER, offsetof(options, steps), 0, 1000000},
    {"--assign", TEXT, offsetof(options, assign), 0, 0},
    {"--save", TEXT, offsetof(options, save), 0, 0},
    {"--save-gradients", TEXT, offsetof(options, save_gradients), 0, 0},
    {"--check-gradients", TEXT, offsetof(options, check_gradients), 0, 0},
    {"--out", TEXT, offsetof(options, out), 0, 0},
    {"--seed", NUMBER, offsetof(options, seed), 0, 0x7fffffff},
    {"--sequence", NUMBER, offsetof(options, sequence), 32, 4096},
    {"--sequences", NUMBER, offsetof(options, sequences), 1, 256},
    {"--threads", NUMBER, offsetof(options, threads), 1, 256},
    {"--deadline", NUMBER, offsetof(options, deadline), 1, 86400},
    {"--draw", TEXT, offsetof(options, draw), 0, 0},
    {"--check", FLAG, offsetof(options, check), 0, 0},
    {"--bench", FLAG, offsetof(options, bench), 0, 0},
    {"--mixed", FLAG, offsetof(options, mixed), 0, 0},
};

static lam_status read_number(int row, const char *value, void *to) {
  char *end;
  const long n = strtol(value, &end, 10);
  if (end == value || *end || n < table[row].min || n > table[row].max)
    return fail(LAM_INVALID_ARGUMENT, "%s: found '%s', expected a number from %d to %d",
                table[row].name, value, table[row].min, table[row].max);
  *(int *)to = (int)n;
  return LAM_OK;
}

static lam_status read_one(char **argv, int argc, int *i, options *o) {
  const char *name = argv[(*i)++];
  for (int row = 0; row < (int)(sizeof table / sizeof *table); row++) {
    if (strcmp(name, table[row].name)) continue;
    void *to = (char *)o + table[row].at;
    if (table[row].kind == FLAG) return *(int *)to = 1, LAM_OK;
    if (*i == argc) return fail(LAM_INVALID_ARGUMENT, "%s: a value is missing", name);
    const char *value = argv[(*i)++];
    if (table[row].kind == NUMBER) return read_number(row, value, to);
    *(const char **)to = value;
    return LAM_OK;
  }
  return fail(LAM_INVALID_ARGUMENT, "%s: no such option", name);
}

/* -- layers to stages -- */

static lam_status read_layer(const char *assign, const char **at, int layers, int *out) {
  char *end;
  const long n = strtol(*at, &end, 10);
  if (end == *at || **at < '0' || **at > '9')
    return fail(LAM_INVALID_ARGUMENT, "--assign '%s': expected a layer's number at character %d",
                assign, (int)(*at - assign) + 1);
  if (n < 1 || n > layers)
    return fail(LAM_INVALID_ARGUMENT,
                "--assign '%s': layer %ld, but the model has layers 1 to %d (--layers)", assign, n,
                layers);
  *at = end;
  *out = (int)n;
  return LAM_OK;
}

/* One stage's list, "1-4" or "1,2,5": marks its layers with the stage. */
static lam_status read_stage(const char *assign, const char **at, int layers, int stage,
                             int *stage_of) {
  int last = 0;
  for (bool more = true; more; more = **at == ',' && (*at)++) {
    int from = 0, to;
    TRY(read_layer(assign, at, layers, &from));
    to = from;
    if (**at == '-') {
      ++*at;
      TRY(read_layer(assign, at, layers, &to));
    }
    if (to < from)
      return fail(LAM_INVALID_ARGUMENT, "--assign '%s': %d-%d runs backwards", assign, from, to);
    for (int l = from; l <= to; last = l++) {
      if (stage_of[l - 1] >= 0)
        return fail(LAM_INVALID_ARGUMENT,
                    "--assign '%s': layer %d is given twice (stages %d and %d)", assign, l,
                    stage_of[l - 1] + 1, stage + 1);
      if (last && l != last + 1)
        return fail(LAM_INVALID_ARGUMENT,
                    "--assign '%s': stage %d goes from layer %d to layer %d: a stage must hold "
                    "consecutive layers, "
                    "since activations enter and leave it once",
                    assign, stage + 1, last, l);
      stage_of[l - 1] = stage;
    }
  }
  return LAM_OK;
}

static lam_status read_assign(const char *assign, int layers, int stages, int *stage_of) {
  const char *at = assign;
  int stage = 0;
  for (;; at++, stage++) {
    if (stage < stages)
      TRY(read_stage(assign, &at, layers, stage, stage_of));
    else
      return fail(LAM_INVALID_ARGUMENT, "--assign '%s': more than the %d stages of the schedule",
                  assign, stages);
    if (*at != '|') break;
  }
  if (*at)
    return fail(LAM_INVALID_ARGUMENT,
                "--assign '%s': found '%c' at character %d, expected ',' '-' or '|'", assign, *at,
                (int)(at - assign) + 1);
  if (stage + 1 < stages)
    return fail(LAM_INVALID_ARGUMENT, "--assign '%s': names %d stages, the schedule has %d", assign,
                stage + 1, stages);
  return LAM_OK;
}

lam_status options_place(const char *assign, int layers, int stages, int *first_layer) {
  for (int s = 0; s < stages && !assign; s++) {
    lam_shard_info part = LAM_SHARD_INFO_INIT;
    TRY(lam_shard(layers, 1, 0, s, stages, &part));
    first_layer[s] = (int)part.pieces[0].begin;
  }
  first_layer[stages] = layers;
  if (!assign) return LAM_OK;

  int stage_of[MAX_LAYERS];
  for (int l = 0; l < layers; l++) stage_of[l] = -1;
  TRY(read_assign(assign, layers, stages, stage_of));
  for (int l = layers - 1; l >= 0; l--) {
    if (stage_of[l] < 0)
      return fail(LAM_INVALID_ARGUMENT, "--assign '%s': layer %d is on no stage", assign, l + 1);
    if (l && stage_of[l] < stage_of[l - 1])
      return fail(LAM_INVALID_ARGUMENT,
                  "--assign '%s': layer %d comes after layer %d but is on an earlier stage (%d)",
                  assign, l + 1, l, stage_of[l] + 1);
    first_layer[stage_of[l]] = l;
  }
  return LAM_OK;
}

/* -- the model's shape -- */

static int count_stages(const char *assign) {
  int n = 1;
  for (; *assign; assign++) n += *assign == '|';
  return n;
}

static lam_status make_shape(options *o) {
  if (strcmp(o->dtype, "f32") && strcmp(o->dtype, "bf16"))
    return fail(LAM_INVALID_ARGUMENT, "--dtype: found '%s', expected one of f32, bf16", o->dtype);
  o->on_gpu = strcmp(o->device, "cuda") == 0;
  if (!o->on_gpu && strcmp(o->device, "cpu"))
    return fail(LAM_INVALID_ARGUMENT, "--device: found '%s', expected one of cpu, cuda", o->device);
  if (o->hidden % 32 || o->sequence % 32)
    return fail(LAM_INVALID_ARGUMENT, "%s: found %d, expected a multiple of 32",
                o->hidden % 32 ? "--hidden" : "--sequence",
                o->hidden % 32 ? o->hidden : o->sequence);
  o->bits = strcmp(o->dtype, "bf16") ? 32 : 16;
  o->head_size = o->hidden % 64 ? 32 : 64;
  o->heads = o->hidden / o->head_size;
  o->ffn = (o->hidden * 8 / 3 + 31) / 32 * 32; /* gated: as many weights as 4 H without a gate */
  o->tokens = (int64_t)o->sequences * o->sequence;
  if (o->tp > o->heads)
    return fail(LAM_INVALID_ARGUMENT,
                "--tp %d: the model has %d attention heads (hidden %d), and each worker needs one",
                o->tp, o->heads, o->hidden);
  if (o->pp * o->tp > MAX_WORKERS)
    return fail(LAM_INVALID_ARGUMENT, "--pp %d --tp %d: found %d workers, expected at most %d",
                o->pp, o->tp, o->pp * o->tp, MAX_WORKERS);
  return LAM_OK;
}

static lam_status check_layers(const options *o) {
  if (o->n_stages <= o->layers) return LAM_OK;
  if (o->per_worker == 1)
    return fail(LAM_INVALID_ARGUMENT, "--pp %d: more stages than layers (%d)", o->pp, o->layers);
  return fail(LAM_INVALID_ARGUMENT,
              "--pp %d: with %d stages each, as %s has them, more stages than layers (%d)", o->pp,
              o->per_worker, o->schedule, o->layers);
}

lam_status options_parse(int argc, char **argv, options *out) {
  *out = (options){.text = "/usr/share/common-licenses/GPL-3",
                   .schedule = "1f1b",
                   .dtype = "f32",
                   .device = "cpu",
                   .draw = "",
                   .tp = 1,
                   .layers = 8,
                   .hidden = 256,
                   .sequence = 128,
                   .sequences = 2,
                   .micro_batches = 8,
                   .steps = 30,
                   .threads = 1,
                   .seed = 1};
  for (int i = 1; i < argc;) TRY(read_one(argv, argc, &i, out));
  TRY(plan_shape(out, out->assign ? count_stages(out->assign) : 0));
  TRY(make_shape(out));
  TRY(check_layers(out));
  TRY(options_place(out->assign, out->layers, out->n_stages, out->first_layer));
  return plan_make(out);
}

static int64_t count_parameters(const options *o) {
  const int64_t h = o->hidden;
  return o->layers * (4 * h * h + 3 * h * o->ffn + 2 * h) + (2 * VOCAB + o->sequence + 1) * h;
}

void print_plan(const options *o) {
  emit(
      "{\"pp\": %d, \"tp\": %d, \"micro_batches\": %d, \"tokens\": %lld, \"steps\": %d, "
      "\"layers\": %d, \"hidden\": %d, ",
      o->pp, o->tp, o->micro_batches, (long long)o->tokens * o->micro_batches, o->steps, o->layers,
      o->hidden);
  emit("\"heads\": %d, \"ffn\": %d, \"sequence\": %d, \"sequences\": %d, ", o->heads, o->ffn,
       o->sequence, o->sequences);
  emit("\"seed\": %d, \"dtype\": \"%s\", \"device\": \"%s\", ", o->seed, o->dtype, here->name);
  emit_text("text", o->text);
  emit(", ");
  emit_text("schedule", o->schedule);
  emit(", ");
  emit_text("why", o->why);
  emit(", \"stages\": [");
  for (int s = 0; s < o->n_stages; s++)
    emit("%s[%d, %d, %d]", s ? ", " : "", o->first_layer[s] + 1, o->first_layer[s + 1],
         o->rank_of_stage[s]);
  emit("], \"schedules\": [");
  for (int i = 0; lam_schedule_name(i); i++) emit("%s\"%s\"", i ? ", " : "", lam_schedule_name(i));
  emit("], \"parameters\": %lld}\n", (long long)count_parameters(o));
}
