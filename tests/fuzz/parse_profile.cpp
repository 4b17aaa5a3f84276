// The reader of profiles, and the prediction from what it read.

#include <string>
#include <string_view>

#include "fuzz_target.hpp"
#include "profile_file.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  const std::string_view text{reinterpret_cast<const char*>(data), size_bytes};
  auto profile = cli::parse_profile(text, "fuzz.json");
  if (!profile) {
    check_refusal(profile.error(), Errc::invalid_file);
    return 0;
  }
  const auto written = cli::to_json(*profile);
  const auto again = cli::parse_profile(written, "fuzz.json");
  TROUPE_ASSERT(again && cli::to_json(*again) == written);

  Config config;
  config.model = {.layers = 64, .heads = 1, .hidden = 4, .sequence = 4, .vocabulary = 256};
  config.parallel = {.data = 3, .tensor = 1, .pipeline = 2};
  config.schedule.microbatches = 16;
  config.train.optimizer_sharding =
      OptimizerSharding{static_cast<std::uint8_t>(profile->stream_count % 3)};
  profile->model = config.model;
  profile->microbatch_size = config.schedule.microbatch_size;
  profile->threads_per_stage = config.run.threads_per_stage;
  const auto plan = make_plan(config).value();
  for (const auto process_count : {1U, 4U}) {
    if (!check_fits(*profile, plan, process_count)) continue;
    TROUPE_ASSERT(predict(plan, *profile, process_count).makespan_ns >= 0);
    const auto costs = costs_of(plan, *profile, process_count);
    const auto steps = simulate_uneven(plan.training, costs, profile->unevenness);
    TROUPE_ASSERT(0 <= steps.tenth_ns && steps.tenth_ns <= steps.ninetieth_ns);
  }
  return 0;
}
