/* stages.h: schedules, and pipelines of one rank whose stages are callables.
 * A part of client.cc: the big header is compiled once. */
#ifndef LAMELLA_TESTS_CPP_STAGES_H_
#define LAMELLA_TESTS_CPP_STAGES_H_
#include "client.h"

#include <utility>

namespace {

#ifdef LAMELLA_RETURN_STATUS
status well() { return {}; }
#else
void well() {}
#endif

/* Two stages on one rank over an edge of 4 numbers: y = 2 x, then the loss is their sum; and the
 * gradients on their way back. */
struct model {
  int forwards = 0, splits = 0;
  float gradient = 0;

  stage first() {
    stage s;
    s.forward = [this](const lam_stage_io &io) {
      forwards++;
      const tensor y(io.out[0]);
      for (int64_t i = 0; i < y.dim(0); i++) y.data<float>()[i] = 2 * (1.f + io.micro);
      return well();
    };
    s.backward_input = [this](const lam_stage_io &io) {
      splits++;
      gradient += tensor(io.in[0]).data<float>()[0];
      return well();
    };
    s.backward_weight = [this](const lam_stage_io &) { return splits++, well(); };
    return s;
  }
  stage last() {
    stage s;
    s.forward = [](const lam_stage_io &io) {
      const tensor x(io.in[0]);
      for (int64_t i = 0; i < x.dim(-1); i++) *io.loss += x.data<float>()[i];
      return well();
    };
    s.backward = [](const lam_stage_io &io) {
      const tensor dx(io.out[0]);
      for (int64_t i = 0; i < dx.dim(0); i++) dx.data<float>()[i] = 1;
      return well();
    };
    return s;
  }
};

/* Both stages on one rank, two micro-batches: one pipeline of the two, and what it stands on. */
struct one_rank {
  schedule order;
  lam_shape shape = {1, {kDLFloat, 32, 1}, {4}};
  lam_edge edge = LAM_EDGE_INIT;
  lam_pipeline_desc desc = pipeline_desc();

  ending make(std::vector<stage> stages, pipeline &out) {
    const ending e =
        end_of([&] { return schedule::parse("rank 0: 0F0 0F1 1F0 1B0 0B0 1F1 1B1 0B1", order); });
    if (e.code != LAM_OK) return e;
    edge.n_tensors = 1, edge.tensors = &shape;
    desc.schedule = order.get(), desc.edges = &edge, desc.n_edges = 1;
    return end_of([&] { return pipeline::create(context(), desc, std::move(stages), out); });
  }
};

bool stages_are_called() {
  one_rank rank;
  model m;
  pipeline p;
  double loss = 0;
  const ending made = rank.make({m.first(), m.last()}, p);
  EXPECT(made.code == LAM_OK);
  pipeline moved = std::move(p);
  EXPECT(end_of([&] { return moved.run(0, &loss); }).code == LAM_OK);
  EXPECT(m.forwards == 2 && loss == 4 * (2 + 4) && m.splits == 4 && m.gradient == 2);
  lam_pipeline_report report = LAM_PIPELINE_REPORT_INIT;
  EXPECT(end_of([&] { return moved.report(report); }).code == LAM_OK && report.n_actions == 8);
  return true;
}

/* What a stage failed with comes out of run as it was, not as the library would say it. */
bool a_stages_failure_is_told_by_run() {
  one_rank rank;
  model m;
  pipeline p;
  bool dry = true;
  stage broken = m.last();
#ifdef LAMELLA_RETURN_STATUS
  broken.forward = [&](const lam_stage_io &) {
    return dry ? status(LAM_UNAVAILABLE, "out of ink") : status();
  };
  EXPECT(rank.make({m.first(), broken}, p).code == LAM_OK);
  const ending e = end_of([&] { return p.run(0); });
  EXPECT(e.code == LAM_UNAVAILABLE && e.message == "out of ink");
#else
  struct ink {
    int left;
  };
  broken.forward = [&](const lam_stage_io &io) {
    if (dry) throw ink{io.micro - 1};
  };
  EXPECT(rank.make({m.first(), broken}, p).code == LAM_OK);
  int left = 0;
  try {
    p.run(0);
  } catch (const ink &e) {
    left = e.left;
  }
  EXPECT(left == -1);
#endif
  dry = false;
  EXPECT(end_of([&] { return p.run(1); }).code == LAM_OK); /* the failure was told once */
  return true;
}

bool schedules_are_built_and_written() {
  schedule s, lowered;
  std::string text;
  EXPECT(end_of([&] { return schedule::build("1f1b", 2, 1, 3, s); }).code == LAM_OK);
  EXPECT(end_of([&] { return s.write(text); }).code == LAM_OK);
  EXPECT(text.find("rank 0: 0F0 0F1 0B0") == 0);
  EXPECT(end_of([&] { return s.lower(lowered); }).code == LAM_OK);
  EXPECT(end_of([&] { return lowered.write(text, "csv"); }).code == LAM_OK);
  EXPECT(text.find("0SEND_F0") != text.npos);
  EXPECT(end_of([&] { return s.write(text, "runes"); }).code == LAM_NOT_FOUND);
  lam_schedule_info info = LAM_SCHEDULE_INFO_INIT;
  EXPECT(end_of([&] { return s.prove(info); }).code == LAM_OK && info.n_micro == 3);
  const double one[] = {1, 1};
  lam_costs costs = LAM_COSTS_INIT;
  costs.n_stages = 2, costs.forward = costs.backward_input = costs.backward_weight = one;
  lam_simulated simulated = LAM_SIMULATED_INIT;
  EXPECT(end_of([&] { return s.simulate(costs, simulated); }).code == LAM_OK);
  EXPECT(simulated.makespan == 12);
  const lam_schedule *before = s.get();
  EXPECT(end_of([&] { return schedule::parse("rank 0: 0X0", s); }).code == LAM_INVALID_ARGUMENT);
  EXPECT(s.get() == before);
  return true;
}

}  // namespace

static bool takes_callables_as_stages() {
  return schedules_are_built_and_written() && stages_are_called() &&
         a_stages_failure_is_told_by_run();
}

#endif
