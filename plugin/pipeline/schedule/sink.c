/* sink.c: text into a caller's buffer, cut at its room.
 * Invariant and what it leaves: see sink.h. */
#include "plugin/pipeline/schedule/sink.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

lam_sink lam_sink_open(char *buf, uint64_t room) {
  if (buf && room) buf[0] = 0;
  return (lam_sink){.buf = buf, .room = buf ? room : 0};
}

void lam_sink_bytes(lam_sink *s, const char *text, uint64_t n) {
  if (s->n + 1 < s->room) {
    const uint64_t left = s->room - 1 - s->n, fits = n < left ? n : left;
    memcpy(s->buf + s->n, text, fits);
    s->buf[s->n + fits] = 0;
  }
  s->n += n;
}

void lam_sink_text(lam_sink *s, const char *text) { lam_sink_bytes(s, text, strlen(text)); }

void lam_sink_int(lam_sink *s, int64_t value) { /* a table of a million actions is mostly these */
  char digits[24], *p = digits + sizeof digits;
  uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
  do *--p = (char)('0' + rest % 10);
  while (rest /= 10);
  if (value < 0) *--p = '-';
  lam_sink_bytes(s, p, (uint64_t)(digits + sizeof digits - p));
}

void lam_sink_printf(lam_sink *s, const char *format, ...) {
  char line[1024]; /* longer than any line that is printed */
  va_list args;
  va_start(args, format);
  const int n = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  if (n > 0) lam_sink_bytes(s, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}
