// What the runtime itself costs: a grid of counting stages, which compute nothing, trains for a
// while. Prints processor time and wall time per action; the bars are 10 us and 20 us.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <fmt/format.h>
#include <sys/resource.h>

#include "troupe/actors/trainer.hpp"

#include "empty_stages.hpp"

namespace {

using namespace troupe;

double processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const auto ranks = static_cast<std::uint32_t>(argc > 1 ? std::atoi(argv[1]) : 4);
  const auto microbatches = static_cast<std::uint32_t>(argc > 2 ? std::atoi(argv[2]) : 32);
  constexpr int warmup_count = 20;
  constexpr int round_count = 9;
  constexpr int steps_per_round = 50;

  const auto plan = make_plan(empty_config({.pipeline = ranks}, microbatches));
  actors::RankParts parts;
  parts.make_stage = make_empty_stage;
  auto trainer = actors::Trainer::make(*plan, empty_batch, std::move(parts));
  for (int i = 0; i < warmup_count; ++i) (void)(*trainer)->train_step();

  const double actions = 2.0 * ranks * microbatches * steps_per_round;
  std::vector<double> wall_us;
  std::vector<double> processor_us;
  for (int round = 0; round < round_count; ++round) {
    const auto processor_before = processor_seconds();
    const auto before_ns = stages::steady_now_ns();
    for (int i = 0; i < steps_per_round; ++i) (void)(*trainer)->train_step();
    wall_us.push_back(static_cast<double>(stages::steady_now_ns() - before_ns) / 1e3 / actions);
    processor_us.push_back((processor_seconds() - processor_before) * 1e6 / actions);
  }
  fmt::print("{} ranks, {} microbatches, {} actions per round, {} rounds\n", ranks, microbatches,
             actions, round_count);
  fmt::print("wall       {:6.2f} us per action (median; min {:.2f}, max {:.2f})\n", median(wall_us),
             std::ranges::min(wall_us), std::ranges::max(wall_us));
  fmt::print("processor  {:6.2f} us per action (median; min {:.2f}, max {:.2f})\n",
             median(processor_us), std::ranges::min(processor_us), std::ranges::max(processor_us));
  return 0;
}
