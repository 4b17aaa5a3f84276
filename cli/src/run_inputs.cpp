#include "run_inputs.hpp"

#include <algorithm>
#include <array>
#include <thread>

#include <fmt/format.h>
#include <unistd.h>

#include "troupe/storage/text_file.hpp"

#include "schedule_source.hpp"

namespace troupe::cli {

Expected<Plan> load_plan(const RunArguments& arguments) {
  const auto text = storage::read_text(arguments.config_path);
  if (!text) return text.error();
  const auto config = parse_config(*text, arguments.config_path, arguments.overrides);
  if (!config) return config.error();
  if (auto valid = validate(*config); !valid) {
    return Error{valid.error().code, arguments.config_path + ": " + valid.error().context};
  }
  if (!is_schedule_file(config->schedule.name)) return make_plan(*config);
  auto schedule = read_schedule(config->schedule.name);
  if (!schedule) return schedule.error();
  return make_plan(*config, std::move(*schedule));
}

std::uint64_t batch_bytes(const Plan& plan) {
  constexpr std::uint64_t batch_count = 2;      // This step's and the next one's,
  constexpr std::uint64_t bytes_per_token = 8;  // each with tokens and targets.
  return batch_count * bytes_per_token * plan.tokens_per_step();
}

std::uint64_t process_bytes(const Plan& plan) {
  std::uint64_t sum = runtime_bytes + batch_bytes(plan);
  for (std::uint32_t r = 0; r < plan.training.rank_count(); ++r) {
    sum += plan.config.parallel.data * plan.bytes_of(RankIndex{r});
  }
  return sum;
}

Expected<Done> check_memory(const Plan& plan) {
  const auto installed = static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES))
                         * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const auto needed = process_bytes(plan);
  if (needed <= installed) return Done{};
  return Error{Errc::out_of_memory,
               fmt::format("the run needs {} and this machine has {}; make model.hidden, "
                           "schedule.microbatch_size or schedule.microbatches smaller",
                           format_bytes(needed), format_bytes(installed))};
}

std::uint32_t concurrent_streams(const Plan& plan) {
  const auto cores = std::max(1U, std::thread::hardware_concurrency());
  const auto streams = std::max(1U, cores / plan.config.run.threads_per_stage);
  return std::min(plan.config.parallel.rank_count(), streams);
}

std::string format_bytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 4> units{"B", "KiB", "MiB", "GiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < units.size()) {
    value /= 1024.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, units[unit]);
}

}  // namespace troupe::cli
