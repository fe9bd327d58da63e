/* lamella.hpp: Lamella for C++17, over lamella.h and the standard library.
 *
 *   lamella::context ctx;
 *   lamella::context::create(lamella::hooks(), ctx);
 *   lamella::ops::linear(x, w, b).out(y).set("act", "silu").run(ctx);
 *
 * Every row of the operator table is a function of its inputs in namespace lamella::ops; contexts,
 * groups, schedules and pipelines are handles; a context's hooks and a pipeline's stages may be any
 * callable. What can fail throws lamella::error; with LAMELLA_RETURN_STATUS defined before it is
 * included, nothing throws and those functions return a lamella::status instead (files of both
 * kinds may be linked into one program). What has no function here is called as C: h.get().
 * Invariant: handles are owned by one object and moved, never copied; no exception meets C.
 * Leaves all checks to the library, but for names that only C++ knows of. */
#ifndef LAMELLA_HPP
#define LAMELLA_HPP

#include <lamella.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#ifdef LAMELLA_RETURN_STATUS
#define LAMELLA_MODE_ returning
#else
#ifndef __cpp_exceptions
#error "without exceptions, lamella.hpp needs LAMELLA_RETURN_STATUS"
#endif
#include <stdexcept>
#define LAMELLA_MODE_ throwing
#endif

namespace lamella {
inline namespace LAMELLA_MODE_ {

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

#ifndef LAMELLA_RETURN_STATUS
/* auto ctx = lamella::make<lamella::context>(hooks); whatever create takes. */
template <class Handle, class... Arguments>
Handle make(Arguments &&...arguments) {
  Handle made;
  Handle::create(std::forward<Arguments>(arguments)..., made);
  return made;
}
#endif

inline lam_context_desc context_desc() { return LAM_CONTEXT_DESC_INIT; }
inline lam_group_desc group_desc() { return LAM_GROUP_DESC_INIT; }

/* ---- Contexts: threads, memory and hooks of one model ---- */

/* The pieces of one parallel section: call it with each of 0 .. n-1 once, from any thread. */
class work {
 public:
  work(void (*fn)(void *arg, int64_t i), void *arg) : fn_(fn), arg_(arg) {}
  void operator()(int64_t i) const { fn_(arg_, i); }

 private:
  void (*fn_)(void *arg, int64_t i);
  void *arg_;
};

/* What a context takes from its host; what is empty, Lamella does itself. They are called by any
 * thread that calls Lamella, and live as long as the context. alloc may throw; if another throws,
 * the program terminates. */
struct hooks {
  int threads = 0; /* 0: as many as OpenMP, or with parallel_for the usable CPUs, say */
  std::function<void *(std::size_t bytes, std::size_t alignment)> alloc;
  std::function<void(void *p, std::size_t bytes)> free; /* alloc and free, or neither */
  /* The host's thread pool: returns when piece was called with each of 0 .. n-1. */
  std::function<void(int64_t n, work piece)> parallel_for;
  std::function<bool()> should_stop; /* asked in every wait; true ends it: LAM_INTERRUPTED */
  std::function<void(int level, const char *line)> log;
  bool tf32 = false; /* f32 products on CUDA may round their operands to 10 bits of fraction */
};

namespace detail {
template <class Function>
void *or_null(Function function) {
#ifdef LAMELLA_RETURN_STATUS
  return function();
#else
  try {
    return function();
  } catch (...) {
    return nullptr;
  }
#endif
}

inline lam_context_desc desc_of(const hooks &h) {
  lam_context_desc desc = context_desc();
  desc.threads = h.threads;
  desc.tf32 = h.tf32;
  desc.user = const_cast<hooks *>(&h);
  if (h.alloc)
    desc.alloc = [](void *user, uint64_t bytes, uint64_t alignment) -> void * {
      return or_null([&] { return static_cast<hooks *>(user)->alloc(bytes, alignment); });
    };
  if (h.free)
    desc.free = [](void *user, void *p, uint64_t bytes) noexcept {
      static_cast<hooks *>(user)->free(p, bytes);
    };
  if (h.parallel_for)
    desc.parallel_for = [](void *user, int64_t n, void (*fn)(void *, int64_t), void *arg) noexcept {
      static_cast<hooks *>(user)->parallel_for(n, work(fn, arg));
    };
  if (h.should_stop)
    desc.should_stop = [](void *user) noexcept -> int32_t {
      return static_cast<hooks *>(user)->should_stop();
    };
  if (h.log)
    desc.log = [](void *user, int32_t level, const char *line) noexcept {
      static_cast<hooks *>(user)->log(level, line);
    };
  return desc;
}
}  // namespace detail

/* An empty one stands for the process's default context. It outlives its groups and pipelines. */
class context : public detail::handle<lam_context, lam_context_destroy> {
 public:
  context() = default;
  context(context &&) = default;
  context &operator=(context &&other) noexcept {
    reset(other.release());
    hooks_ = std::move(other.hooks_);
    return *this;
  }
  ~context() { reset(); } /* while its hooks are there */

  static outcome create(const lam_context_desc &desc, context &out) {
    lam_context *made = nullptr;
    const lam_status code = lam_context_create(&desc, &made);
    return detail::take(code, made, out);
  }
  static outcome create(hooks h, context &out) {
    auto kept = std::make_unique<hooks>(std::move(h));
    const lam_context_desc desc = detail::desc_of(*kept);
    lam_context *made = nullptr;
    const lam_status code = lam_context_create(&desc, &made);
    if (code != LAM_OK) return check(code);
    out.reset(made);
    out.hooks_ = std::move(kept);
    return detail::done();
  }
  outcome stats(lam_context_stats &out) const {
    out = LAM_CONTEXT_STATS_INIT;
    return check(lam_context_get_stats(get(), &out));
  }

 private:
  std::unique_ptr<hooks> hooks_; /* where they are stays the same when the context moves */
};

/* ---- Groups ---- */

/* Made by one rank and carried to the others by any side channel. */
inline outcome make_group_id(lam_group_id &out) { return check(lam_group_id_create(&out)); }

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
  /* Over the host's own communication, which outlives the group. */
  static outcome create(const context &ctx, const lam_group_desc &desc,
                        const lam_callbacks &callbacks, group &out) {
    lam_group *made = nullptr;
    const lam_status code = lam_group_from_callbacks(ctx.get(), &desc, &callbacks, &made);
    return detail::take(code, made, out);
  }
  outcome info(lam_group_info &out) const {
    out = LAM_GROUP_INFO_INIT;
    return check(lam_group_get_info(get(), &out));
  }
  outcome warm_up() { return check(lam_group_warmup(get())); }
  /* Ends its world for every rank, from any thread. */
  void poison(lam_status why, const char *message) { lam_group_poison(get(), why, message); }
  int64_t id() const { return lam_group_handle(get()); } /* the `group` attribute of a call */
};

/* ---- Tensors ---- */

inline constexpr DLDataType f32 = {kDLFloat, 32, 1}, bf16 = {kDLBfloat, 16, 1};

template <class T>
constexpr DLDataType dtype_of() {
  static_assert(std::is_arithmetic_v<T>, "name the dtype: tensor(data, lamella::bf16, {n, k})");
  const int code = std::is_floating_point_v<T> ? kDLFloat : std::is_signed_v<T> ? kDLInt : kDLUInt;
  return {static_cast<uint8_t>(code), 8 * sizeof(T), 1};
}

/* A view of memory: it borrows the data and owns the numbers. On the CPU, and without strides
 * row-major, where it is not told. A default one is absent. */
class tensor {
 public:
  tensor() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  tensor(T *data, std::initializer_list<int64_t> shape, std::initializer_list<int64_t> strides = {})
      : tensor(const_cast<std::remove_const_t<T> *>(data), dtype_of<std::remove_const_t<T>>(),
               shape, strides) {}
  /* Any dtype, such as lamella::bf16. */
  tensor(void *data, DLDataType dtype, std::initializer_list<int64_t> shape,
         std::initializer_list<int64_t> strides = {})
      : tensor(data, dtype, shape.size(), shape.begin(),
               strides.size() == shape.size() ? strides.begin() : nullptr) {
    if (strides.size() && strides.size() != shape.size()) ndim_ = -1;
  }
  tensor(void *data, DLDataType dtype, std::size_t ndim, const int64_t *shape,
         const int64_t *strides = nullptr)
      : data_(data), dtype_(dtype), ndim_(ndim > max_dims ? -1 : static_cast<int32_t>(ndim)) {
    if (ndim_ < 0) return; /* the library refuses it by name */
    std::copy_n(shape, ndim, dims_);
    int64_t step = 1;
    for (std::size_t i = ndim; i-- > 0; step *= dims_[i]) strides_[i] = strides ? strides[i] : step;
  }
  /* What a stage is given, or a producer of DLPack. */
  explicit tensor(const DLTensor &t)
      : tensor(static_cast<char *>(t.data) + t.byte_offset, t.dtype,
               static_cast<std::size_t>(t.ndim), t.shape, t.strides) {
    device_ = t.device;
  }

  bool absent() const { return ndim_ == none; }
  int ndim() const { return ndim_; }
  int64_t dim(int i) const { return dims_[i < 0 ? ndim_ + i : i]; } /* -1 is the last */
  template <class T>
  T *data() const {
    return static_cast<T *>(data_);
  }
  /* Points into this tensor. */
  DLTensor view() { return {data_, device_, ndim_, dtype_, dims_, strides_, 0}; }

 private:
  static constexpr std::size_t max_dims = 8;
  static constexpr int32_t none = -2;
  void *data_ = nullptr;
  DLDataType dtype_ = f32;
  int32_t ndim_ = none;
  DLDevice device_ = {kDLCPU, 0};
  int64_t dims_[max_dims] = {}, strides_[max_dims] = {};
};

/* ---- Calls ---- */

/* A row of the operator table. */
struct row {
  uint32_t id;
  std::string_view name, inputs, outputs, attributes;
};

inline constexpr row rows[] = {
#define LAM_OP(id, name, inputs, outputs, attributes, shapes, effect) \
  {id, #name, inputs, outputs, attributes},
#include <lamella_ops.def>
#undef LAM_OP
};

namespace detail {
/* How many words, split by blanks. */
constexpr std::size_t count(std::string_view list) {
  std::size_t n = list.empty() ? 0 : 1;
  for (const char c : list) n += c == ' ';
  return n;
}
/* The most of any row. */
constexpr std::size_t most(std::string_view row::*list) {
  std::size_t n = 0;
  for (const row &r : rows) n = count(r.*list) > n ? count(r.*list) : n;
  return n;
}
/* The place of an attribute in "group:i act:s=gelu"; as many as there are, if none has the name. */
constexpr std::size_t place(std::string_view attributes, std::string_view name) {
  std::size_t i = 0;
  for (; !attributes.empty(); i++) {
    if (attributes.substr(0, attributes.find(':')) == name) return i;
    const std::size_t blank = attributes.find(' ');
    attributes.remove_prefix(blank == attributes.npos ? attributes.size() : blank + 1);
  }
  return i;
}
}  // namespace detail

/* One call, put together by name: ops::linear(x, w).out(y).set("act", "silu").run(). Strings and
 * lists that are set must live until it runs. */
class call {
 public:
  explicit call(const row &r) : row_(r), n_attrs_(detail::count(r.attributes)) {}

  call &in(const tensor &t) {
    if (n_in_ < most_in) in_[n_in_] = t;
    n_in_++; /* one too many is the library's to refuse */
    return *this;
  }
  call &out(const tensor &t) {
    if (n_out_ < most_out) out_[n_out_] = t;
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
  /* Memory for the call, as much as infer tells, in place of the context's. */
  call &scratch(void *data, uint64_t bytes) {
    scratch_ = data, scratch_bytes_ = bytes;
    return *this;
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
  static constexpr std::size_t most_in = detail::most(&row::inputs),
                               most_out = detail::most(&row::outputs),
                               most_attrs = detail::most(&row::attributes);

  call &put(std::string_view name, const lam_attr &value) {
    const std::size_t i = detail::place(row_.attributes, name);
    if (i < n_attrs_)
      attrs_[i] = value;
    else if (unknown_.empty())
      unknown_ = name;
    return *this;
  }

  template <class Function>
  outcome with_call(Function function) {
    if (!unknown_.empty())
      return detail::fail(LAM_INVALID_ARGUMENT, std::string(row_.name) + ": " + unknown_ +
                                                    ": no attribute has this name; it has " +
                                                    std::string(row_.attributes));
    DLTensor views[most_in + most_out];
    const DLTensor *inputs[most_in];
    DLTensor *outputs[most_out];
    for (std::size_t i = 0; i < std::min(n_in_, most_in); i++) {
      views[i] = in_[i].view();
      inputs[i] = in_[i].absent() ? nullptr : &views[i];
    }
    for (std::size_t i = 0; i < std::min(n_out_, most_out); i++) {
      views[most_in + i] = out_[i].view();
      outputs[i] = out_[i].absent() ? nullptr : &views[most_in + i];
    }
    lam_call c = LAM_CALL_INIT;
    c.op = row_.id;
    c.inputs = inputs, c.n_inputs = static_cast<uint32_t>(n_in_);
    c.outputs = outputs, c.n_outputs = static_cast<uint32_t>(n_out_);
    c.attrs = attrs_, c.n_attrs = static_cast<uint32_t>(n_attrs_);
    c.scratch = scratch_, c.scratch_bytes = scratch_bytes_;
    return check(function(c));
  }

  row row_;
  std::size_t n_in_ = 0, n_out_ = 0, n_attrs_;
  tensor in_[most_in], out_[most_out];
  lam_attr attrs_[most_attrs] = {};
  void *scratch_ = nullptr;
  uint64_t scratch_bytes_ = 0;
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

}  // namespace LAMELLA_MODE_
}  // namespace lamella

#include "lamella_pipeline.hpp"
#undef LAMELLA_MODE_
#endif
