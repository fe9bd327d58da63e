/* client.h: what the files of the C++ client share. */
#ifndef LAMELLA_TESTS_CPP_CLIENT_H_
#define LAMELLA_TESTS_CPP_CLIENT_H_

#include <lamella.hpp>

#include <cstdio>
#include <string>

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

#endif
