/* together_test.c: a large message between two ranks that can write each other's memory is copied by
 * both, and arrives whole; where the receiver's memory is its own, it copies alone.
 * Leaves messages of other sizes, and the order of several, to the engines' suite. */
#include "plugin/comm/shm/shm.h"
#include "tests/distributed/comm/ranks.h"

enum { BYTES = (9 << 20) + 77, TRIES = 200 };

typedef struct scene {
  lam_group_id id;
  bool into_given; /* the receiver's memory is the group's */
} scene;

static unsigned char byte_at(int64_t i, int salt) {
  return (unsigned char)(i % 251 + i / 4096 + salt);
}

static void make(unsigned char *data, int salt) {
  for (int64_t i = 0; i < BYTES; i++) data[i] = byte_at(i, salt);
}

static bool holds(const unsigned char *data, int salt) {
  for (int64_t i = 0; i < BYTES; i++)
    if (data[i] != byte_at(i, salt)) return CHECK_EQ(data[i], byte_at(i, salt)) && CHECK_EQ(i, -1);
  return true;
}

/* Until the sender has copied something, which it says in a sum: a try costs nothing but time. */
static void pass_on(int rank, int size, void *arg) {
  const scene *s = arg;
  lam_group *g = NULL;
  void *data = NULL;
  float helped = 0;
  (void)size;
  REQUIRE_OK(rank_open(&s->id, rank, 2, 60000, &g));
  const lam_comm_op op = {.op = LAM_OP_all_reduce, .dtype = LAM_F32, .ndim = 1, .dims = {1}};
  lam_world *w = shm_group_of(g)->world;
  if (rank == 1 && !s->into_given)
    data = malloc(BYTES);
  else
    REQUIRE_OK(lam_group_alloc(g, BYTES, &data));
  w->spins = w->spins ? w->spins : 1000; /* as with a processor for each */
  const int tries = s->into_given ? TRIES : 3;
  for (int i = 0; i < tries && helped == 0; i++) {
    lam_wire h = {.bytes = BYTES, .dtype = LAM_U8, .ndim = 1, .shape = {BYTES}};
    if (rank == 0) make(data, i);
    REQUIRE_OK(rank == 0 ? lam_group_send(g, 1, 0, &h, data)
                         : lam_group_recv(g, 0, 0, &h, data, BYTES));
    REQUIRE(holds(data, i));
    helped = (float)w->helped;
    REQUIRE_OK(lam_group_all_reduce(g, &op, &helped, &helped, 1, LAM_F32));
  }
  CHECK_EQ(helped > 0, s->into_given);
  if (rank == 1 && !s->into_given)
    free(data);
  else
    lam_group_free(g, data);
  lam_group_destroy(g);
}

static void run(bool into_given) {
  scene *s = shared_memory(sizeof *s);
  s->into_given = into_given;
  CHECK_OK(lam_group_id_create(&s->id));
  run_processes(2, pass_on, s);
}

TEST(together, both_ranks_copy_a_large_message_between_group_memory) { run(true); }
TEST(together, a_receiver_copies_alone_into_memory_of_its_own) { run(false); }
