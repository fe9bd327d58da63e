/* second.cc: the header in a second file of one program: nothing in it is defined twice. */
#include <lamella.hpp>

lamella::call second(const lamella::tensor &x);
lamella::call second(const lamella::tensor &x) { return lamella::ops::all_reduce(x); }
