// client.cc: a host in C++17: a context with hooks of its own, an operator, a schedule.
#include "client.h"

#include <array>
#include <cstdlib>
#include <string>

namespace {

struct Counter {
  int allocations = 0;
};

int runs_in_its_own_context() {
  Counter counter;
  lam_context_desc desc = LAM_CONTEXT_DESC_INIT;
  desc.threads = 1;
  desc.user = &counter;
  desc.alloc = [](void *user, uint64_t bytes, uint64_t alignment) -> void * {
    static_cast<Counter *>(user)->allocations++;
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  };
  desc.free = [](void *, void *p, uint64_t) { std::free(p); };
  lam_context *context = nullptr;
  EXPECT(lam_context_create(&desc, &context) == LAM_OK);

  std::array<float, 4> x{1, 2, 3, 4}, y{};
  std::array<int64_t, 2> shape{2, 2};
  DLTensor tx{x.data(), {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape.data(), nullptr, 0}, ty = tx;
  ty.data = y.data();
  const DLTensor *inputs[] = {&tx, &tx};
  DLTensor *outputs[] = {&ty};
  const lam_attr attrs[] = {lam_attr_s("")};
  lam_call call = LAM_CALL_INIT;
  call.op = LAM_OP_linear;
  call.inputs = inputs, call.n_inputs = 2;
  call.outputs = outputs, call.n_outputs = 1;
  call.attrs = attrs, call.n_attrs = 1;
  EXPECT(lam_run(context, &call) == LAM_OK);
  EXPECT(y[0] == 5 && y[1] == 11 && y[2] == 11 && y[3] == 25);

  call.op = 9999;
  EXPECT(lam_run(context, &call) == LAM_NOT_FOUND &&
         std::string(lam_last_error()).find("9999") != std::string::npos);
  lam_context_destroy(context);
  return 0;
}

int prints_a_schedule() {
  lam_schedule *schedule = nullptr;
  EXPECT(lam_schedule_build("1f1b", 2, 1, 3, &schedule) == LAM_OK);
  uint64_t bytes = 0;
  EXPECT(lam_schedule_print(schedule, nullptr, 0, &bytes) == LAM_OK);
  std::string text(bytes + 1, '?');
  EXPECT(lam_schedule_print(schedule, text.data(), text.size(), &bytes) == LAM_OK);
  EXPECT(text.find("0F0 0F1 0B0 0F2 0B1 0B2") != std::string::npos);
  lam_schedule_destroy(schedule);
  return 0;
}

}  // namespace

int main() {
  if (initializers_set_the_size()) return 1;
  if (runs_in_its_own_context()) return 1;
  return prints_a_schedule();
}
