#include <fmt/format.h>

#include "troupe/engine/memory_need.hpp"
#include "troupe/stages/cpu_device.hpp"

#include "calibration.hpp"
#include "commands.hpp"
#include "run_inputs.hpp"

namespace troupe::cli {

namespace {

std::string contents_of(const StageSpec& spec) {
  auto text = spec.layer_count() == 1
                  ? fmt::format("layer {}", spec.layer_begin)
                  : fmt::format("layers {}-{}", spec.layer_begin, spec.layer_end - 1);
  if (spec.has_embedding) text = "embedding, " + text;
  if (spec.has_head) text += ", head";
  return text;
}

void print_grid(const Plan& plan) {
  const auto& config = plan.config;
  const auto& grid = config.parallel;
  std::uint64_t parameter_count = 0;
  for (const auto& parameter : parameters_of(config.model)) {
    parameter_count += parameter.element_count();
  }
  fmt::print(
      "model     GPT-2, {} layers, {} heads, {} wide, {} tokens, vocabulary {}: {} parameters\n",
      config.model.layers, config.model.heads, config.model.hidden, config.model.sequence,
      config.model.vocabulary, parameter_count);
  fmt::print("grid      {} replicas x {} shards x {} pipeline ranks = {} actors\n", grid.data,
             grid.tensor, grid.pipeline, grid.rank_count());
  fmt::print("schedule  {}, {} stages, {} microbatches of {} sequences; {} tokens per step\n\n",
             plan.training.name, plan.training.stage_count(), plan.training.microbatch_count,
             config.schedule.microbatch_size, plan.tokens_per_step());
}

void print_memory(const Plan& plan) {
  for (std::uint32_t r = 0; r < plan.training.rank_count(); ++r) {
    fmt::print("rank {}: {} in each replica\n", r, format_bytes(plan.bytes_of(RankIndex{r})));
    for (const auto& stage : plan.stages) {
      if (stage.rank != RankIndex{r}) continue;
      fmt::print("  stage {}: {}\n", stage.stage.value(), contents_of(stage.spec));
      for (const auto& item : stage.memory) {
        fmt::print("    {:<40} {:>12}\n", item.name, format_bytes(item.bytes));
      }
    }
  }
  fmt::print("batches: {}\n", format_bytes(batch_bytes(plan, plan.config.parallel.data)));
  fmt::print("this process, all actors and {} for the runtime: {}\n\n",
             format_bytes(runtime_bytes(plan, plan.config.parallel.rank_count())),
             format_bytes(process_bytes(plan)));
}

Expected<Done> print_prediction(const Plan& plan) {
  const auto device = stages::make_cpu_device();
  auto rates = measure_rates(*device, plan);
  if (!rates) return rates.error();
  const auto streams = concurrent_streams(plan);
  const auto actors = plan.config.parallel.rank_count();
  // Actors beyond the cores share them.
  const auto share = static_cast<double>(streams) / actors;
  for (auto* rate : {&rates->forward_flops_per_second, &rates->backward_flops_per_second,
                     &rates->updates_per_second}) {
    *rate *= share;
  }
  const auto timeline = predict(plan, *rates, 0);
  const auto seconds = static_cast<double>(timeline.makespan_ns) / 1e9;
  fmt::print(
      "measured here: {:.0f} GFLOP/s forward, {:.0f} backward for each of {} actors on {} cores\n",
      rates->forward_flops_per_second / 1e9, rates->backward_flops_per_second / 1e9, actors,
      streams * plan.config.run.threads_per_stage);
  fmt::print("predicted step: {:.1f} ms, {:.0f} tokens/s\n", seconds * 1e3,
             plan.tokens_per_step() / seconds);
  fmt::print("predicted bubble: {:.1f}% of the time\n", 100.0 * timeline.bubble_of_total());
  return Done{};
}

}  // namespace

Expected<ExitCode> plan(const RunArguments& arguments) {
  const auto loaded = load_plan(arguments);
  if (!loaded) return loaded.error();
  print_grid(*loaded);
  print_memory(*loaded);
  if (auto fits = check_memory(*loaded, 1); !fits) return fits.error();
  if (auto printed = print_prediction(*loaded); !printed) return printed.error();
  return exit_success;
}

}  // namespace troupe::cli
