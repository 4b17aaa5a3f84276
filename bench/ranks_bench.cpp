// A grid of many ranks in one process, whose stages compute nothing: starts, runs some steps and
// stops. Prints one JSON object; bench/ranks.py draws it.
// Usage: ranks_bench [PIPELINE [DATA [MICROBATCHES [STEPS]]]]

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include <fmt/format.h>

#include "troupe/actors/trainer.hpp"

#include "empty_stages.hpp"

namespace {

using namespace troupe;

/// A number of this process, as the kernel tells it: "Threads" or "VmHWM", the latter in KiB.
std::uint64_t process_status(const std::string& name) {
  std::ifstream status{"/proc/self/status"};
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name + ":")) return std::stoull(line.substr(name.size() + 1));
  }
  return 0;
}

double seconds_since(std::int64_t begin_ns) {
  return static_cast<double>(stages::steady_now_ns() - begin_ns) * 1e-9;
}

[[noreturn]] void stop(const Error& error) {
  fmt::print(stderr, "ranks_bench: {}\n", error.context);
  std::exit(EXIT_FAILURE);
}

std::uint32_t argument(int argc, char** argv, int index, std::uint32_t otherwise) {
  return argc > index ? static_cast<std::uint32_t>(std::atoi(argv[index])) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const GridExtent grid{.data = argument(argc, argv, 2, 1),
                        .pipeline = argument(argc, argv, 1, 1000)};
  const auto microbatches = argument(argc, argv, 3, 8);
  const auto steps = argument(argc, argv, 4, 10);

  const auto plan_begin_ns = stages::steady_now_ns();
  const auto plan = make_plan(empty_config(grid, microbatches));
  if (!plan) stop(plan.error());
  const auto plan_s = seconds_since(plan_begin_ns);

  const auto start_begin_ns = stages::steady_now_ns();
  actors::RankParts parts;
  parts.make_stage = make_empty_stage;
  auto trainer = actors::Trainer::make(*plan, empty_batch, std::move(parts));
  if (!trainer) stop(trainer.error());
  const auto start_s = seconds_since(start_begin_ns);

  const auto steps_begin_ns = stages::steady_now_ns();
  for (std::uint32_t i = 0; i < steps; ++i) {
    if (const auto step = (*trainer)->train_step(); !step) stop(step.error());
  }
  const auto steps_s = seconds_since(steps_begin_ns);
  const auto threads = process_status("Threads");

  const auto stop_begin_ns = stages::steady_now_ns();
  trainer->reset();
  const auto stop_s = seconds_since(stop_begin_ns);

  fmt::print(
      "{{\"data\": {}, \"pipeline\": {}, \"microbatches\": {}, \"steps\": {}, \"plan_s\": {:.4f}, "
      "\"start_s\": {:.4f}, \"steps_s\": {:.4f}, \"stop_s\": {:.4f}, \"threads\": {}, "
      "\"peak_mib\": {:.1f}}}\n",
      grid.data, grid.pipeline, microbatches, steps, plan_s, start_s, steps_s, stop_s, threads,
      static_cast<double>(process_status("VmHWM")) / 1024.0);
  return EXIT_SUCCESS;
}
