// modern.cc: a C++17 program of somebody else's, built by CMake.
#include <lamella.hpp>

#include <cstdio>

int main() {
  const float x[] = {1, 2}, w[] = {3, -1, 0, -4};
  float y[2] = {};
  try {
    const auto model = lamella::make<lamella::context>(lamella::hooks());
    lamella::ops::linear(lamella::tensor(x, {1, 2}), lamella::tensor(w, {2, 2}))
        .out(lamella::tensor(y, {1, 2}))
        .set("act", "relu")
        .run(model);
  } catch (const lamella::error &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  std::printf("%g %g\n", static_cast<double>(y[0]), static_cast<double>(y[1]));
}
