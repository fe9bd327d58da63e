/* draw_perfetto.c: events as a Chrome trace (JSON), which ui.perfetto.dev and chrome://tracing
 * open: a process per worker, one track for its stages and one for its transfers; messages are
 * flows between stages, named by what carried them.
 * Invariant: times are exact, in us with three decimals; nothing in a name needs escaping.
 * Leaves waits on the stages' track: nothing else is there at that time. */
#include <stdio.h>

#include "plugin/pipeline/schedule/draw.h"

enum { TRACK_STAGES, TRACK_TRANSFERS };

static const char *const short_names[] = {
    [LAM_KIND_F] = "F",        [LAM_KIND_I] = "I",
    [LAM_KIND_W] = "W",        [LAM_KIND_B] = "B",
    [LAM_KIND_SEND] = "send ", [LAM_KIND_RECV] = "receive ",
    [LAM_KIND_WAIT] = "wait ", [LAM_KIND_REDUCE_GRAD] = "reduce"};

static bool is_transfer(const lam_event *e) {
  return e->kind == LAM_KIND_SEND || e->kind == LAM_KIND_RECV;
}

static void put_name(lam_sink *out, const char *what, int rank, int track, const char *name,
                     int number) {
  lam_sink_printf(out,
                  "{\"ph\":\"M\",\"name\":\"%s\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":\"%s",
                  what, rank, track, name);
  if (number >= 0) lam_sink_printf(out, " %d", number);
  lam_sink_text(out, "\"}},\n");
}

static void put_names(const lam_picture *p, int rank, lam_sink *out) {
  char head[96];
  put_name(out, "process_name", rank, 0, "worker", rank);
  snprintf(head, sizeof head,
           "{\"ph\":\"M\",\"name\":\"process_labels\",\"pid\":%d,\"args\":{\"labels\":\"", rank);
  lam_picture_put_carriers(p, rank, head, "\"}},\n", out);
  put_name(out, "thread_name", rank, TRACK_STAGES, "stages", -1);
  if (p->kinds & (1u << LAM_KIND_SEND | 1u << LAM_KIND_RECV))
    put_name(out, "thread_name", rank, TRACK_TRANSFERS, "transfers", -1);
}

static void put_time(lam_sink *out, const char *key, int64_t ns) {
  lam_sink_printf(out, "\"%s\":%lld.%03lld,", key, (long long)(ns / 1000), (long long)(ns % 1000));
}

static void put_event(const lam_picture *p, const lam_event *e, lam_sink *out) {
  lam_sink_printf(out, "{\"ph\":\"X\",\"name\":\"%s", short_names[e->kind]);
  if (e->kind != LAM_KIND_REDUCE_GRAD) lam_sink_int(out, e->micro);
  lam_sink_printf(out, "\",\"cat\":\"%s\",\"pid\":%d,\"tid\":%d,", lam_event_kind_name(e->kind),
                  e->rank, is_transfer(e) ? TRACK_TRANSFERS : TRACK_STAGES);
  put_time(out, "ts", e->start - p->first);
  put_time(out, "dur", e->end - e->start);
  lam_sink_printf(out, "\"args\":{\"stage\":%d,\"micro\":%d,\"part\":%d}}", e->stage, e->micro,
                  e->part);
}

/* Bound to the work at that time; its end is not in it any more. */
static void put_flow(const lam_picture *p, uint64_t i, bool leaves, lam_sink *out) {
  const lam_message *m = &p->messages[i];
  const lam_event *at = leaves ? m->from : m->to;
  const int64_t last = at->end > at->start ? at->end - 1 : at->end;
  lam_sink_printf(
      out, ",\n{\"ph\":\"%s\",\"id\":%llu,\"name\":\"%s\",\"cat\":\"%s\",\"pid\":%d,\"tid\":%d,",
      leaves ? "s" : "f\",\"bp\":\"e", (unsigned long long)i, m->by->path, lam_message_name(m),
      at->rank, TRACK_STAGES);
  put_time(out, "ts", (leaves ? last : at->start) - p->first);
  lam_sink_printf(out, "\"args\":{\"edge\":%d,\"micro\":%d,\"path\":\"%s\"}}", m->by->edge,
                  m->to->micro, m->by->path);
}

lam_status lam_draw_perfetto(const lam_picture *p, lam_sink *out) {
  lam_sink_text(out, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
  for (int rank = 0; rank < p->n_ranks; rank++) put_names(p, rank, out);
  for (uint64_t i = 0; i < p->n; i++) {
    put_event(p, &p->events[i], out);
    if (i + 1 < p->n) lam_sink_text(out, ",\n");
  }
  for (uint64_t i = 0; i < p->n_messages; i++)
    put_flow(p, i, true, out), put_flow(p, i, false, out);
  lam_sink_text(out, "\n]}\n");
  return LAM_OK;
}
