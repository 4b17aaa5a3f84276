// Replicas of which another one is slow in every step, as machines are that others use, too: how
// long a step takes, by train.staleness. Nothing is computed: streams sleep, so that this machine
// has as many replicas as wanted. Prints a line for each staleness. Usage: uneven_cluster_bench
// [REPLICAS [SLOWNESS [STEPS]]]

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <optional>

#include <fmt/format.h>

#include "troupe/actors/trainer.hpp"

#include "empty_stages.hpp"

namespace {

using namespace troupe;

constexpr std::chrono::milliseconds pass_time{5};
constexpr std::uint32_t microbatch_count = 8;

[[noreturn]] void stop(const Error& error) {
  fmt::print(stderr, "uneven_cluster_bench: {}\n", error.context);
  std::exit(EXIT_FAILURE);
}

std::uint32_t argument(int argc, char** argv, int index, std::uint32_t otherwise) {
  return argc > index ? static_cast<std::uint32_t>(std::atoi(argv[index])) : otherwise;
}

/// Replica after replica takes `slowness` times as long for one step.
actors::RankParts uneven_parts(std::uint32_t slowness) {
  actors::RankParts parts;
  parts.make_stage = [slowness](const Plan& plan, const StagePlan& stage, stages::Device& device,
                                stages::Stream& stream, const stages::StagePeers& peers) {
    const auto replicas = plan.config.parallel.data;
    auto props = empty_stage_props(plan, stage, peers);
    props.pass_time = [=, replica = peers.holders.group->rank()](std::uint32_t step) {
      return step % replicas == replica ? slowness * pass_time : pass_time;
    };
    return stages::make_counting_stage(device, stream, props);
  };
  return parts;
}

/// Milliseconds per step, of all steps between the first two and the last two.
double step_ms(std::uint32_t replicas, std::uint32_t slowness, std::uint32_t steps,
               std::optional<std::uint32_t> staleness) {
  auto config = empty_config({.data = replicas, .tensor = 1, .pipeline = 1}, microbatch_count);
  config.train.steps = steps + 4;
  config.train.validation_interval = 0;
  if (staleness) {
    config.train.synchronization = Synchronization::parameter_server;
    config.train.staleness = *staleness;
  }
  const auto plan = make_plan(config);
  if (!plan) stop(plan.error());
  auto trainer = actors::Trainer::make(*plan, empty_batch, uneven_parts(slowness));
  if (!trainer) stop(trainer.error());
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
    const auto report = (*trainer)->train_step();
    if (!report) stop(report.error());
    if (step == 2) begin_ns = report->end_ns;
    if (step == steps + 2) end_ns = report->end_ns;
  }
  return static_cast<double>(end_ns - begin_ns) / 1e6 / steps;
}

}  // namespace

int main(int argc, char** argv) {
  const auto replicas = argument(argc, argv, 1, 4);
  const auto slowness = argument(argc, argv, 2, 3);
  const auto steps = argument(argc, argv, 3, 40);
  const auto even_ms =
      std::chrono::duration<double, std::milli>{pass_time}.count() * 2 * microbatch_count;
  fmt::print(
      "{} replicas, passes of {} ms, 2 x {} in a step, those of one replica {} times as long\n",
      replicas, pass_time.count(), microbatch_count, slowness);
  fmt::print("all-reduce           {:7.1f} ms per step\n", step_ms(replicas, slowness, steps, {}));
  for (const std::uint32_t staleness : {0U, 1U, 2U, 3U}) {
    fmt::print("server, staleness {}  {:7.1f} ms per step\n", staleness,
               step_ms(replicas, slowness, steps, staleness));
  }
  fmt::print("passes alone: {:.1f} ms of the slowest in each step, {:.1f} ms of each in the mean\n",
             slowness * even_ms, even_ms * (replicas - 1 + slowness) / replicas);
  return EXIT_SUCCESS;
}
