/* hooks.h: contexts whose hooks are callables that carry what they need.
 * A part of client.cc: the big header is compiled once. */
#ifndef LAMELLA_TESTS_CPP_HOOKS_H_
#define LAMELLA_TESTS_CPP_HOOKS_H_
#include "client.h"

#include <cstdlib>
#include <vector>

namespace {

struct tally {
  int64_t allocations = 0, bytes = 0, sections = 0, pieces = 0;
};

/* Hooks that count; the pool is one thread, which takes the pieces from the last to the first. */
hooks counting(tally &t) {
  hooks h;
  h.threads = 2;
  h.alloc = [&t](std::size_t bytes, std::size_t alignment) {
    t.allocations++, t.bytes += static_cast<int64_t>(bytes);
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  };
  h.free = [&t](void *p, std::size_t bytes) {
    t.bytes -= static_cast<int64_t>(bytes);
    std::free(p);
  };
  h.parallel_for = [&t](int64_t n, work piece) {
    t.sections++, t.pieces += n;
    while (n-- > 0) piece(n);
  };
  return h;
}

/* A linear layer of T rows: of many, enough for a pool; of few, one that needs scratch. */
ending run_rows(const context &ctx, int64_t T) {
  const int64_t K = 96, N = 1536;
  std::vector<float> x(T * K, 0.5f), w(N * K, 0.25f), b(N, 1), y(T * N);
  const ending e = end_of([&] {
    return ops::linear(tensor(x.data(), {T, K}), tensor(w.data(), {N, K}), tensor(b.data(), {N}))
        .out(tensor(y.data(), {T, N}))
        .run(ctx);
  });
  for (const float v : y)
    if (e.code == LAM_OK && v != static_cast<float>(K) / 8 + 1)
      return {LAM_INTERNAL, "a wrong sum"};
  return e;
}

ending run_something(const context &ctx) {
  const ending many = run_rows(ctx, 64);
  return many.code == LAM_OK ? run_rows(ctx, 4) : many;
}

bool hooks_are_called_and_move_with_their_context() {
  tally t, other;
  {
    context ctx, elsewhere;
    EXPECT(end_of([&] { return context::create(counting(t), ctx); }).code == LAM_OK);
    EXPECT(end_of([&] { return context::create(counting(other), elsewhere); }).code == LAM_OK);
    EXPECT(run_something(ctx).code == LAM_OK && run_something(elsewhere).code == LAM_OK);
    EXPECT(t.sections > 0 && t.pieces > t.sections && t.allocations > 0);
    const int64_t sections = t.sections;
    elsewhere = std::move(ctx); /* the other one ends, with its own hooks */
    EXPECT(!ctx && other.bytes == 0);
    EXPECT(run_something(elsewhere).code == LAM_OK && t.sections > sections);
    lam_context_stats stats;
    EXPECT(end_of([&] { return elsewhere.stats(stats); }).code == LAM_OK);
    EXPECT(static_cast<int64_t>(stats.bytes) == t.bytes);
  }
  EXPECT(t.bytes == 0);
  return true;
}

bool a_pool_needs_no_allocator_and_half_of_one_is_refused() {
  context ctx;
  hooks half;
  half.free = [](void *, std::size_t) {};
  const ending e = end_of([&] { return context::create(half, ctx); });
  EXPECT(e.code == LAM_INVALID_ARGUMENT && e.message.find("expected both") != e.message.npos);
  EXPECT(!ctx);
  return true;
}

bool memory_that_is_not_there_is_a_status() {
  context ctx;
  hooks none;
  none.free = [](void *, std::size_t) {};
#ifdef LAMELLA_RETURN_STATUS
  none.alloc = [](std::size_t, std::size_t) -> void * { return nullptr; };
#else
  none.alloc = [](std::size_t, std::size_t) -> void * { throw std::bad_alloc(); };
#endif
  EXPECT(end_of([&] { return context::create(none, ctx); }).code == LAM_OK);
  lam_group_desc desc = group_desc();
  desc.size = 1;
  EXPECT(end_of([&] { return make_group_id(desc.id); }).code == LAM_OK);
  group g;
  const ending e = end_of([&] { return group::create(ctx, desc, g); });
  EXPECT(e.code == LAM_RESOURCE_EXHAUSTED && !g);
  return true;
}

}  // namespace

static bool takes_callables_as_hooks() {
#ifndef LAMELLA_RETURN_STATUS
  EXPECT(make<context>(hooks()));
#endif
  return hooks_are_called_and_move_with_their_context() &&
         a_pool_needs_no_allocator_and_half_of_one_is_refused() &&
         memory_that_is_not_there_is_a_status();
}

#endif
