#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "troupe/storage/text_file.hpp"

#include "commands.hpp"
#include "counted.hpp"
#include "link_test.hpp"
#include "network_interface.hpp"
#include "profile_file.hpp"
#include "profile_measurement.hpp"
#include "run_inputs.hpp"

namespace troupe::cli {

namespace {

std::string milliseconds(std::int64_t ns) {
  return fmt::format("{:.3f}", static_cast<double>(ns) / 1e6);
}

void print(const char* part, const PassCosts& costs) {
  fmt::print("{:<10} {:>10} {:>10} {:>10} {:>10}\n", part, milliseconds(costs.forward_ns),
             milliseconds(costs.backward_ns), milliseconds(costs.backward_input_ns),
             milliseconds(costs.backward_weight_ns));
}

void print(const Unevenness& unevenness) {
  std::vector<double> slowdowns;
  for (const auto& of_step : unevenness.slowdowns) {
    slowdowns.insert(slowdowns.end(), of_step.begin(), of_step.end());
  }
  std::ranges::sort(slowdowns);
  const auto tenth = slowdowns.size() / 10;
  fmt::print(
      "unevenness: in eight steps of ten an actor took {:.0f} to {:.0f}% of its mean; within "
      "a step its passes differ by {:.0f}% from those beside them\n",
      100.0 * slowdowns[tenth], 100.0 * slowdowns[slowdowns.size() - 1 - tenth],
      100.0 * unevenness.pass_spread);
}

std::string description_of(const Wire& wire) {
  return fmt::format("{:.1f} us and {:.1f} GB/s", static_cast<double>(wire.latency_ns) / 1e3,
                     wire.bytes_per_second / 1e9);
}

/// What two processes of this machine have between them, or nothing, and a note that says why.
std::optional<ProcessLinks> measure_links(const ProfileArguments& arguments) {
  const auto& given = arguments.network_interface;
  const auto found = test_links({.network_interface = given.empty() ? "lo" : given,
                                 .shared_memory = arguments.shared_memory});
  if (found.failure.empty()) {
    return ProcessLinks{{std::llround(found.hop_ns), found.bytes_per_second}, found.reduction};
  }
  fmt::print(stderr, "note: links between processes were not measured: {}; see `troupe doctor`\n",
             found.failure);
  return std::nullopt;
}

}  // namespace

Expected<ExitCode> profile(const ProfileArguments& arguments) {
  const auto plan = load_plan(arguments.run);
  if (!plan) return plan.error();
  if (const auto& given = arguments.network_interface; !given.empty()) {
    if (auto known = check_network_interface(given); !known) return known.error();
  }
  auto measured = measure_profile(*plan, arguments.seconds);
  if (!measured) return measured.error();
  measured->between_processes = measure_links(arguments);
  if (auto written = storage::write_text(arguments.out_path, to_json(*measured)); !written) {
    return written.error();
  }
  fmt::print("milliseconds for a microbatch of {}, {} computing at once\n\n",
             counted(measured->microbatch_size, "sequence"),
             counted(measured->stream_count, "rank"));
  for (const auto& parts : measured->parts) {
    const auto shards = parts.shard_count == 1 ? "" : fmt::format("{} shards", parts.shard_count);
    fmt::print("{:<10} {:>10} {:>10} {:>10} {:>10}\n", shards, "F", "B", "I", "W");
    print("embedding", parts.embedding);
    print("layer", parts.layer);
    print("head", parts.head);
  }
  fmt::print("\noptimizer {:.2f} ns and gradient norm {:.2f} ns per parameter\n",
             measured->optimizer_ns_per_element, measured->measuring_ns_per_element);
  fmt::print("runtime: {} us to notice, {} us for the director, {} us to begin a step\n",
             measured->dispatch_ns / 1000, measured->director_ns / 1000, measured->start_ns / 1000);
  fmt::print("sums over replicas: {}\n", description_of(measured->reduction));
  if (const auto& between = measured->between_processes) {
    fmt::print("between processes: {}; sums {}\n", description_of(between->link),
               description_of(between->reduction));
  }
  print(measured->unevenness);
  fmt::print("written to {}\n", arguments.out_path);
  return exit_success;
}

}  // namespace troupe::cli
