/* rendezvous.c: how the ranks of a group meet on one machine: rank 0 listens on an abstract Unix
 * socket named by the id, the others show their cards (192 bytes and two fds), and each gets
 * everyone else's.
 *
 * Invariant: a card is passed on only after its bearer's user id and secret were checked; every
 * message is 256 bytes, and a connection that does not speak in time is dropped without holding
 * up the others (a member that was dropped so comes again). The socket has no file and ends with
 * rank 0. What a stranger does (wrong user, wrong secret, silence) costs only its own connection; a
 * member that contradicts the others (size, a rank claimed twice) ends the meeting for all with one
 * text.
 * Leaves what a card says to the engine. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "plugin/comm/comm.h"

#define MAGIC 0x314d414cu /* "LAM1": also the protocol's version */
#define SECRET_BYTES 24
#define SPEAK_MS 5000 /* from accept to a whole hello */
#define LINGER_MS 500 /* after a failure: for members who are on their way */
#define GRACE_MS 1000
#define SLICE_MS 20
#define TRIES 3 /* a member that rank 0 sent away unheard: it slept longer than SPEAK_MS */

enum { KIND_HELLO = 1, KIND_CARD, KIND_REFUSED };

typedef struct note {
  uint32_t magic, kind;
  int32_t rank, size;
  lam_status status;
  uint32_t n_fds;
  uint64_t tag;
  unsigned char secret[SECRET_BYTES];
  unsigned char data[LAM_CARD_BYTES]; /* a card's; a refusal's text */
  uint64_t reserved;
} note;
_Static_assert(sizeof(note) == 256, "fixed size on the wire");

/* ---- Ids ------------------------------------------------------------------------------------- */

typedef struct id_layout {
  uint32_t magic, transport; /* 1: Unix socket, one machine */
  uint8_t nonce[8];          /* names the socket: everyone may know it */
  uint8_t secret[SECRET_BYTES];
  uint8_t zero[88];
} id_layout;
_Static_assert(sizeof(id_layout) == sizeof(lam_group_id), "an id is its layout");

void lam_group_id_derive(const uint8_t secret[32], lam_group_id *out_id) {
  id_layout id = {.magic = MAGIC, .transport = 1};
  memcpy(id.nonce, secret, sizeof id.nonce);
  memcpy(id.secret, secret + sizeof id.nonce, sizeof id.secret);
  memcpy(out_id, &id, sizeof id);
}

lam_status lam_group_id_create(lam_group_id *out_id) {
  uint8_t secret[32];
  if (!out_id) return lam_fail(LAM_INVALID_ARGUMENT, "lam_group_id_create: out_id is NULL");
  memset(out_id, 0, sizeof *out_id);
  if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret)
    return lam_fail(LAM_UNAVAILABLE, "lam_group_id_create: the system gives no random bytes: %s",
                    strerror(errno));
  lam_group_id_derive(secret, out_id);
  return LAM_OK;
}

static lam_status id_open(const lam_group_id *id, id_layout *out) {
  memcpy(out, id, sizeof *out);
  if (out->magic == MAGIC && out->transport == 1) return LAM_OK;
  return lam_fail(LAM_INVALID_ARGUMENT,
                  "id: not one that lam_group_id_create made (its first word is 0x%08x)",
                  out->magic);
}

static socklen_t socket_name(const id_layout *id, struct sockaddr_un *a) {
  *a = (struct sockaddr_un){.sun_family = AF_UNIX};
  int n =
      snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "lamella-"); /* a leading NUL: no file */
  for (size_t i = 0; i < sizeof id->nonce; i++)
    n += snprintf(a->sun_path + 1 + n, 3, "%02x", id->nonce[i]);
  return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

/* ---- Messages -------------------------------------------------------------------------------- */

/* 1 sent, 0 try again, -1 the other side is gone. */
static int note_send(int sock, const note *m, const int *fds, int n_fds) {
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * LAM_CARD_FDS)];
  } control;
  struct iovec part = {(void *)(uintptr_t)m, sizeof *m};
  struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
  if (n_fds > 0) {
    memset(&control, 0, sizeof control);
    msg.msg_control = &control;
    msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n_fds);
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n_fds);
    memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)n_fds);
  }
  if (sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof *m) return 1;
  return errno == EAGAIN || errno == EINTR || errno == ETOOMANYREFS || errno == ENOBUFS ? 0 : -1;
}

static void take_fds(struct msghdr *msg, int fds[LAM_CARD_FDS]) {
  int n = 0;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      memcpy(&fd, (char *)c + at, sizeof fd);
      if (n < LAM_CARD_FDS)
        fds[n++] = fd;
      else
        close(fd);
    }
  }
}

static void drop_fds(int fds[LAM_CARD_FDS]) {
  for (int i = 0; i < LAM_CARD_FDS; i++) {
    if (fds[i] >= 0) close(fds[i]);
    fds[i] = -1;
  }
}

/* 1 received, 0 nothing yet, -1 the other side is gone or does not speak our language. */
static int note_recv(int sock, note *m, int fds[LAM_CARD_FDS]) {
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * LAM_CARD_FDS)];
  } control;
  struct iovec part = {m, sizeof *m};
  struct msghdr msg = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  fds[0] = fds[1] = -1;
  const ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
  take_fds(&msg, fds);
  if (n == (ssize_t)sizeof *m && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && m->magic == MAGIC)
    return 1;
  drop_fds(fds);
  return -1;
}

static bool same_user(int sock, unsigned *out_uid) {
  struct ucred who = {0};
  socklen_t n = sizeof who;
  const bool known = getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &who, &n) == 0;
  *out_uid = who.uid;
  return known && who.uid == geteuid();
}

/* Takes as long for a wrong secret as for a right one. */
static bool same_secret(const unsigned char *a, const unsigned char *b) {
  unsigned differ = 0;
  for (int i = 0; i < SECRET_BYTES; i++) differ |= (unsigned)(a[i] ^ b[i]);
  return differ == 0;
}

/* ---- What both sides need -------------------------------------------------------------------- */

typedef struct meeting {
  lam_context *ctx;
  const lam_group_desc *desc;
  id_layout id;
  lam_card *cards;
  int64_t deadline; /* ns */
  uint64_t tag;
  bool cut_off; /* rank 0 closed the connection without a word */
} meeting;

static lam_status still_time(const meeting *m, const char *what) {
  if (lam_context_should_stop(m->ctx))
    return lam_fail(LAM_INTERRUPTED, "meeting: the host asked to stop");
  if (lam_clock_ns() < m->deadline) return LAM_OK;
  return lam_fail(LAM_PEER_STALLED, "meeting: rank %d of %d waited %u ms for %s", m->desc->rank,
                  m->desc->size, m->desc->first_deadline_ms, what);
}

/* ---- Rank 0 ---------------------------------------------------------------------------------- */

#define STRANGERS 32
typedef struct guest {
  int sock;         /* -1: free */
  int rank;         /* -1: has not spoken */
  int64_t deadline; /* to speak */
} guest;

typedef struct host {
  meeting *m;
  int sock, n_guests, n_come, n_refused;
  guest *guests; /* [n_guests] */
} host;

static lam_status host_open(const meeting *m, int *out_sock) {
  struct sockaddr_un name;
  const socklen_t bytes = socket_name(&m->id, &name);
  const int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (sock >= 0 && bind(sock, (struct sockaddr *)&name, bytes) == 0 && listen(sock, 128) == 0) {
    *out_sock = sock;
    return LAM_OK;
  }
  const lam_status status =
      errno == EADDRINUSE
          ? lam_fail(LAM_MISMATCH,
                     "meeting: two ranks claim rank 0, or two groups use one id at the same time")
          : lam_fail(LAM_UNAVAILABLE, "meeting: socket %s: %s", name.sun_path + 1, strerror(errno));
  if (sock >= 0) close(sock);
  return status;
}

static void guest_drop(guest *g) {
  close(g->sock);
  g->sock = -1;
  g->rank = -1;
}

static void guest_refuse(guest *g, lam_status status, const char *text) {
  note m = {.magic = MAGIC, .kind = KIND_REFUSED, .status = status};
  snprintf((char *)m.data, sizeof m.data, "%s", text);
  (void)note_send(g->sock, &m, NULL, 0);
  guest_drop(g);
}

static guest *free_seat(host *h) {
  for (int i = 0; i < h->n_guests; i++)
    if (h->guests[i].sock < 0) return &h->guests[i];
  return NULL;
}

static void host_accept(host *h, guest *seat) {
  unsigned uid = 0;
  const int sock = accept4(h->sock, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (sock < 0) return;
  if (same_user(sock, &uid))
    *seat = (guest){sock, -1, lam_clock_ns() + SPEAK_MS * 1000000ll};
  else
    close(sock);
}

/* A member's first words against what the others said. */
static lam_status check_hello(const host *h, const note *hello) {
  const int size = h->m->desc->size;
  if (hello->size != size)
    return lam_fail(LAM_MISMATCH, "meeting: rank %d was given size %d, rank 0 size %d", hello->rank,
                    hello->size, size);
  if (hello->rank <= 0 || hello->rank >= size)
    return lam_fail(LAM_MISMATCH, "meeting: a peer claims rank %d, expected 1 to %d", hello->rank,
                    size - 1);
  for (int i = 0; i < h->n_guests; i++)
    if (h->guests[i].rank == hello->rank)
      return lam_fail(LAM_MISMATCH, "meeting: two peers claim rank %d", hello->rank);
  return LAM_OK;
}

/* Takes a hello from a connection that has not spoken yet; false: not yet, or it was no member's
 * and was dropped. */
static bool guest_introduce(const host *h, guest *g, note *hello, int fds[LAM_CARD_FDS]) {
  const int got = note_recv(g->sock, hello, fds);
  if (got > 0 && hello->kind == KIND_HELLO && same_secret(hello->secret, h->m->id.secret))
    return true;
  if (got > 0) drop_fds(fds);
  if (got > 0 && hello->kind == KIND_HELLO)
    guest_refuse(g, LAM_INVALID_ARGUMENT, "meeting: the id's secret is not rank 0's");
  else if (got != 0)
    guest_drop(g);
  return false;
}

/* A member that has shown its card has nothing more to say: it ended. */
static lam_status member_ended(const guest *g) {
  note m;
  int fds[LAM_CARD_FDS];
  const int got = note_recv(g->sock, &m, fds);
  if (got == 0) return LAM_OK;
  if (got > 0) drop_fds(fds);
  return lam_fail(LAM_PEER_DEAD, "meeting: rank %d ended before all had come", g->rank);
}

static lam_status guest_listen(host *h, guest *g) {
  note hello;
  int fds[LAM_CARD_FDS];
  if (g->rank >= 0) return member_ended(g);
  if (!guest_introduce(h, g, &hello, fds)) return LAM_OK;
  const lam_status status = check_hello(h, &hello);
  if (status != LAM_OK) {
    drop_fds(fds);
    guest_refuse(g, status, lam_last_error());
    h->n_refused++;
    return status;
  }
  g->rank = hello.rank;
  memcpy(h->m->cards[g->rank].data, hello.data, LAM_CARD_BYTES);
  memcpy(h->m->cards[g->rank].fds, fds, sizeof fds);
  h->n_come++;
  return LAM_OK;
}

/* "rank 2", "ranks 1, 2" */
static void name_missing(const host *h, char *text, size_t room) {
  const int n_missing = h->m->desc->size - 1 - h->n_come;
  size_t n = (size_t)snprintf(text, room, n_missing == 1 ? "rank" : "ranks");
  for (int r = 1, named = 0; r < h->m->desc->size && n < room; r++) {
    bool here = false;
    for (int i = 0; i < h->n_guests; i++) here |= h->guests[i].rank == r;
    if (!here) n += (size_t)snprintf(text + n, room - n, "%s %d", named++ ? "," : "", r);
  }
}

/* Waits a slice for whoever comes or speaks; new connections are taken at the end. While all seats
 * are taken they wait in the socket's queue: one of them may be a member. */
static void host_wait(host *h) {
  struct pollfd polls[1 + LAM_GROUP_RANKS + STRANGERS];
  guest *seat = free_seat(h);
  polls[0] = (struct pollfd){.fd = seat ? h->sock : -1, .events = POLLIN};
  for (int i = 0; i < h->n_guests; i++)
    polls[1 + i] = (struct pollfd){.fd = h->guests[i].sock, .events = POLLIN};
  (void)poll(polls, (nfds_t)(1 + h->n_guests), SLICE_MS);
  if (polls[0].revents) host_accept(h, seat);
}

static lam_status host_gather(host *h) {
  char missing[120];
  while (h->n_come < h->m->desc->size - 1) {
    host_wait(h);
    for (int i = 0; i < h->n_guests; i++) {
      guest *g = &h->guests[i];
      if (g->sock >= 0) LAM_TRY(guest_listen(h, g));
      if (g->sock >= 0 && g->rank < 0 && lam_clock_ns() > g->deadline) guest_drop(g);
    }
    name_missing(h, missing, sizeof missing);
    LAM_TRY(still_time(h->m, missing));
  }
  return LAM_OK;
}

/* The text goes to all members, also those who are just coming, so that all end with the same
 * one. */
static lam_status host_refuse_all(host *h, lam_status status) {
  char text[LAM_MESSAGE_BYTES];
  const int64_t until = lam_clock_ns() + LINGER_MS * 1000000ll;
  int told = 0;
  snprintf(text, sizeof text, "%s", lam_last_error());
  for (int i = 0; i < h->n_guests; i++)
    if (h->guests[i].rank >= 0) guest_refuse(&h->guests[i], status, text), told++;
  while (status == LAM_MISMATCH && told + h->n_refused < h->m->desc->size - 1 &&
         lam_clock_ns() < until) {
    host_wait(h);
    for (int i = 0; i < h->n_guests; i++) {
      note hello;
      int fds[LAM_CARD_FDS];
      if (h->guests[i].sock < 0 || !guest_introduce(h, &h->guests[i], &hello, fds)) continue;
      drop_fds(fds);
      guest_refuse(&h->guests[i], status, text);
      told++;
    }
  }
  return lam_fail(status, "%s", text);
}

static lam_status send_card(const host *h, const guest *g, int rank) {
  note m = {
      .magic = MAGIC, .kind = KIND_CARD, .rank = rank, .size = h->m->desc->size, .tag = h->m->tag};
  memcpy(m.data, h->m->cards[rank].data, LAM_CARD_BYTES);
  for (;;) {
    const int sent = note_send(g->sock, &m, h->m->cards[rank].fds, LAM_CARD_FDS);
    if (sent > 0) return LAM_OK;
    if (sent < 0)
      return lam_fail(LAM_PEER_DEAD, "meeting: rank %d ended before all had come", g->rank);
    LAM_TRY(still_time(h->m, "a peer to take its cards"));
    usleep(1000);
  }
}

static lam_status host_tell(const host *h) {
  for (int i = 0; i < h->n_guests; i++)
    for (int r = 0; h->guests[i].rank >= 0 && r < h->m->desc->size; r++)
      if (r != h->guests[i].rank) LAM_TRY(send_card(h, &h->guests[i], r));
  return LAM_OK;
}

static lam_status host_run(meeting *m) {
  host h = {.m = m, .n_guests = m->desc->size + STRANGERS};
  lam_status status = host_open(m, &h.sock);
  if (status != LAM_OK) return status;
  h.guests = calloc((size_t)h.n_guests, sizeof *h.guests);
  if (!h.guests) {
    close(h.sock);
    return lam_fail(LAM_RESOURCE_EXHAUSTED, "meeting: no memory");
  }
  for (int i = 0; i < h.n_guests; i++) h.guests[i] = (guest){-1, -1, 0};
  if (getrandom(&m->tag, sizeof m->tag, 0) != (ssize_t)sizeof m->tag)
    m->tag = (uint64_t)lam_clock_ns();
  status = host_gather(&h);
  if (status == LAM_OK) status = host_tell(&h);
  if (status != LAM_OK) (void)host_refuse_all(&h, status);
  for (int i = 0; i < h.n_guests; i++)
    if (h.guests[i].sock >= 0) close(h.guests[i].sock);
  close(h.sock);
  free(h.guests);
  return status;
}

/* ---- The others ------------------------------------------------------------------------------ */

static lam_status host_ended(void) {
  return lam_fail(LAM_PEER_DEAD, "meeting: rank 0 ended before all had come");
}
static lam_status cut_off(meeting *m) {
  m->cut_off = true;
  return host_ended();
}

/* Rank 0 may not be there yet, unless it was before. */
static lam_status guest_connect(const meeting *m, bool again, int *out_sock) {
  struct sockaddr_un name;
  unsigned uid = 0;
  const socklen_t bytes = socket_name(&m->id, &name);
  const int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (sock < 0) return lam_fail(LAM_UNAVAILABLE, "meeting: socket: %s", strerror(errno));
  for (useconds_t pause = 500; connect(sock, (struct sockaddr *)&name, bytes) != 0;
       pause += pause < 20000 ? pause : 0) {
    const int error = errno;
    lam_status status = still_time(m, "rank 0");
    if (status == LAM_OK && error == ECONNREFUSED && again) status = host_ended();
    if (status == LAM_OK && error != ECONNREFUSED && error != EAGAIN && error != EINTR)
      status =
          lam_fail(LAM_UNAVAILABLE, "meeting: socket %s: %s", name.sun_path + 1, strerror(error));
    if (status != LAM_OK) {
      close(sock);
      return status;
    }
    usleep(pause);
  }
  *out_sock = sock;
  if (same_user(sock, &uid)) return LAM_OK;
  close(sock);
  return lam_fail(LAM_FAILED_PRECONDITION, "meeting: socket %s belongs to user %u, expected %u",
                  name.sun_path + 1, uid, (unsigned)geteuid());
}

static lam_status next_card(meeting *m, int sock) {
  note card;
  int fds[LAM_CARD_FDS];
  struct pollfd ready = {.fd = sock, .events = POLLIN};
  int got = 0;
  while ((got = note_recv(sock, &card, fds)) == 0) {
    LAM_TRY(still_time(m, "the others"));
    (void)poll(&ready, 1, SLICE_MS);
  }
  if (got < 0) return cut_off(m);
  if (card.kind == KIND_CARD && card.rank >= 0 && card.rank < m->desc->size &&
      card.rank != m->desc->rank) {
    memcpy(m->cards[card.rank].data, card.data, LAM_CARD_BYTES);
    memcpy(m->cards[card.rank].fds, fds, sizeof fds);
    m->tag = card.tag;
    return LAM_OK;
  }
  drop_fds(fds);
  if (card.kind != KIND_REFUSED || card.status == LAM_OK)
    return lam_fail(LAM_INTERNAL, "meeting: rank 0 sent what is no card");
  return lam_fail(card.status, "%.*s", LAM_CARD_BYTES, (const char *)card.data);
}

static lam_status guest_speak(meeting *m, int sock) {
  int sent = 0;
  note hello = {.magic = MAGIC, .kind = KIND_HELLO, .rank = m->desc->rank, .size = m->desc->size};
  memcpy(hello.secret, m->id.secret, SECRET_BYTES);
  memcpy(hello.data, m->cards[m->desc->rank].data, LAM_CARD_BYTES);
  while ((sent = note_send(sock, &hello, m->cards[m->desc->rank].fds, LAM_CARD_FDS)) == 0) {
    LAM_TRY(still_time(m, "rank 0 to listen"));
    usleep(1000);
  }
  return sent > 0 ? LAM_OK : cut_off(m);
}

/* out_n: how many cards have come. */
static lam_status guest_meet(meeting *m, bool again, int *out_n) {
  int sock = -1;
  LAM_TRY(guest_connect(m, again, &sock));
  if (!again) /* rank 0 says first who is missing */
    m->deadline = lam_clock_ns() + (m->desc->first_deadline_ms + GRACE_MS) * 1000000ll;
  lam_status status = guest_speak(m, sock);
  while (status == LAM_OK && *out_n < m->desc->size - 1) {
    status = next_card(m, sock);
    *out_n += status == LAM_OK;
  }
  close(sock);
  return status;
}

static lam_status guest_run(meeting *m) {
  int n = 0;
  lam_status status = guest_meet(m, false, &n);
  for (int i = 1; i < TRIES && m->cut_off && n == 0; i++) {
    m->cut_off = false;
    status = guest_meet(m, true, &n);
  }
  return status;
}

lam_status lam_rendezvous(lam_context *ctx, const lam_group_desc *desc, lam_card *cards,
                          uint64_t *out_tag) {
  meeting m = {.ctx = ctx, .desc = desc, .cards = cards};
  m.deadline = lam_clock_ns() + (int64_t)desc->first_deadline_ms * 1000000;
  LAM_TRY(id_open(&desc->id, &m.id));
  LAM_TRY(desc->rank == 0 ? host_run(&m) : guest_run(&m));
  *out_tag = m.tag;
  return LAM_OK;
}
