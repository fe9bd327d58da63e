/* lamella.hpp: Lamella for C++17, over lamella.h and nothing else.
 *
 *   lamella::context ctx;
 *   lamella::context::create(lamella::context_desc(), ctx);
 *   lamella::ops::linear(x, w, b).out(y).set("act", "silu").run(ctx);
 *
 * Every row of the operator table is a function of its inputs in namespace lamella::ops. What can
 * fail throws lamella::error; with LAMELLA_RETURN_STATUS defined before it is included, nothing
 * throws and those functions return a lamella::status instead.
 * Invariant: handles are owned by one object and moved, never copied; no exception meets C.
 * Leaves all checks to the library, but for names that only C++ knows of. */
#ifndef LAMELLA_HPP
#define LAMELLA_HPP

#include <lamella.h>

#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#ifndef LAMELLA_RETURN_STATUS
#include <stdexcept>
#endif

namespace lamella {

/* ---- Failing ---- */

#ifdef LAMELLA_RETURN_STATUS

/* A lam_status with its words. */
class [[nodiscard]] status {
 public:
  status() = default;
  status(lam_status code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == LAM_OK; }
  lam_status code() const { return code_; }
  const std::string &message() const { return message_; }

 private:
  lam_status code_ = LAM_OK;
  std::string message_;
};

using outcome = status;
namespace detail {
inline outcome fail(lam_status code, std::string message) { return {code, std::move(message)}; }
inline outcome done() { return {}; }
}  // namespace detail

#else

class error : public std::runtime_error {
 public:
  error(lam_status code, const std::string &message) : std::runtime_error(message), code_(code) {}
  lam_status code() const { return code_; }

 private:
  lam_status code_;
};

using outcome = void;
namespace detail {
[[noreturn]] inline void fail(lam_status code, const std::string &message) {
  throw error(code, message);
}
inline void done() {}
}  // namespace detail

#endif

inline outcome check(lam_status code) {
  return code == LAM_OK ? detail::done() : detail::fail(code, lam_last_error());
}

/* ---- Handles ---- */

namespace detail {
/* Owns a C handle; empty after a move. */
template <class T, void (*destroy)(T *)>
class handle {
 public:
  handle() = default;
  handle(handle &&other) noexcept : p_(other.release()) {}
  handle &operator=(handle &&other) noexcept {
    reset(other.release());
    return *this;
  }
  ~handle() { destroy(p_); }
  T *get() const { return p_; }
  explicit operator bool() const { return p_ != nullptr; }
  T *release() { return std::exchange(p_, nullptr); }
  void reset(T *p = nullptr) { destroy(std::exchange(p_, p)); }

 private:
  T *p_ = nullptr;
};

/* Takes what a C function made; `out` keeps what it has where that failed. */
template <class Handle, class T>
outcome take(lam_status code, T *made, Handle &out) {
  if (code == LAM_OK) out.reset(made);
  return check(code);
}
}  // namespace detail

inline lam_context_desc context_desc() { return LAM_CONTEXT_DESC_INIT; }
inline lam_group_desc group_desc() { return LAM_GROUP_DESC_INIT; }
inline lam_pipeline_desc pipeline_desc() { return LAM_PIPELINE_DESC_INIT; }

class context : public detail::handle<lam_context, lam_context_destroy> {
 public:
  static outcome create(const lam_context_desc &desc, context &out) {
    lam_context *made = nullptr;
    const lam_status code = lam_context_create(&desc, &made);
    return detail::take(code, made, out);
  }
};

class group : public detail::handle<lam_group, lam_group_destroy> {
 public:
  static outcome create(const context &ctx, const lam_group_desc &desc, group &out) {
    lam_group *made = nullptr;
    const lam_status code = lam_group_create(ctx.get(), &desc, &made);
    return detail::take(code, made, out);
  }
  /* From what ./lamella run, torchrun, MPI or srun left in the environment. */
  static outcome create_from_env(const context &ctx, group &out) {
    lam_group *made = nullptr;
    const lam_status code = lam_group_create_from_env(ctx.get(), nullptr, &made);
    return detail::take(code, made, out);
  }
  /* Collective; `out` is empty where color < 0. */
  outcome split(int32_t color, int32_t key, group &out) const {
    lam_group *made = nullptr;
    const lam_status code = lam_group_split(get(), color, key, &made);
    return detail::take(code, made, out);
  }
  outcome info(lam_group_info &out) const {
    out = LAM_GROUP_INFO_INIT;
    return check(lam_group_get_info(get(), &out));
  }
  int64_t id() const { return lam_group_handle(get()); } /* the `group` attribute of a call */
};

class schedule : public detail::handle<lam_schedule, lam_schedule_destroy> {
 public:
  static outcome build(const char *name, int32_t p, int32_t v, int32_t m, schedule &out) {
    lam_schedule *made = nullptr;
    const lam_status code = lam_schedule_build(name, p, v, m, &made);
    return detail::take(code, made, out);
  }
  static outcome parse(std::string_view text, schedule &out) {
    lam_schedule *made = nullptr;
    const lam_status code = lam_schedule_parse(text.data(), text.size(), &made);
    return detail::take(code, made, out);
  }
};

/* The group and schedule in its desc must outlive it. */
class pipeline : public detail::handle<lam_pipeline, lam_pipeline_destroy> {
 public:
  static outcome create(const context &ctx, const lam_pipeline_desc &desc, pipeline &out) {
    lam_pipeline *made = nullptr;
    const lam_status code = lam_pipeline_create(ctx.get(), &desc, &made);
    return detail::take(code, made, out);
  }
  outcome run(int64_t step, double *out_loss = nullptr) {
    return check(lam_pipeline_run(get(), step, out_loss));
  }
};

/* ---- Tensors ---- */

namespace detail {
template <class T>
constexpr uint8_t code_of() {
  if (std::is_floating_point_v<T>) return kDLFloat;
  return std::is_signed_v<T> ? kDLInt : kDLUInt;
}
}  // namespace detail

/* A view of memory on the CPU: it borrows the data and owns the numbers. Without strides: row-major.
 * A default one is absent. */
class tensor {
 public:
  tensor() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  tensor(T *data, std::initializer_list<int64_t> shape, std::initializer_list<int64_t> strides = {})
      : tensor(const_cast<std::remove_const_t<T> *>(data),
               {detail::code_of<std::remove_const_t<T>>(), 8 * sizeof(T), 1}, shape, strides) {}
  /* Any dtype, such as bf16: {kDLBfloat, 16, 1}. */
  tensor(void *data, DLDataType dtype, std::initializer_list<int64_t> shape,
         std::initializer_list<int64_t> strides = {})
      : data_(data), dtype_(dtype), ndim_(static_cast<int32_t>(shape.size())) {
    if (shape.size() > max_dims || (strides.size() && strides.size() != shape.size())) ndim_ = -1;
    if (ndim_ < 0) return; /* the library refuses it by name */
    std::size_t i = 0;
    for (const int64_t n : shape) dims_[i++] = n;
    int64_t step = 1;
    for (i = shape.size(); i-- > 0; step *= dims_[i]) strides_[i] = step;
    i = 0;
    for (const int64_t n : strides) strides_[i++] = n;
  }
  bool absent() const { return ndim_ == none; }
  /* Points into this tensor. */
  DLTensor view() { return {data_, {kDLCPU, 0}, ndim_, dtype_, dims_, strides_, 0}; }

 private:
  static constexpr std::size_t max_dims = 8;
  static constexpr int32_t none = -2;
  void *data_ = nullptr;
  DLDataType dtype_ = {kDLFloat, 32, 1};
  int32_t ndim_ = none;
  int64_t dims_[max_dims] = {}, strides_[max_dims] = {};
};

/* ---- Calls ---- */

/* A row of the operator table. */
struct row {
  uint32_t id;
  std::string_view name, inputs, outputs, attributes;
};

namespace detail {
/* The word at `index` of a list split by blanks; "" past its end. */
constexpr std::string_view word(std::string_view list, std::size_t index) {
  while (index-- > 0) {
    const std::size_t blank = list.find(' ');
    list = blank == list.npos ? std::string_view() : list.substr(blank + 1);
  }
  return list.substr(0, list.find(' '));
}
constexpr std::size_t count(std::string_view list) {
  std::size_t n = 0;
  while (!word(list, n).empty()) n++;
  return n;
}
}  // namespace detail

/* One call, put together by name: ops::linear(x, w).out(y).set("act", "silu").run(). Strings and
 * lists that are set must live until it runs. */
class call {
 public:
  explicit call(const row &r) : row_(r) {}

  call &in(const tensor &t) {
    if (n_in_ < most) in_[n_in_] = t;
    n_in_++; /* one too many is the library's to refuse */
    return *this;
  }
  call &out(const tensor &t) {
    if (n_out_ < most) out_[n_out_] = t;
    n_out_++;
    return *this;
  }
  call &set(std::string_view name, const group &g) { return put(name, lam_attr_i(g.id())); }
  call &set(std::string_view name, std::string_view text) {
    lam_attr a = lam_attr_default();
    a.type = LAM_ATTR_STRING;
    a.n = static_cast<uint32_t>(text.size());
    a.v.s = text.data();
    return put(name, a);
  }
  call &set(std::string_view name, const int64_t *ints, uint32_t n) {
    return put(name, lam_attr_ints(ints, n));
  }
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  call &set(std::string_view name, T value) {
    if constexpr (std::is_floating_point_v<T>)
      return put(name, lam_attr_f(value));
    else
      return put(name, lam_attr_i(static_cast<int64_t>(value)));
  }

  /* Writes the outputs. An empty context: the group's, or the process's own. */
  outcome run(const context &ctx = context()) {
    return with_call([&](const lam_call &c) { return lam_run(ctx.get(), &c); });
  }
  /* Shapes, [n_outputs] and as many as out.n_outputs says, and scratch; looks at no data. */
  outcome infer(lam_inferred &out, const context &ctx = context()) {
    return with_call([&](const lam_call &c) { return lam_infer(ctx.get(), &c, &out); });
  }

 private:
  static constexpr std::size_t most = 16;

  call &put(std::string_view name, const lam_attr &value) {
    for (std::size_t i = 0; i < most; i++) {
      const std::string_view known = detail::word(row_.attributes, i);
      if (known.substr(0, known.find(':')) != name || name.empty()) continue;
      attrs_[i] = value;
      return *this;
    }
    if (unknown_.empty()) unknown_ = name;
    return *this;
  }

  template <class Function>
  outcome with_call(Function function) {
    if (!unknown_.empty())
      return detail::fail(LAM_INVALID_ARGUMENT, std::string(row_.name) + ": " + unknown_ +
                                                    ": no attribute has this name; it has " +
                                                    std::string(row_.attributes));
    DLTensor views[2 * most] = {};
    const DLTensor *inputs[most] = {};
    DLTensor *outputs[most] = {};
    for (std::size_t i = 0; i < most; i++) {
      views[i] = in_[i].view();
      views[most + i] = out_[i].view();
      inputs[i] = in_[i].absent() ? nullptr : &views[i];
      outputs[i] = out_[i].absent() ? nullptr : &views[most + i];
    }
    lam_call c = LAM_CALL_INIT;
    c.op = row_.id;
    c.inputs = inputs, c.n_inputs = static_cast<uint32_t>(n_in_);
    c.outputs = outputs, c.n_outputs = static_cast<uint32_t>(n_out_);
    c.attrs = attrs_, c.n_attrs = static_cast<uint32_t>(detail::count(row_.attributes));
    return check(function(c));
  }

  row row_;
  std::size_t n_in_ = 0, n_out_ = 0;
  tensor in_[most], out_[most];
  lam_attr attrs_[most] = {};
  std::string unknown_;
};

/* ---- Operators: ops::linear(x, w, b), one function per row ---- */

namespace ops {
#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect)                   \
  template <class... Tensors>                                                           \
  call name(const Tensors &...tensors) {                                                \
    static_assert(sizeof...(tensors) <= detail::count(inputs), #name " takes " inputs); \
    call c(row{id, #name, inputs, outputs, attributes});                                \
    (void)std::initializer_list<int>{0, (c.in(tensors), 0)...};                         \
    return c;                                                                           \
  }
#include <lamella_ops.def>
#undef LAM_OP
}  // namespace ops

}  // namespace lamella
#endif
