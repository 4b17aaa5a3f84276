// The reader of steps.jsonl, and the comparison of what it read.

#include <algorithm>
#include <string>
#include <string_view>

#include "troupe/engine/simulate.hpp"

#include "fuzz_target.hpp"
#include "recorded_steps.hpp"
#include "step_comparison.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  const std::string_view text{reinterpret_cast<const char*>(data), size_bytes};
  const auto recorded = cli::parse_recorded_steps(text, "fuzz.jsonl");
  if (!recorded) {
    check_refusal(recorded.error(), Errc::invalid_file);
    return 0;
  }
  const auto written = cli::to_jsonl(*recorded);
  const auto again = cli::parse_recorded_steps(written, "fuzz.jsonl");
  TROUPE_ASSERT(again && cli::to_jsonl(*again) == written);
  const auto simulated = simulate(recorded->schedule, cli::measured_costs(*recorded));
  for (const auto& step : recorded->steps) {
    const auto comparison = cli::compare_step(recorded->schedule, step, simulated, 3);
    auto excess_ns = comparison.measured_ns - comparison.simulated_ns;
    for (const auto& delay : comparison.delays) excess_ns -= delay.excess_ns;
    TROUPE_ASSERT(excess_ns == 0);
  }
  return 0;
}
