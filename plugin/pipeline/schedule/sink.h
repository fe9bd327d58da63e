/* sink.h: text written into a caller's buffer of limited room, while its whole length is
 * counted.
 * Invariant: nothing is written past room - 1, and what is there is always closed by a NUL (room
 * 0: nothing at all).
 * Leaves asking again with more room to the caller. */
#ifndef LAMELLA_PLUGIN_PIPELINE_SCHEDULE_SINK_H
#define LAMELLA_PLUGIN_PIPELINE_SCHEDULE_SINK_H

#include <stdint.h>

typedef struct lam_sink {
  char *buf;     /* may be NULL: only count */
  uint64_t room; /* bytes of buf */
  uint64_t n;    /* length of the whole text so far */
} lam_sink;

lam_sink lam_sink_open(char *buf, uint64_t room);
void lam_sink_text(lam_sink *s, const char *text);
void lam_sink_bytes(lam_sink *s, const char *text, uint64_t n);
void lam_sink_int(lam_sink *s, int64_t value);
void lam_sink_printf(lam_sink *s, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
