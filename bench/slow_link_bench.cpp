// Whether communication hides behind compute as the simulator says: two stages in one process, with
// a lane on which a transfer takes 80 % of a forward pass (`run.link_delay_us`). Prints the
// measured step beside the simulated one; the bar is 3 %. First with passes that sleep for a known
// time, which shows what the runtime adds whatever else the machine does, then with a GPT, whose
// passes are taken from the same step's trace: those need the cores for themselves. Usage:
// slow_link_bench [STEPS [SHARE_PERCENT]]

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/measured_costs.hpp"

#include "empty_stages.hpp"

namespace {

using namespace troupe;

/// Lets time pass before each piece of work, as if the work took it.
class SleepingStream final : public stages::Stream {
public:
  SleepingStream(stages::Stream& inner, std::chrono::nanoseconds duration)
      : inner_{&inner}, duration_{duration} {}

  void enqueue(Work work) override {
    inner_->enqueue([this] { std::this_thread::sleep_for(duration_); });
    inner_->enqueue(std::move(work));
  }
  void record(stages::Event& event) override { inner_->record(event); }
  void wait(stages::Event& event) override { inner_->wait(event); }
  void synchronize() override { inner_->synchronize(); }

private:
  stages::Stream* inner_;
  std::chrono::nanoseconds duration_;
};

constexpr std::chrono::milliseconds nap{20};  ///< A pass that sleeps.

const GridExtent two_stages{.pipeline = 2};
constexpr std::uint32_t microbatch_count = 8;

Config gpt_config() {
  Config config;
  config.model = {.layers = 6,
                  .heads = 6,
                  .hidden = 384,
                  .sequence = 256,
                  .vocabulary = 256,
                  .tie_embeddings = false};
  config.parallel = two_stages;
  config.schedule.microbatches = microbatch_count;
  config.schedule.microbatch_size = 1;
  return config;
}

/// What a step was made of, to be simulated.
using CostsOf = std::function<CostModel(const actors::StepReport&)>;

/// Each pass, each measuring of gradients and each update is one nap.
CostModel costs_of_naps(const actors::StepReport& /*report*/) {
  const auto nap_ns = std::chrono::nanoseconds{nap}.count();
  return {.stages = {{.forward_ns = nap_ns, .backward_ns = nap_ns}}, .optimizer_ns = {2 * nap_ns}};
}

/// The step's own trace tells: a machine whose speed drifts is compared with itself.
CostModel costs_of_trace(const actors::StepReport& report) {
  MeasuredCosts measured{static_cast<std::uint32_t>(report.ranks.size())};
  std::vector<std::int64_t> optimizer_ns;
  for (const auto& rank : report.ranks) {
    for (const auto& entry : rank.trace) {
      const auto duration_ns = entry.end_ns - entry.begin_ns;
      if (entry.kind == actors::TraceEntry::Kind::pass) measured.add(entry.action, duration_ns);
      if (entry.kind == actors::TraceEntry::Kind::optimize) optimizer_ns.push_back(duration_ns);
    }
  }
  auto costs = measured.costs();
  costs.optimizer_ns = std::move(optimizer_ns);
  return costs;
}

template <class T>
T value_or_stop(Expected<T> value) {
  if (value) return std::move(*value);
  fmt::print(stderr, "slow_link_bench: {}\n", value.error().context);
  std::exit(EXIT_FAILURE);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// What the steps with one delay took.
struct Outcome {
  std::vector<double> measured_ms;
  std::vector<double> simulated_ms;
  std::vector<double> without_delay_ms;  ///< Simulated.
  std::vector<double> ratio;
  std::int64_t forward_ns = 0;
};

Outcome run_steps(actors::Trainer& trainer, std::uint32_t steps, std::int64_t link_ns,
                  const CostsOf& costs_of) {
  Outcome outcome;
  for (std::uint32_t i = 0; i < steps; ++i) {
    const auto report = value_or_stop(trainer.train_step());
    const auto& schedule = trainer.plan().training;
    auto costs = costs_of(report);
    outcome.forward_ns = costs.stages[0].forward_ns;
    const auto simulate_ms = [&](std::int64_t delay_ns) {
      costs.link_ns = {delay_ns};
      return static_cast<double>(simulate(schedule, costs).makespan_ns) * 1e-6;
    };
    outcome.without_delay_ms.push_back(simulate_ms(0));
    outcome.simulated_ms.push_back(simulate_ms(link_ns));
    outcome.measured_ms.push_back(static_cast<double>(report.end_ns - report.begin_ns) * 1e-6);
    outcome.ratio.push_back(outcome.measured_ms.back() / outcome.simulated_ms.back());
  }
  return outcome;
}

void print(const std::string& name, std::int64_t link_ns, const Outcome& outcome) {
  fmt::print(
      "{:12} link {:5.1f} ms: measured {:6.1f} ms, simulated {:6.1f} ms, ratio {:.3f} (min {:.3f}, "
      "max {:.3f}); simulated without delay {:6.1f} ms\n",
      name, static_cast<double>(link_ns) * 1e-6, median(outcome.measured_ms),
      median(outcome.simulated_ms), median(outcome.ratio), std::ranges::min(outcome.ratio),
      std::ranges::max(outcome.ratio), median(outcome.without_delay_ms));
  std::fflush(stdout);
}

/// Runs `config` with and without the delay.
void compare(Config config, const char* schedule, const char* name,
             const std::function<actors::RankParts()>& make_parts, const CostsOf& costs_of,
             std::uint32_t steps, double share) {
  config.schedule.name = schedule;
  const auto label = fmt::format("{} {}", schedule, name);
  const auto run = [&] {
    const auto plan = value_or_stop(make_plan(config));
    const auto trainer = value_or_stop(actors::Trainer::make(plan, empty_batch, make_parts()));
    const auto link_ns = std::int64_t{config.run.link_delay_us} * 1000;
    constexpr std::uint32_t warmup_count = 2;
    (void)run_steps(*trainer, warmup_count, link_ns, costs_of);
    const auto outcome = run_steps(*trainer, steps, link_ns, costs_of);
    print(label, link_ns, outcome);
    return outcome;
  };
  const auto forward_us = static_cast<double>(run().forward_ns) / 1e3;
  config.run.link_delay_us = static_cast<std::uint32_t>(forward_us * share);
  (void)run();
}

void compare_naps(const char* schedule, std::uint32_t steps, double share) {
  std::vector<std::unique_ptr<SleepingStream>> streams;
  const auto make_parts = [&streams] {
    actors::RankParts parts;
    parts.make_stage = [&streams](const Plan& plan, const StagePlan& stage, stages::Device& device,
                                  stages::Stream& stream, const stages::StagePeers& peers) {
      streams.push_back(std::make_unique<SleepingStream>(stream, nap));
      return make_empty_stage(plan, stage, device, *streams.back(), peers);
    };
    return parts;
  };
  compare(empty_config(two_stages, microbatch_count), schedule, "naps", make_parts, costs_of_naps,
          steps, share);
}

}  // namespace

int main(int argc, char** argv) {
  const auto steps = static_cast<std::uint32_t>(argc > 1 ? std::atoi(argv[1]) : 8);
  const auto share = (argc > 2 ? std::atof(argv[2]) : 80.0) / 100.0;
  for (const auto* schedule : {"gpipe", "1f1b"}) compare_naps(schedule, steps, share);
  for (const auto* schedule : {"gpipe", "1f1b"}) {
    compare(
        gpt_config(), schedule, "GPT", [] { return actors::RankParts{}; }, costs_of_trace, steps,
        share);
  }
  return EXIT_SUCCESS;
}
