#include "run_inputs.hpp"

#include <thread>
#include <vector>

#include "troupe/actors/memory_need.hpp"
#include "troupe/engine/lanes.hpp"
#include "troupe/storage/text_file.hpp"

#include "machine.hpp"
#include "profile_file.hpp"
#include "schedule_source.hpp"

namespace troupe::cli {

namespace {

/// Whether a process would have some shards of a stage and not all.
bool divides_shards(const Plan& plan, std::uint32_t process_count) {
  const auto process_of_rank = place_ranks(plan, process_count);
  for (std::uint32_t rank = 0; rank < plan.config.parallel.rank_count(); ++rank) {
    auto first = coordinate_of(plan.config.parallel, rank);
    first.shard = 0;
    const auto first_rank = rank_at(plan.config.parallel, first);
    if (process_of_rank[rank] != process_of_rank[first_rank]) return true;
  }
  return false;
}

}  // namespace

Expected<Plan> load_plan(const RunArguments& arguments) {
  const auto text = storage::read_text(arguments.config_path);
  if (!text) return text.error();
  const auto config = parse_config(*text, arguments.config_path, arguments.overrides);
  if (!config) return config.error();
  if (auto valid = validate(*config); !valid) {
    return Error{valid.error().code, arguments.config_path + ": " + valid.error().context};
  }
  if (!is_schedule_file(config->schedule.name)) {
    if (config->schedule.profile.empty()) return make_plan(*config);
    const auto profile = read_profile(config->schedule.profile);
    return profile ? make_plan(*config, *profile) : profile.error();
  }
  auto schedule = read_schedule(config->schedule.name);
  if (!schedule) return schedule.error();
  return make_plan(*config, std::move(*schedule));
}

Expected<Done> check_device(const Plan& plan) {
  return check_device(plan, MemorySpace::host);  // "cpu", the only name.
}

Expected<Done> check_memory(const Plan& plan, std::uint32_t process_count) {
  const auto machine = look_at_machine();
  const std::vector<actors::NodeMemory> nodes(process_count,
                                              {machine.host, machine.usable_memory_bytes()});
  return check_memory(plan, place_ranks(plan, process_count), nodes);
}

std::string_view left_out_of_prediction(const Plan& plan, std::uint32_t process_count) {
  if (plan.has_servers()) {
    return "parameter servers are not simulated: neither what replicas exchange with them, nor "
           "that they update for all";
  }
  if (divides_shards(plan, process_count)) {
    return "shards of one stage are in different processes, and are simulated as if they were in "
           "one";
  }
  return {};
}

std::uint32_t concurrent_streams(const Plan& plan) {
  return concurrent_streams(plan, plan.config.parallel.rank_count(),
                            std::thread::hardware_concurrency());
}

}  // namespace troupe::cli
