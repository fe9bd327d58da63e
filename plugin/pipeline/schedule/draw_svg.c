/* draw_svg.c: events as an SVG: a lane per worker, a box per action with its micro-batch, time
 * below in round steps, the colours' meaning above, each worker's idle share at the right.
 * Transfers are thin strips at a lane's foot; messages lines from the box that made them to the one
 * that read them.
 *
 * Invariant: well-formed XML 1.0 without outside references; colours are light enough for black
 * text, and differ in lightness.
 * Leaves waits out: they are the lane's background. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "plugin/pipeline/schedule/draw.h"

enum { LEFT = 84, PLOT = 1020, RIGHT = 96, TOP = 46, LANE = 28, PITCH = 34, STRIP = 4, AXIS = 40 };

static const struct {
  const char *class_name, *fill, *deep; /* deep: every second stage of a worker */
} looks[] = {
    [LAM_KIND_F] = {"f", "#b7d7f4", "#8dbbe6"},
    [LAM_KIND_I] = {"i", "#bfe8dc", "#93d1bf"},
    [LAM_KIND_W] = {"w", "#fbe3a6", "#efc96a"},
    [LAM_KIND_B] = {"b", "#c9e8b6", "#a3d286"},
    [LAM_KIND_SEND] = {"s", "#8a8a8a", "#8a8a8a"},
    [LAM_KIND_RECV] = {"r", "#bdbdbd", "#bdbdbd"},
    [LAM_KIND_WAIT] = {"v", "none", "none"},
    [LAM_KIND_REDUCE_GRAD] = {"d", "#e3cdee", "#cba6de"},
};

static double x_of(const lam_picture *p, int64_t t) {
  return LEFT + (double)(t - p->first) / (double)(p->last - p->first) * PLOT;
}

static int lane_top(int rank) { return TOP + rank * PITCH; }

static void put_style(lam_sink *out) {
  lam_sink_text(out,
                "<style>text{font:12px "
                "sans-serif;fill:#222}.m{font-size:11px;text-anchor:middle}.t{text-anchor:middle;"
                "fill:#666}.l{text-anchor:end}.bg{fill:#f2f2f2}.g{stroke:#d8d8d8}"
                ".e{stroke:#555;stroke-width:1.5;stroke-opacity:.55}");
  for (int kind = LAM_KIND_F; kind <= LAM_KIND_REDUCE_GRAD; kind++) {
    if (kind == LAM_KIND_WAIT) continue;
    const char *stroke = lam_kind_is_work(kind) ? ";stroke:#fff;stroke-width:1" : "";
    lam_sink_printf(out, ".%s{fill:%s%s}.%s2{fill:%s%s}", looks[kind].class_name, looks[kind].fill,
                    stroke, looks[kind].class_name, looks[kind].deep, stroke);
  }
  lam_sink_text(out, "</style>\n");
}

static double put_key(const char *class_name, const char *text, double x, lam_sink *out) {
  lam_sink_printf(out,
                  "<rect class=\"%s\" x=\"%.0f\" y=\"14\" width=\"16\" height=\"14\"/><text "
                  "x=\"%.0f\" y=\"26\">%s</text>\n",
                  class_name, x, x + 22, text);
  int length = 0;
  while (text[length]) length++;
  return x + 22 + 6.6 * length + 24;
}

static bool is_first_of_its_path(const lam_picture *p, uint64_t carrier) {
  for (uint64_t i = 0; i < carrier; i++)
    if (!strcmp(p->carriers[i].path, p->carriers[carrier].path)) return false;
  return true;
}

static void put_carriers(const lam_picture *p, double x, lam_sink *out) {
  const char *between = "";
  lam_sink_printf(out, "<text x=\"%.0f\" y=\"26\">lines: messages, by ", x);
  for (uint64_t i = 0; i < p->n_carriers; i++) {
    if (!is_first_of_its_path(p, i)) continue;
    lam_sink_printf(out, "%s%s", between, p->carriers[i].path);
    between = ", ";
  }
  lam_sink_text(out, "</text>\n");
}

static void put_legend(const lam_picture *p, lam_sink *out) {
  double x = LEFT;
  for (int kind = LAM_KIND_F; kind <= LAM_KIND_REDUCE_GRAD; kind++)
    if (kind != LAM_KIND_WAIT && (p->kinds >> kind & 1))
      x = put_key(looks[kind].class_name, lam_event_kind_name(kind), x, out);
  x = put_key("bg", "idle", x, out);
  if (p->n_chunks > 1) {
    lam_sink_printf(out,
                    "<text x=\"%.0f\" y=\"26\">deeper: every second stage of a worker</text>\n", x);
    x += 260;
  }
  if (p->n_messages > 0) put_carriers(p, x, out);
}

/* 1, 2 or 5 times a power of ten, so that at most ten steps make the whole. */
static double round_step(double whole) {
  const double least = whole / 10, power = pow(10, floor(log10(least))), digit = least / power;
  return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

static void put_axis(const lam_picture *p, lam_sink *out) {
  const lam_time_unit unit = lam_picture_unit(p);
  const double whole = (double)(p->last - p->first) / unit.ns, step = round_step(whole);
  const int foot = lane_top(p->n_ranks);
  for (int i = 0; i * step <= whole * (1 + 1e-9); i++) {
    const double x = LEFT + i * step / whole * PLOT;
    lam_sink_printf(out,
                    "<line class=\"g\" x1=\"%.2f\" y1=\"%d\" x2=\"%.2f\" y2=\"%d\"/><text "
                    "class=\"t\" x=\"%.2f\" "
                    "y=\"%d\">%.6g</text>\n",
                    x, TOP - 6, x, foot, x, foot + 16, i * step);
  }
  lam_sink_printf(out, "<text x=\"%d\" y=\"%d\">%s</text>\n", LEFT + PLOT + 16, foot + 16,
                  unit.name);
}

static void put_lane(const lam_picture *p, int rank, lam_sink *out) {
  const int y = lane_top(rank);
  lam_sink_printf(out, "<rect class=\"bg\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>", LEFT, y,
                  PLOT, LANE);
  lam_sink_printf(out, "<text class=\"l\" x=\"%d\" y=\"%d\">worker %d", LEFT - 10, y + 19, rank);
  lam_picture_put_carriers(p, rank, "<title>", "</title>", out);
  lam_sink_text(out, "</text>");
  lam_sink_printf(out, "<text x=\"%d\" y=\"%d\">idle %.1f %%</text>\n", LEFT + PLOT + 10, y + 19,
                  100 * lam_picture_idle(p, rank));
}

static void put_title(const lam_picture *p, const lam_event *e, lam_sink *out) {
  const lam_time_unit unit = lam_picture_unit(p);
  lam_sink_printf(out, "<title>stage %d", e->stage);
  if (e->micro >= 0) lam_sink_printf(out, ", micro-batch %d", e->micro);
  lam_sink_printf(out, ": %s, %.4g to %.4g %s</title>", lam_event_kind_name(e->kind),
                  (double)(e->start - p->first) / unit.ns, (double)(e->end - p->first) / unit.ns,
                  unit.name);
}

/* The number stands in its box where it fits: 6.5 px a digit. */
static void put_box(const lam_picture *p, const lam_event *e, lam_sink *out) {
  const double x = x_of(p, e->start), width = x_of(p, e->end) - x;
  const bool work = lam_event_is_work(e);
  const int height = work ? LANE : STRIP, y = lane_top(e->rank) + LANE - height;
  char label[16];
  const int digits = e->micro < 0 ? 0 : snprintf(label, sizeof label, "%d", e->micro);
  lam_sink_printf(out, "<rect class=\"%s%s\" x=\"%.2f\" y=\"%d\" width=\"%.2f\" height=\"%d\">",
                  looks[e->kind].class_name, work && p->chunk[e->stage] % 2 ? "2" : "", x, y, width,
                  height);
  put_title(p, e, out);
  lam_sink_text(out, "</rect>");
  if (work && digits && width >= 6.5 * digits + 2)
    lam_sink_printf(out, "<text class=\"m\" x=\"%.2f\" y=\"%d\">%s</text>", x + width / 2, y + 18,
                    label);
  lam_sink_text(out, "\n");
}

static void put_boxes(const lam_picture *p, bool work, lam_sink *out) {
  for (uint64_t i = 0; i < p->n; i++)
    if (p->events[i].kind != LAM_KIND_WAIT && lam_event_is_work(&p->events[i]) == work)
      put_box(p, &p->events[i], out);
}

static void put_line(const lam_picture *p, const lam_message *m, lam_sink *out) {
  const lam_time_unit unit = lam_picture_unit(p);
  const double left = (double)(m->from->end - p->first), read = (double)(m->to->start - p->first);
  lam_sink_printf(out, "<line class=\"e\" x1=\"%.2f\" y1=\"%d\" x2=\"%.2f\" y2=\"%d\">",
                  x_of(p, m->from->end), lane_top(m->from->rank) + LANE / 2, x_of(p, m->to->start),
                  lane_top(m->to->rank) + LANE / 2);
  lam_sink_printf(out,
                  "<title>edge %d, micro-batch %d: %s by %s, made at %.4g, read at %.4g %s</title>"
                  "</line>\n",
                  m->by->edge, m->to->micro, lam_message_name(m), m->by->path, left / unit.ns,
                  read / unit.ns, unit.name);
}

lam_status lam_draw_svg(const lam_picture *p, lam_sink *out) {
  const int width = LEFT + PLOT + RIGHT, height = lane_top(p->n_ranks) + AXIS;
  lam_sink_printf(out,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
                  "height=\"%d\">\n",
                  width, height, width, height);
  put_style(out);
  lam_sink_printf(out, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", width, height);
  put_legend(p, out);
  for (int rank = 0; rank < p->n_ranks; rank++) put_lane(p, rank, out);
  put_axis(p, out);
  put_boxes(p, true, out);
  put_boxes(p, false, out);
  for (uint64_t i = 0; i < p->n_messages; i++) put_line(p, &p->messages[i], out);
  lam_sink_text(out, "</svg>\n");
  return LAM_OK;
}
