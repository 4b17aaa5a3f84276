// How long the search for a schedule takes, and what it gains over the schedules with names: those
// whose order is fixed, and zb-1p and zb-2p, which are searched for too.
// Usage: schedule_search_bench

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "troupe/engine/automatic_schedule.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_generators.hpp"

namespace {

using namespace troupe;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t seed = 5;

/// A pipeline as one meets it, every stage and link with costs of its own.
CostModel uneven_costs(std::uint32_t stage_count) {
  Random random{seed};
  const auto draw = [&](std::uint64_t bound) {
    return static_cast<std::int64_t>(random.below(bound));
  };
  CostModel costs{.stages = {}, .link_ns = {}};
  for (std::uint32_t s = 0; s < stage_count; ++s) {
    const auto forward_ns = 80 + draw(40);
    costs.stages.push_back(
        PassCosts::of_parts(forward_ns, 80 + draw(40), forward_ns / 2 + draw(50)));
    if (s > 0) costs.link_ns.push_back(draw(30));
  }
  return costs;
}

CostModel even_costs() {
  return {.stages = {PassCosts::of_parts(100, 100, 100)}, .link_ns = {10}};
}

struct Case {
  const char* name;
  StageMap map;
  std::uint32_t rank_count;
  std::uint32_t chunk_count;
  std::uint32_t microbatch_count;
  std::uint32_t memory_limit;  ///< Microbatches per rank.
  CostModel costs;
};

AutomaticRequest request_of(const Case& wanted) {
  return {.rank_of_stage = make_stage_map(wanted.map, wanted.rank_count, wanted.chunk_count),
          .microbatch_count = wanted.microbatch_count,
          .costs = wanted.costs,
          .memory_limits = {std::int64_t{wanted.memory_limit} * wanted.chunk_count}};
}

/// By rank the sum of what each stage holds at most.
bool fits(const Schedule& schedule, std::int64_t limit) {
  const auto in_flight = in_flight_max(schedule, Pass::backward_weight);
  std::vector<std::int64_t> held(schedule.rank_count());
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    held[schedule.rank_of_stage[s].value()] += in_flight[s];
  }
  return std::ranges::max(held) <= limit;
}

/// The schedule of `names` with the shortest step among those that fit, for example `1f1b 840 ns`.
std::string best_of(const std::vector<std::string_view>& names, const Case& wanted,
                    const AutomaticRequest& request) {
  std::string best_name;
  auto best_ns = std::numeric_limits<std::int64_t>::max();
  for (const auto name : names) {
    for (const bool split : {false, true}) {
      const auto schedule = make_schedule(name, {.rank_count = wanted.rank_count,
                                                 .microbatch_count = wanted.microbatch_count,
                                                 .chunk_count = wanted.chunk_count,
                                                 .split = split,
                                                 .costs = wanted.costs});
      if (!schedule || schedule->rank_of_stage != request.rank_of_stage) continue;
      if (!fits(*schedule, request.memory_limits[0])) continue;
      const auto step_ns = simulate(*schedule, wanted.costs).makespan_ns;
      if (step_ns >= best_ns) continue;
      best_name = schedule->name;
      best_ns = step_ns;
    }
  }
  return best_name.empty() ? "none fits" : fmt::format("{} {} ns", best_name, best_ns);
}

void measure(const Case& wanted) {
  const auto request = request_of(wanted);
  const std::vector<std::string_view> searched{"zb-1p", "zb-2p"};
  std::vector<std::string_view> fixed;
  for (const auto name : schedule_names()) {
    if (name != "auto" && std::ranges::count(searched, name) == 0) fixed.push_back(name);
  }
  const auto begin = Clock::now();
  const auto schedule = make_automatic_schedule(request);
  const std::chrono::duration<double> taken = Clock::now() - begin;
  if (!schedule) {
    fmt::print(stderr, "schedule_search_bench: {}\n", schedule.error().context);
    std::exit(EXIT_FAILURE);
  }
  fmt::print("{:<28} {:>2} x {:<3} limit {:>2}: auto {:>6} ns in {:.2f} s; {}; {}\n", wanted.name,
             wanted.rank_count, wanted.microbatch_count, wanted.memory_limit,
             simulate(*schedule, wanted.costs).makespan_ns, taken.count(),
             best_of(fixed, wanted, request), best_of(searched, wanted, request));
}

}  // namespace

int main() {
  using enum StageMap;
  for (const auto& wanted : {
           Case{"one stage per rank, even", looped, 32, 1, 256, 32, even_costs()},
           Case{"one stage per rank, even", looped, 32, 1, 256, 64, even_costs()},
           Case{"one stage per rank, uneven", looped, 32, 1, 256, 32, uneven_costs(32)},
           Case{"one stage per rank, uneven", looped, 32, 1, 256, 64, uneven_costs(32)},
           Case{"two chunks in loops, uneven", looped, 32, 2, 256, 64, uneven_costs(64)},
           Case{"two chunks in a V, even", v_shaped, 32, 2, 256, 33, even_costs()},
           Case{"two chunks in a V, uneven", v_shaped, 32, 2, 256, 33, uneven_costs(64)},
           Case{"one stage per rank, uneven", looped, 8, 1, 32, 8, uneven_costs(8)},
       }) {
    measure(wanted);
  }
}
