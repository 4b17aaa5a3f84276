#include "profile_measurement.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/random.hpp"

#include "mean.hpp"
#include "reduction_measurement.hpp"
#include "run_inputs.hpp"
#include "unevenness.hpp"

namespace troupe::cli {

namespace {

using actors::StepReport;
using actors::TraceEntry;
using Clock = std::chrono::steady_clock;

constexpr std::uint32_t warmup_steps = 2;  // In which matrix products are compiled.
constexpr std::uint32_t steps_min = 3;

/// Tokens at random. What they are changes nothing about how long they take.
void fill_at_random(const ModelSpec& model, std::uint32_t step, stages::Batch& batch) {
  Random random{step};
  const auto fill = [&random](std::vector<std::int32_t>& numbers, std::uint32_t end) {
    for (auto& number : numbers) number = static_cast<std::int32_t>(random.below(end));
  };
  fill(batch.tokens, model.vocabulary);
  fill(batch.targets, model.outcome_count());
}

/// A training of two stages of as many layers, or of one if there is one stream, or more if their
/// number is odd, and what its steps took.
class Probe {
public:
  static Expected<std::unique_ptr<Probe>> make(const Plan& plan, std::uint32_t tensor,
                                               std::uint32_t layers_per_stage, bool split,
                                               Recompute recompute) {
    auto config = plan.config;
    // All streams are to compute at once; the shards of a stage always do.
    const auto lines = std::max(1U, concurrent_streams(plan) / tensor);
    auto stages = std::min(lines, 2U);
    while (lines % stages != 0) ++stages;
    config.model.layers = layers_per_stage * stages;
    config.parallel = {.data = lines / stages, .tensor = tensor, .pipeline = stages};
    config.schedule = {.name = "1f1b",
                       .microbatches = microbatches,
                       .microbatch_size = plan.config.schedule.microbatch_size,
                       .split_backward = split,
                       .layers_per_stage = std::vector(stages, layers_per_stage)};
    config.train.learning_rate = config.train.min_learning_rate = 0.0;
    config.train.recompute = recompute;
    config.train.recompute_stages.clear();
    auto probe = make_plan(config);
    if (!probe) return probe.error();
    auto trainer = actors::Trainer::make(
        *probe,
        [model = config.model](StepKind, std::uint32_t step, std::uint32_t, stages::Batch& batch) {
          fill_at_random(model, step, batch);
        });
    if (!trainer) return trainer.error();
    return std::unique_ptr<Probe>{new Probe{layers_per_stage, std::move(*trainer)}};
  }

  [[nodiscard]] Expected<Done> run_step() {
    const auto report = trainer_->train_step();
    if (!report) return report.error();
    if (report->step > warmup_steps) observe(*report);
    return Done{};
  }

  [[nodiscard]] std::uint32_t layers() const noexcept { return layers_; }
  [[nodiscard]] const Plan& plan() const noexcept { return trainer_->plan(); }
  [[nodiscard]] double pass_ns(StageIndex stage, Pass pass) const {
    const auto found = passes_.find({stage, pass});
    return found == passes_.end() ? 0.0 : found->second.value();
  }

  /// By step, by actor: its passes.
  [[nodiscard]] const std::vector<std::vector<std::vector<TraceEntry>>>& steps() const noexcept {
    return steps_;
  }

  Mean optimizer_ns, measuring_ns, hop_ns, director_ns, start_ns;

private:
  static constexpr std::uint32_t microbatches = 4;

  Probe(std::uint32_t layers, std::unique_ptr<actors::Trainer> trainer)
      : layers_{layers}, trainer_{std::move(trainer)} {}

  void observe(const StepReport& report) {
    auto waited_ns = report.end_ns - report.begin_ns;
    auto& step = steps_.emplace_back();
    for (const auto& rank : report.ranks) {
      auto& actor = step.emplace_back();
      waited_ns = std::min(waited_ns, rank.account[TimeCause::director]);
      measuring_ns.add(static_cast<double>(rank.account[TimeCause::measuring]));
      for (const auto& entry : rank.trace) {
        const auto ns = static_cast<double>(entry.end_ns - entry.begin_ns);
        if (entry.kind == TraceEntry::Kind::pass) {
          passes_[{entry.action.stage, entry.action.pass}].add(ns);
          actor.push_back(entry);
        }
        if (entry.kind == TraceEntry::Kind::optimize) optimizer_ns.add(ns);
      }
      if (rank.coordinate.pipeline == RankIndex{0}) {
        start_ns.add(static_cast<double>(rank.trace.front().begin_ns - report.begin_ns));
        observe_hop(report, rank);
      }
    }
    director_ns.add(static_cast<double>(waited_ns));
  }

  /// The last stage has nothing to do until the first microbatch comes.
  void observe_hop(const StepReport& report, const actors::RankReport& first) {
    for (const auto& rank : report.ranks) {
      if (rank.coordinate.pipeline == RankIndex{0}
          || rank.coordinate.replica != first.coordinate.replica
          || rank.coordinate.shard != first.coordinate.shard)
        continue;
      hop_ns.add(static_cast<double>(rank.trace.front().begin_ns - first.trace.front().end_ns));
    }
  }

  std::uint32_t layers_;
  std::unique_ptr<actors::Trainer> trainer_;
  std::map<std::pair<StageIndex, Pass>, Mean> passes_;
  std::vector<std::vector<std::vector<TraceEntry>>> steps_;
};

/// What a pass takes on a stage of either size.
struct Line {
  std::array<double, 2> layers;
  std::array<double, 2> ns;

  /// Its part of the normal equations for what a layer takes, if the stage takes something besides
  /// its layers that is to be fitted too, or nothing.
  struct Sums {
    double of_ns = 0.0;
    double of_layers = 0.0;
  };
  [[nodiscard]] Sums sums(bool takes_more) const {
    const auto middle = takes_more ? (layers[0] + layers[1]) / 2.0 : 0.0;
    Sums sums;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      sums.of_ns += (layers[i] - middle) * ns[i];
      sums.of_layers += (layers[i] - middle) * (layers[i] - middle);
    }
    return sums;
  }
  [[nodiscard]] double besides_layers_ns(double layer_ns) const {
    return (ns[0] + ns[1] - (layers[0] + layers[1]) * layer_ns) / 2.0;
  }
};

/// The least squares through both ends of the model, none of whose parts takes less than nothing.
struct Fit {
  double layer_ns = 0.0;
  std::array<double, 2> ends_ns{};  ///< What the first and the last stage take besides.
};

Fit fit(const std::array<Line, 2>& ends) {
  std::array takes_more{true, true};
  while (true) {
    Line::Sums sums;
    for (std::size_t i = 0; i < ends.size(); ++i) {
      const auto part = ends[i].sums(takes_more[i]);
      sums.of_ns += part.of_ns;
      sums.of_layers += part.of_layers;
    }
    Fit found{.layer_ns = std::max(0.0, sums.of_ns / sums.of_layers)};
    bool is_possible = true;
    for (std::size_t i = 0; i < ends.size(); ++i) {
      if (!takes_more[i]) continue;
      found.ends_ns[i] = ends[i].besides_layers_ns(found.layer_ns);
      if (found.ends_ns[i] >= 0.0) continue;
      takes_more[i] = is_possible = false;
    }
    if (is_possible) return found;
  }
}

std::int64_t rounded(double ns) {
  return std::llround(std::max(0.0, ns));
}

/// The probes of stages of so many shards, whole and split, of one layer per stage and of more, and
/// of as many that recompute if the plan does.
struct Probes {
  std::uint32_t shard_count = 1;
  std::array<std::unique_ptr<Probe>, 2> small;  ///< By whether it splits.
  std::array<std::unique_ptr<Probe>, 2> large;
  std::array<std::unique_ptr<Probe>, 2> recomputing;

  static Expected<Probes> make(const Plan& plan, std::uint32_t shard_count) {
    const auto layers_of_stage = plan.config.model.layers / plan.training.stages_per_copy();
    const auto layers_max = std::clamp(layers_of_stage, 2U, 4U);
    const auto recompute = plan.config.train.recompute;
    Probes probes{.shard_count = shard_count, .small = {}, .large = {}, .recomputing = {}};
    for (const bool split : {false, true}) {
      for (auto* probe : {&probes.small[split], &probes.large[split]}) {
        const auto layers = probe == &probes.small[split] ? 1U : layers_max;
        auto made = Probe::make(plan, shard_count, layers, split, Recompute::none);
        if (!made) return made.error();
        *probe = std::move(*made);
      }
      if (recompute == Recompute::none) continue;
      auto made = Probe::make(plan, shard_count, layers_max, split, recompute);
      if (!made) return made.error();
      probes.recomputing[split] = std::move(*made);
    }
    return probes;
  }

  [[nodiscard]] std::vector<Probe*> all() const {
    std::vector<Probe*> list;
    for (const auto* probes : {&small, &large, &recomputing}) {
      for (const auto& probe : *probes) {
        if (probe) list.push_back(probe.get());
      }
    }
    return list;
  }
};

/// The costs of passes. What both ends of the model take besides their layers is told apart by the
/// two stages; of one stage it all counts for the head.
PartTimes fit_passes(const Probes& probes) {
  PartTimes parts{.shard_count = probes.shard_count};
  const StageIndex first{0};
  const StageIndex last{probes.small[0]->plan().training.stage_count() - 1};
  struct Cost {
    std::int64_t PassCosts::*member;
    Pass pass;
    std::size_t split;
  };
  constexpr std::array costs{
      Cost{&PassCosts::forward_ns, Pass::forward, 0},
      Cost{&PassCosts::backward_ns, Pass::backward, 0},
      Cost{&PassCosts::backward_input_ns, Pass::backward_input, 1},
      Cost{&PassCosts::backward_weight_ns, Pass::backward_weight, 1},
  };
  for (const auto& [member, pass, split] : costs) {
    const auto& small = *probes.small[split];
    const auto& large = *probes.large[split];
    const auto line = [&, pass = pass](StageIndex stage) {
      return Line{{static_cast<double>(small.layers()), static_cast<double>(large.layers())},
                  {small.pass_ns(stage, pass), large.pass_ns(stage, pass)}};
    };
    const auto found = fit({line(first), line(last)});
    parts.layer.*member = rounded(found.layer_ns);
    parts.recomputing_layer.*member = parts.layer.*member;
    if (const auto& recomputing = probes.recomputing[split]) {
      const auto more_ns = recomputing->pass_ns(first, pass) + recomputing->pass_ns(last, pass)
                           - large.pass_ns(first, pass) - large.pass_ns(last, pass);
      parts.recomputing_layer.*member = rounded(found.layer_ns + more_ns / (2.0 * large.layers()));
    }
    parts.head.*member = rounded(found.ends_ns[1]);
    parts.embedding.*member = first == last ? 0 : rounded(found.ends_ns[0]);
  }
  return parts;
}

/// Mean over the probes of what each rank's elements take.
double per_element_ns(const std::vector<Probe*>& probes, Mean Probe::*duration_ns) {
  double sum = 0.0;
  for (auto* probe : probes) {
    const auto& plan = probe->plan();
    double elements = 0.0;
    for (const auto& stage : plan.stages) elements += elements_of(plan, stage);
    sum += (probe->*duration_ns).value() / (elements / plan.training.rank_count());
  }
  return sum / static_cast<double>(probes.size());
}

double mean_of(const std::vector<Probe*>& probes, Mean Probe::*duration_ns) {
  double sum = 0.0;
  for (auto* probe : probes) sum += (probe->*duration_ns).value();
  return sum / static_cast<double>(probes.size());
}

/// The passes of all probes, with what such passes of the same probe take in the mean.
std::vector<StepPasses> passes_of(const std::vector<Probe*>& probes) {
  std::vector<StepPasses> steps;
  for (const auto* probe : probes) {
    for (const auto& traces : probe->steps()) {
      auto& step = steps.emplace_back();
      for (const auto& trace : traces) {
        auto& passes = step.emplace_back();
        for (const auto& entry : trace) {
          passes.push_back({entry.begin_ns, entry.end_ns,
                            probe->pass_ns(entry.action.stage, entry.action.pass)});
        }
      }
    }
  }
  return steps;
}

}  // namespace

Expected<Profile> measure_profile(const Plan& plan, double seconds,
                                  const std::function<Expected<Done>()>& beside) {
  const auto deadline = Clock::now() + std::chrono::duration<double>{seconds};
  const auto& counts = plan.config.parallel.tensor.by_rank;
  std::vector<Probes> probes_of_counts;
  std::vector<Probe*> probes;
  for (const auto count : std::set(counts.begin(), counts.end())) {
    auto made = Probes::make(plan, count);
    if (!made) return made.error();
    probes_of_counts.push_back(std::move(*made));
    for (auto* probe : probes_of_counts.back().all()) probes.push_back(probe);
  }
  // In turns, so that a machine whose speed drifts does so for all.
  for (std::uint32_t step = 0; step < warmup_steps + steps_min || Clock::now() < deadline; ++step) {
    for (auto* probe : probes) {
      if (auto done = probe->run_step(); !done) return done.error();
      if (!beside) continue;
      if (auto done = beside(); !done) return done.error();
    }
  }
  Profile profile{.model = plan.config.model.resolved(),
                  .microbatch_size = plan.config.schedule.microbatch_size,
                  .threads_per_stage = plan.config.run.threads_per_stage,
                  .precision = plan.config.train.precision,
                  .stream_count = concurrent_streams(plan),
                  .recompute = plan.config.train.recompute,
                  .sequence_parallel = plan.config.train.sequence_parallel};
  for (const auto& of_count : probes_of_counts) profile.parts.push_back(fit_passes(of_count));
  profile.optimizer_ns_per_element = per_element_ns(probes, &Probe::optimizer_ns);
  profile.measuring_ns_per_element = per_element_ns(probes, &Probe::measuring_ns);
  profile.dispatch_ns = rounded(mean_of(probes, &Probe::hop_ns) / 2.0);
  profile.director_ns = rounded(mean_of(probes, &Probe::director_ns));
  profile.start_ns = rounded(mean_of(probes, &Probe::start_ns));
  profile.unevenness = unevenness_of(passes_of(probes));
  const auto reduction = measure_reduction();
  if (!reduction) return reduction.error();
  profile.reduction = *reduction;
  profile.has_spare_cores =
      std::thread::hardware_concurrency() > profile.stream_count * profile.threads_per_stage;
  return profile;
}

}  // namespace troupe::cli
