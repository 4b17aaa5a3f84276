// How fast the simulator is: actions per second with one thing after the other to simulate, the
// largest pipeline, a sweep. Times are the processor's. Usage: simulator_bench, or
// simulator_bench FILE for the seconds that one simulation of the schedule in a CSV file takes.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <sys/resource.h>

#include "troupe/engine/plan.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/simulate.hpp"

namespace {

using namespace troupe;

/// Of the processor, so that other work on the machine disturbs less.
double seconds_of(const std::function<void()>& work) {
  const auto begin = std::clock();
  work();
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

/// The median of several runs of at least a tenth of a second in all.
double median_seconds(const std::function<void()>& work) {
  std::vector<double> runs;
  double sum = 0.0;
  while (runs.size() < 5 || sum < 0.1) {
    runs.push_back(seconds_of(work));
    sum += runs.back();
  }
  std::ranges::sort(runs);
  return runs[runs.size() / 2];
}

double peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

/// Interleaved 1F1B of two chunks with fewer microbatches than ranks: all of them are one group.
Schedule make_one_group(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  Schedule schedule{.name = "interleaved-1f1b",
                    .microbatch_count = microbatch_count,
                    .rank_of_stage = make_stage_map(StageMap::looped, rank_count, 2),
                    .ranks = std::vector<std::vector<Action>>(rank_count)};
  const auto count = 2 * microbatch_count;
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    const auto action = [&](Pass pass, std::uint32_t k) {
      const auto is_second = (k < microbatch_count) == (pass == Pass::backward);
      return Action{StageIndex{is_second ? rank_count + r : r}, pass,
                    MicrobatchIndex{k % microbatch_count}};
    };
    const auto warmup_count = std::min(2 * (rank_count - 1 - r) + microbatch_count, count);
    auto& row = schedule.ranks[r];
    row.reserve(std::size_t{2} * count);
    for (std::uint32_t k = 0; k < count + warmup_count; ++k) {
      if (k < count) row.push_back(action(Pass::forward, k));
      if (k >= warmup_count) row.push_back(action(Pass::backward, k - warmup_count));
    }
  }
  return schedule;
}

std::vector<StageBounds> bounds_of_all(const Schedule& schedule) {
  const auto evaluation = make_forward_only(schedule);
  std::vector<StageBounds> bounds;
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    bounds.push_back(bounds_of(schedule, evaluation, StageIndex{s}));
  }
  return bounds;
}

void print_rate(const char* name, double actions, double seconds) {
  std::printf("%-44s %6.1f million actions/s\n", name, actions / seconds * 1e-6);
  std::fflush(stdout);
}

void measure_features() {
  const auto schedule = make_1f1b(64, 512);
  const auto actions = static_cast<double>(schedule.action_count());
  const CostModel passes{.stages = {PassCosts::of_parts(1000, 1000, 1000)}, .link_ns = {100}};
  const auto measure = [&](const char* name, const CostModel& costs) {
    const auto count = actions * costs.replicas.count;
    print_rate(name, count,
               median_seconds([&] { (void)simulate(schedule, costs, Recording::totals); }));
  };
  measure("passes and links, totals", passes);
  print_rate("passes and links, entries", actions,
             median_seconds([&] { (void)simulate(schedule, passes); }));
  auto costs = passes;
  costs.network.activation_bytes = costs.network.gradient_bytes = {1000};
  costs.network.wire.bytes_per_second = 1e10;
  measure("and bandwidth", costs);
  costs.runtime.bounds = bounds_of_all(schedule);
  measure("and bounded buffers", costs);
  costs.runtime.dispatch_ns = 5;
  measure("and a runtime that takes time", costs);
  costs.network.overlaps_passes = false;
  measure("and sends that passes wait for", costs);
  costs.replicas = {.count = 4, .bucket_bytes = {{1000, 1000}}, .wire = {10, 1e10}};
  measure("and four replicas", costs);
  costs.network.interfaces.resize(64);
  for (std::uint32_t r = 0; r < 64; ++r) costs.network.interfaces[r] = r / 8;
  measure("and an interface for every eight ranks", costs);
  costs.jitter = {.pass_spread = 0.1, .transfer_spread = 0.1};
  measure("and jitter", costs);
  auto jitter = passes;
  jitter.jitter = {.pass_spread = 0.1};
  measure("passes and links with jitter alone", jitter);
  print_rate("passes and links, by machines", actions,
             median_seconds([&] { (void)simulate_machines(schedule, passes); }));
}

void measure_large(std::uint32_t rank_count, std::uint32_t microbatch_count, Recording recording) {
  Schedule schedule;
  const auto make_s = seconds_of([&] { schedule = make_one_group(rank_count, microbatch_count); });
  Timeline timeline;
  const auto simulate_s = seconds_of([&] { timeline = simulate(schedule, {}, recording); });
  const auto actions = static_cast<double>(schedule.action_count());
  std::printf(
      "%u ranks, %u microbatches, %s: made in %.2f s, simulated in %.2f s, %.1f million "
      "actions/s, bubble %.1f %%, peak %.0f MiB\n",
      rank_count, microbatch_count, recording == Recording::entries ? "entries" : "totals", make_s,
      simulate_s, actions / simulate_s * 1e-6, 100.0 * timeline.bubble_of_total(), peak_mib());
  std::fflush(stdout);
}

/// Every configuration has costs and a number of microbatches of its own.
void measure_sweep() {
  constexpr std::uint32_t count = 1000;
  double actions = 0.0;
  const auto all_s = seconds_of([&] {
    for (std::uint32_t i = 0; i < count; ++i) {
      Random random{i};
      const auto draw = [&] { return static_cast<std::int64_t>(1 + random.below(1000)); };
      const auto schedule = make_interleaved_1f1b(64, 64 * (1 + i % 4), 2).value();
      const CostModel costs{.stages = {PassCosts::of_parts(draw(), draw(), draw())},
                            .link_ns = {draw()},
                            .jitter = {.pass_spread = 0.05 * (i % 2), .seed = i}};
      actions += static_cast<double>(schedule.action_count());
      (void)simulate(schedule, costs, Recording::totals);
    }
  });
  std::printf(
      "a sweep of %u configurations of 64 ranks, half of them with jitter, schedules made: "
      "%.2f s, %.1f million actions/s\n",
      count, all_s, actions / all_s * 1e-6);
}

int measure_file(const char* path) {
  std::ifstream file{path};
  const std::string text{std::istreambuf_iterator<char>{file}, {}};
  const auto schedule = from_csv(text, path);
  if (!schedule) {
    std::fprintf(stderr, "simulator_bench: %s\n", schedule.error().context.c_str());
    return EXIT_FAILURE;
  }
  std::printf("%.9f\n", median_seconds([&] { (void)simulate(*schedule, {}); }));
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return measure_file(argv[1]);
  measure_large(8192, 512, Recording::totals);
  measure_large(8192, 512, Recording::entries);
  measure_features();
  measure_sweep();
  return EXIT_SUCCESS;
}
