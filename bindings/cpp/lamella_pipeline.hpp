/* lamella_pipeline.hpp: the part of lamella.hpp that is about pipelines: schedules, and stages that
 * are any callable. lamella.hpp includes it.
 *
 * Invariant: as lamella.hpp. */
#ifndef LAMELLA_PIPELINE_HPP
#define LAMELLA_PIPELINE_HPP
#ifndef LAMELLA_HPP
#error "include lamella.hpp"
#endif

#include <vector>
#ifndef LAMELLA_RETURN_STATUS
#include <exception>
#endif

namespace lamella {
inline namespace LAMELLA_MODE_ {

/* ---- Schedules ---- */

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
  /* The same with its transfers written out. */
  outcome lower(schedule &out) const {
    lam_schedule *made = nullptr;
    const lam_status code = lam_schedule_lower(get(), &made);
    return detail::take(code, made, out);
  }
  /* As "text", or as "csv" for PyTorch. */
  outcome write(std::string &out, const char *format = "text") const {
    uint64_t bytes = 0;
    lam_status code = lam_schedule_write(get(), format, nullptr, 0, &bytes);
    if (code != LAM_OK) return check(code);
    std::string text(bytes + 1, '\0');
    code = lam_schedule_write(get(), format, text.data(), text.size(), &bytes);
    text.resize(bytes);
    if (code == LAM_OK) out = std::move(text);
    return check(code);
  }
  /* Proves that it can run. Arrays that out has stay where they are. */
  outcome prove(lam_schedule_info &out) const { return check(lam_schedule_check(get(), &out)); }
  outcome simulate(const lam_costs &costs, lam_simulated &out) const {
    return check(lam_schedule_simulate(get(), &costs, &out));
  }
};

/* ---- Pipelines ---- */

inline lam_pipeline_desc pipeline_desc() { return LAM_PIPELINE_DESC_INIT; }

/* A stage's work on one micro-batch, or on two of them at once: tensor(io.in[0]), *io.loss += x. */
using stage_function = std::function<outcome(const lam_stage_io &io)>;
using stage_pair_function = std::function<outcome(const lam_stage_io &f, const lam_stage_io &b)>;

struct stage { /* an empty function means "cannot" */
  stage_function forward, backward, backward_input, backward_weight, reduce_grad;
  stage_pair_function forward_backward;
  uint32_t flags = 0; /* LAM_STAGE_... */
};

namespace detail {
#ifdef LAMELLA_RETURN_STATUS
/* Calls that C makes, and what the first of them that failed had to say. */
class failure {
 public:
  template <class Function>
  lam_status code_of(Function function) {
    status s = function();
    const lam_status code = s.code();
    if (code != LAM_OK && first_.ok()) first_ = std::move(s);
    return code;
  }
  bool any() const { return !first_.ok(); }
  outcome tell() { return std::exchange(first_, status()); }

 private:
  status first_;
};
#else
/* Calls that C makes, and what the first of them that failed threw. */
class failure {
 public:
  template <class Function>
  lam_status code_of(Function function) {
    try {
      function();
      return LAM_OK;
    } catch (const error &e) {
      return keep(e.code() == LAM_OK ? LAM_INTERNAL : e.code());
    } catch (...) {
      return keep(LAM_INTERNAL);
    }
  }
  bool any() const { return first_ != nullptr; }
  [[noreturn]] void tell() { std::rethrow_exception(std::exchange(first_, nullptr)); }

 private:
  lam_status keep(lam_status code) {
    if (!first_) first_ = std::current_exception();
    return code;
  }
  std::exception_ptr first_;
};
#endif

/* Stages that C calls. What they throw, or return, ends the step and is told by run. */
class stages {
 public:
  explicit stages(std::vector<stage> of) : stages_(std::move(of)) {
    for (const stage &s : stages_) bound_.push_back({&s, &failed_});
    for (bound &b : bound_) as_c_.push_back(describe(b));
  }
  const std::vector<lam_stage> &as_c() const { return as_c_; }
  failure &failed() { return failed_; }

 private:
  struct bound {
    const stage *is;
    failure *failed;
  };
  template <stage_function stage::*function>
  static lam_status call(void *user, const lam_stage_io *io) {
    const bound &b = *static_cast<bound *>(user);
    return b.failed->code_of([&] { return (b.is->*function)(*io); });
  }
  static lam_status call_pair(void *user, const lam_stage_io *f, const lam_stage_io *g) {
    const bound &b = *static_cast<bound *>(user);
    return b.failed->code_of([&] { return b.is->forward_backward(*f, *g); });
  }
  static lam_stage describe(bound &b) {
    lam_stage s = LAM_STAGE_INIT;
    s.flags = b.is->flags;
    s.user = &b;
    if (b.is->forward) s.forward = call<&stage::forward>;
    if (b.is->backward) s.backward = call<&stage::backward>;
    if (b.is->backward_input) s.backward_input = call<&stage::backward_input>;
    if (b.is->backward_weight) s.backward_weight = call<&stage::backward_weight>;
    if (b.is->reduce_grad) s.reduce_grad = call<&stage::reduce_grad>;
    if (b.is->forward_backward) s.forward_backward = call_pair;
    return s;
  }

  std::vector<stage> stages_;
  std::vector<bound> bound_;
  std::vector<lam_stage> as_c_;
  failure failed_;
};
}  // namespace detail

/* The group and schedule in its desc outlive it, and so does what stages refer to. */
class pipeline : public detail::handle<lam_pipeline, lam_pipeline_destroy> {
 public:
  static outcome create(const context &ctx, const lam_pipeline_desc &desc, pipeline &out) {
    lam_pipeline *made = nullptr;
    const lam_status code = lam_pipeline_create(ctx.get(), &desc, &made);
    return detail::take(code, made, out);
  }
  /* This rank's stages, by ascending stage number, in place of those of desc. */
  static outcome create(const context &ctx, lam_pipeline_desc desc, std::vector<stage> stages,
                        pipeline &out) {
    auto kept = std::make_unique<detail::stages>(std::move(stages));
    desc.stages = kept->as_c().data();
    desc.n_stages = static_cast<uint32_t>(kept->as_c().size());
    lam_pipeline *made = nullptr;
    const lam_status code = lam_pipeline_create(ctx.get(), &desc, &made);
    if (code != LAM_OK) return check(code);
    out.reset(made);
    out.stages_ = std::move(kept);
    return detail::done();
  }
  /* One step. What a stage threw is thrown again, the same object; what it returned, returned. */
  outcome run(int64_t step, double *out_loss = nullptr) {
    const lam_status code = lam_pipeline_run(get(), step, out_loss);
    if (code != LAM_OK && stages_ && stages_->failed().any()) return stages_->failed().tell();
    return check(code);
  }
  /* Arrays that out has stay where they are. */
  outcome report(lam_pipeline_report &out) const {
    return check(lam_pipeline_get_report(get(), &out));
  }

 private:
  std::unique_ptr<detail::stages> stages_;
};

}  // namespace LAMELLA_MODE_
}  // namespace lamella
#endif
