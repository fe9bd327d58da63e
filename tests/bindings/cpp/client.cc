/* client.cc: a C++17 host, compiled by cpp.sh with and without exceptions: an operator, absent and
 * strided tensors, refusals, handles that move, a pipeline of one rank. */
#include <lamella.hpp>

#include <cstdio>
#include <type_traits>

using namespace lamella;

#define EXPECT(cond)                                                  \
  do {                                                                \
    if (!(cond)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
      return false;                                                   \
    }                                                                 \
  } while (0)

/* What a call ends with, whichever way it is told. */
struct ending {
  lam_status code;
  std::string message;
};
template <class Function>
ending end_of(Function function) {
#ifdef LAMELLA_RETURN_STATUS
  const status s = function();
  return {s.code(), s.message()};
#else
  try {
    function();
    return {LAM_OK, ""};
  } catch (const error &e) {
    return {e.code(), e.what()};
  }
#endif
}

static bool runs_an_operator() {
  const float x[] = {1, -2, 3, -4}, w[] = {1, 0, 9, 9, 0, 1, 9, 9, 1, 1, 9, 9};
  float y[6] = {}, bias[] = {1, 1, 1};
  /* w is the first two columns of what lies there */
  const tensor part(w, {3, 2}, {4, 1});
  ending e = end_of([&] {
    return ops::linear(tensor(x, {2, 2}), part, tensor(bias, {3}))
        .out(tensor(y, {2, 3}))
        .set("act", "relu")
        .run();
  });
  const float with_bias[] = {2, 0, 0, 4, 0, 0};
  EXPECT(e.code == LAM_OK);
  for (int i = 0; i < 6; i++) EXPECT(y[i] == with_bias[i]);

  e = end_of([&] {
    return ops::linear(tensor(x, {2, 2}), part, tensor()).out(tensor(y, {2, 3})).run();
  });
  const float without[] = {1, -2, -1, 3, -4, -1};
  EXPECT(e.code == LAM_OK);
  for (int i = 0; i < 6; i++) EXPECT(y[i] == without[i]);
  return true;
}

static bool infers_shapes() {
  float none[1] = {};
  lam_shape shapes[2];
  lam_inferred found = LAM_INFERRED_INIT;
  found.outputs = shapes, found.n_outputs = 2;
  const ending e = end_of([&] {
    return ops::linear(tensor(none, {3, 2}), tensor(none, {5, 2})).set("save", 1).infer(found);
  });
  EXPECT(e.code == LAM_OK && shapes[0].dims[1] == 5 && shapes[1].ndim == 2);
  return true;
}

static bool refuses_with_words() {
  float x[2] = {}, y[2] = {};
  ending e = end_of([&] { return ops::all_reduce(tensor(x, {2})).out(tensor(y, {3})).run(); });
  EXPECT(e.code == LAM_INVALID_ARGUMENT);
  EXPECT(e.message == "all_reduce: y: found [3] f32, expected [2] f32");
  e = end_of([&] { return ops::all_reduce(tensor(x, {2})).set("nosuch", 1).run(); });
  EXPECT(e.code == LAM_INVALID_ARGUMENT);
  EXPECT(e.message == "all_reduce: nosuch: no attribute has this name; it has group:i");
  e = end_of([&] { return ops::all_reduce(tensor(x, {2, 2}, {1})).out(tensor(y, {2})).run(); });
  EXPECT(e.code == LAM_INVALID_ARGUMENT && e.message.find("all_reduce: x") == 0);
  return true;
}

static bool owns_its_handles() {
  static_assert(!std::is_copy_constructible_v<group> && std::is_nothrow_move_assignable_v<group>,
                "a handle has one owner");
  context ctx;
  EXPECT(end_of([&] { return context::create(context_desc(), ctx); }).code == LAM_OK);
  lam_group_desc desc = group_desc();
  desc.size = 1;
  EXPECT(lam_group_id_create(&desc.id) == LAM_OK);
  group alone, moved;
  EXPECT(end_of([&] { return group::create(ctx, desc, alone); }).code == LAM_OK);
  moved = std::move(alone);
  EXPECT(moved && !alone);
  float x[] = {3}, y[1] = {};
  const ending e = end_of([&] {
    return ops::all_reduce(tensor(x, {1})).out(tensor(y, {1})).set("group", moved).run(ctx);
  });
  EXPECT(e.code == LAM_OK && y[0] == 3);
  desc.rank = 5; /* what fails leaves the handle as it was */
  EXPECT(end_of([&] { return group::create(ctx, desc, moved); }).code == LAM_INVALID_ARGUMENT);
  EXPECT(moved);
  return true;
}

static lam_status count(void *user, const lam_stage_io *io) {
  ++*static_cast<int *>(user);
  *io->loss += 1;
  return LAM_OK;
}

static bool runs_a_pipeline() {
  int n = 0;
  double loss = 0;
  schedule s;
  EXPECT(end_of([&] { return schedule::build("gpipe", 1, 1, 4, s); }).code == LAM_OK);
  lam_stage stage = LAM_STAGE_INIT;
  stage.user = &n, stage.forward = count;
  lam_pipeline_desc desc = pipeline_desc();
  desc.schedule = s.get(), desc.stages = &stage, desc.n_stages = 1;
  desc.flags = LAM_PIPELINE_FORWARD_ONLY;
  pipeline p;
  EXPECT(end_of([&] { return pipeline::create(context(), desc, p); }).code == LAM_OK);
  EXPECT(end_of([&] { return p.run(0, &loss); }).code == LAM_OK);
  EXPECT(n == 4 && loss == 4);
  const lam_schedule *before = s.get();
  EXPECT(end_of([&] { return schedule::parse("rank 0: 0X0", s); }).code == LAM_INVALID_ARGUMENT);
  EXPECT(s.get() == before);
  return true;
}

int main() {
  const bool well = runs_an_operator() && infers_shapes() && refuses_with_words() &&
                    owns_its_handles() && runs_a_pipeline();
  return well ? 0 : 1;
}
