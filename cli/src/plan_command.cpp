#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "troupe/actors/memory_need.hpp"
#include "troupe/engine/memory.hpp"

#include "commands.hpp"
#include "counted.hpp"
#include "profile_file.hpp"
#include "profile_measurement.hpp"
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

const char* name_of(Family family) {
  switch (family) {
    case Family::gpt2:
      return "GPT-2";
    case Family::llama:
      return "Llama";
    case Family::bert:
      return "BERT";
    case Family::custom:
      return "custom layers";
  }
  return "";
}

void print_grid(const Plan& plan) {
  const auto& config = plan.config;
  const auto& grid = config.parallel;
  std::uint64_t parameter_count = 0;
  for (const auto& parameter : parameters_of(config.model)) {
    parameter_count += parameter.element_count();
  }
  fmt::print("model     {}, {}, {}, {} wide, {}, vocabulary {}: {} parameters\n",
             name_of(config.model.family), counted(config.model.layers, "layer"),
             counted(config.model.heads, "head"), config.model.hidden,
             counted(config.model.sequence, "token"), config.model.vocabulary, parameter_count);
  const auto server_count = plan.rank_count() - grid.rank_count();
  fmt::print("grid      {} x {} shard{} x {} = {}{}\n", counted(grid.data, "replica"),
             to_string(grid.tensor), grid.tensor == 1 ? "" : "s",
             counted(grid.pipeline, "pipeline rank"), counted(grid.rank_count(), "actor"),
             server_count == 0 ? "" : ", and " + counted(server_count, "parameter server"));
  fmt::print("schedule  {}, {}, {} of {}; {} per step\n\n", plan.training.name,
             counted(plan.training.stage_count(), "stage"),
             counted(plan.training.microbatch_count, "microbatch"),
             counted(config.schedule.microbatch_size, "sequence"),
             counted(plan.tokens_per_step(), "token"));
}

template <class Names, class Enum>
std::string_view name_in(const Names& names, Enum value) {
  return names.at(static_cast<std::size_t>(value));
}

/// What is not fp32, and what ranks exchange to sum their gradients.
void print_numbers(const Plan& plan) {
  const auto& train = plan.config.train;
  std::string text;
  if (train.precision != Precision::fp32) {
    text +=
        fmt::format("products  of {}, added up in fp32", name_in(precision_names, train.precision));
    if (train.precision == Precision::fp16) {
      text += fmt::format("; the loss is scaled by {} at first", train.loss_scale);
    }
    text += '\n';
  }
  for (std::uint32_t r = 0; plan.holder_count() > 1 && r < plan.training.rank_count(); ++r) {
    const auto how =
        plan.has_servers() ? fmt::format(
            "which {} replicas, {} step{} apart at most, give to a server",
            plan.config.parallel.data, train.staleness, train.staleness == 1 ? "" : "s")
                           : fmt::format("summed over {} holders", plan.holder_count());
    text += fmt::format("gradients of rank {}: {} in {}, {}\n", r,
                        format_bytes(plan.gradient_bytes_of(RankIndex{r})),
                        name_in(wire_format_names, train.gradient_wire), how);
  }
  if (!text.empty()) fmt::print("{}\n", text);
}

void print_stages(const Plan& plan, RankIndex rank, std::vector<MemoryItem> StagePlan::*memory) {
  for (const auto& stage : plan.stages) {
    if (stage.rank != rank) continue;
    fmt::print("  stage {}: {}\n", stage.stage.value(), contents_of(stage.spec));
    for (const auto& item : stage.*memory) {
      fmt::print("    {:<40} {:>12}\n", item.name, format_bytes(item.bytes));
    }
  }
}

/// Of the process that needs most.
void print_process(const Plan& plan, std::uint32_t process_count) {
  if (process_count == 1) {
    fmt::print("this process, all actors and {} for the runtime: {}\n\n",
               format_bytes(actors::runtime_bytes(plan, plan.rank_count())),
               format_bytes(actors::process_bytes(plan)));
    return;
  }
  fmt::print("each of {} processes, with its actors and for the runtime: at most {}\n\n",
             process_count, format_bytes(actors::largest_process_bytes(plan, process_count)));
}

void print_memory(const Plan& plan, std::uint32_t process_count) {
  for (std::uint32_t r = 0; r < plan.training.rank_count(); ++r) {
    const RankIndex rank{r};
    const auto shards = plan.config.parallel.tensor.of(rank);
    fmt::print("rank {}: {} in each {}replica\n", r, format_bytes(plan.bytes_of(rank)),
               shards == 1 ? "" : fmt::format("of {} shards of each ", shards));
    if (const auto copied = plan.offloaded_bytes_of(rank); copied > 0) {
      fmt::print(
          "  {} of it in page-locked host memory; a training step copies at most {} there and as "
          "much back, in a time that no prediction counts\n",
          format_bytes(plan.host_bytes_of(rank)), format_bytes(copied));
    }
    print_stages(plan, rank, &StagePlan::memory);
    if (!plan.has_servers()) continue;
    fmt::print("parameter server of {}rank {}, with replica 0: {}\n",
               shards == 1 ? "" : fmt::format("each of {} shards of ", shards), r,
               format_bytes(plan.server_bytes_of(rank)));
    print_stages(plan, rank, &StagePlan::server_memory);
  }
  fmt::print("batches: {}\n", format_bytes(actors::batch_bytes(plan, plan.config.parallel.data)));
  print_process(plan, process_count);
}

/// The profile at `path`, if there is one and it is of the plan's model.
Expected<std::optional<Profile>> named_profile(const Plan& plan, const PlanArguments& arguments) {
  if (arguments.profile_path.empty()) return std::optional<Profile>{};
  const auto profile = read_profile(arguments.profile_path);
  if (!profile) return profile.error();
  if (auto fits = check_fits(*profile, plan, arguments.process_count); !fits) return fits.error();
  return std::optional{*profile};
}

void print_prediction(const Plan& plan, const Profile& profile, std::uint32_t process_count,
                      const std::string& source) {
  const auto steps =
      simulate_uneven(plan.training, costs_of(plan, profile, process_count), profile.unevenness);
  for (const auto& parts : profile.parts) {
    fmt::print("{}: {:.2f} ms forward and {:.2f} ms backward for a layer{}, {} at once\n", source,
               static_cast<double>(parts.layer.forward_ns) / 1e6,
               static_cast<double>(parts.layer.backward_ns) / 1e6,
               parts.shard_count == 1 ? "" : fmt::format(" of {} shards", parts.shard_count),
               counted(profile.stream_count, "actor"));
  }
  fmt::print("predicted step: {:.1f} ms (eight in ten: {:.1f} to {:.1f}), {:.0f} tokens/s\n",
             steps.mean_ns / 1e6, static_cast<double>(steps.tenth_ns) / 1e6,
             static_cast<double>(steps.ninetieth_ns) / 1e6,
             plan.tokens_per_step() / (steps.mean_ns / 1e9));
  fmt::print("predicted bubble: {:.1f}% of the time, with even passes\n",
             100.0 * predict(plan, profile, process_count).bubble_of_total());
  const auto left_out = left_out_of_prediction(plan, process_count);
  if (!left_out.empty()) fmt::print("{}\n", left_out);
}

}  // namespace

Expected<ExitCode> plan(const PlanArguments& arguments) {
  const auto loaded = load_plan(arguments.run);
  if (!loaded) return loaded.error();
  const auto named = named_profile(*loaded, arguments);
  if (!named) return named.error();
  print_grid(*loaded);
  print_numbers(*loaded);
  print_memory(*loaded, arguments.process_count);
  if (auto can = check_device(*loaded); !can) return can.error();
  if (auto fits = check_memory(*loaded, arguments.process_count); !fits) return fits.error();
  if (*named) {
    print_prediction(*loaded, **named, arguments.process_count, arguments.profile_path);
    return exit_success;
  }
  constexpr double measuring_seconds = 1.0;
  const auto measured = measure_profile(*loaded, measuring_seconds);
  if (!measured) return measured.error();
  print_prediction(*loaded, *measured, 1, "measured here");
  return exit_success;
}

}  // namespace troupe::cli
