#include "troupe/engine/schedule_generators.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>
#include <utility>

#include "troupe/engine/automatic_schedule.hpp"
#include "troupe/engine/nearest.hpp"

namespace troupe {

namespace {

Error refused(std::string context) {
  return {Errc::invalid_config, std::move(context)};
}

/// Puts the weight passes of one stage into microbatch order while its rank's row is rewritten.
class WeightPassOrder {
public:
  /// @param first the microbatch whose turn comes first.
  explicit WeightPassOrder(std::uint32_t first) : next_{first} {}

  /// Whether `microbatch` is the next to add its weight gradients.
  [[nodiscard]] bool is_turn_of(MicrobatchIndex microbatch) const noexcept {
    return microbatch.value() <= next_;
  }
  void took_turn(MicrobatchIndex microbatch) noexcept {
    next_ = std::max(next_, microbatch.value() + 1);
  }
  void put_off(MicrobatchIndex microbatch) { put_off_.push(microbatch); }

  /// Appends the passes that were put off and whose turn it is now, or all that are left.
  void append_due(StageIndex stage, bool all, std::vector<Action>& row) {
    while (!put_off_.empty() && (all || is_turn_of(put_off_.top()))) {
      took_turn(put_off_.top());
      row.push_back({stage, Pass::backward_weight, put_off_.top()});
      put_off_.pop();
    }
  }

private:
  std::uint32_t next_;
  std::priority_queue<MicrobatchIndex, std::vector<MicrobatchIndex>, std::greater<>> put_off_;
};

using Generator = Expected<Schedule> (*)(const ScheduleRequest&);

/// Lets generators with a fixed number of stages per rank, and with any, take part in the table.
template <auto make>
Expected<Schedule> without_chunks(const ScheduleRequest& request) {
  return make(request.rank_count, request.microbatch_count);
}
template <Expected<Schedule> (*make)(std::uint32_t, std::uint32_t, std::uint32_t)>
Expected<Schedule> with_chunks(const ScheduleRequest& request) {
  return make(request.rank_count, request.microbatch_count, request.chunk_count);
}
Expected<Schedule> eager_1f1b(const ScheduleRequest& request) {
  return make_eager_1f1b(request.rank_count, request.microbatch_count, request.memory_limit);
}

struct NamedGenerator {
  std::string_view name;
  std::uint32_t chunk_count;  ///< Virtual stages per rank; 0: as many as are asked for.
  bool takes_memory_limit;
  bool is_searched;
  Generator make;
};

constexpr std::array generators{
    NamedGenerator{"gpipe", 1, false, false, &without_chunks<make_gpipe>},
    NamedGenerator{"1f1b", 1, false, false, &without_chunks<make_1f1b>},
    NamedGenerator{"eager-1f1b", 1, true, false, &eager_1f1b},
    NamedGenerator{"interleaved-1f1b", 0, false, false, &with_chunks<make_interleaved_1f1b>},
    NamedGenerator{"looped-bfs", 0, false, false, &with_chunks<make_looped_bfs>},
    NamedGenerator{"zb-h1", 1, false, false, &without_chunks<make_zb_h1>},
    NamedGenerator{"zb-h2", 1, false, false, &without_chunks<make_zb_h2>},
    NamedGenerator{"zb-v", 2, false, false, &without_chunks<make_zb_v>},
    NamedGenerator{"v-half", 2, false, false, &without_chunks<make_v_half>},
    NamedGenerator{"v-min", 2, false, false, &without_chunks<make_v_min>},
    NamedGenerator{"dualpipe", 2, false, false, &without_chunks<make_dualpipe>},
    NamedGenerator{"dualpipev", 2, false, false, &without_chunks<make_dualpipev>},
    NamedGenerator{"zb-1p", 1, true, true, &make_zb_1p},
    NamedGenerator{"zb-2p", 1, true, true, &make_zb_2p},
    NamedGenerator{"auto", 0, true, true, &make_auto},
};

constexpr auto names = [] {
  std::array<std::string_view, generators.size()> result;
  std::transform(generators.begin(), generators.end(), result.begin(),
                 [](const NamedGenerator& generator) { return generator.name; });
  return result;
}();

Error unknown_name(std::string_view name) {
  constexpr std::size_t name_size_max = 40;
  const auto shown = name.substr(0, name_size_max);
  auto text = "there is no schedule \"" + std::string{shown} + "\"; did you mean ";
  (text += nearest(shown, names)) += "? Known are";
  for (const auto known : names) (text += known == names.front() ? " " : ", ") += known;
  return refused(text);
}

Expected<Done> check_count(const char* what, std::uint32_t count, std::uint32_t count_max) {
  if (count >= 1 && count <= count_max) return Done{};
  return refused("a schedule needs 1 to " + std::to_string(count_max) + " " + what + ", found "
                 + std::to_string(count));
}

Expected<Done> check_counts(const ScheduleRequest& request) {
  const auto rank_count = request.rank_count;
  const auto microbatch_count = request.microbatch_count;
  const auto chunk_count = request.chunk_count;
  using Limits = ScheduleLimits;
  if (auto ok = check_count("ranks", rank_count, Limits::rank_count_max); !ok) return ok;
  if (auto ok = check_count("microbatches", microbatch_count, Limits::microbatch_count_max); !ok) {
    return ok;
  }
  const auto chunk_count_max = Limits::stage_count_max / rank_count;
  if (auto ok = check_count("chunks per rank", chunk_count, chunk_count_max); !ok) return ok;
  constexpr std::size_t passes_max = 3;  // F, I and W.
  const auto actions_per_microbatch = passes_max * rank_count * chunk_count;
  if (microbatch_count > Limits::action_count_max / actions_per_microbatch) {
    return refused(std::to_string(std::size_t{rank_count} * chunk_count) + " stages and "
                   + std::to_string(microbatch_count) + " microbatches are more than "
                   + std::to_string(Limits::action_count_max) + " passes; use fewer");
  }
  return Done{};
}

/// Whether `generator` can make what is asked for, its number of chunks being settled.
Expected<Done> check_fits(const NamedGenerator& generator, const ScheduleRequest& request) {
  const std::string name{generator.name};
  if (generator.chunk_count != 0 && request.chunk_count != generator.chunk_count) {
    const bool one = generator.chunk_count == 1;
    return refused(name + (one ? " holds one stage" : " holds two stages") + " per rank, found "
                   + std::to_string(request.chunk_count) + " chunks; use "
                   + (one ? "1 chunk" : "2 chunks") + ", or interleaved-1f1b");
  }
  if (request.memory_limit != 0 && !generator.takes_memory_limit) {
    return refused(name + " takes no memory limit, found " + std::to_string(request.memory_limit)
                   + " microbatches; leave it at 0, or use eager-1f1b");
  }
  return Done{};
}

/// Whether every action names a stage and a microbatch that the schedule has, and every stage a
/// rank.
bool is_within_itself(const Schedule& schedule) {
  if (schedule.copy_count == 0 || schedule.stage_count() % schedule.copy_count != 0) return false;
  const auto has_rank = [&](RankIndex rank) { return rank.value() < schedule.rank_count(); };
  const auto has_action = [&](const Action& action) {
    return action.stage.value() < schedule.stage_count()
           && schedule.microbatches_of(action.stage).contains(action.microbatch);
  };
  return std::ranges::all_of(schedule.rank_of_stage, has_rank)
         && std::ranges::all_of(
             schedule.ranks, [&](const auto& row) { return std::ranges::all_of(row, has_action); });
}

}  // namespace

Schedule make_forward_only(const Schedule& training) {
  const auto rank_count = training.rank_count();
  Schedule schedule{.name = "forward-only",
                    .kind = StepKind::evaluation,
                    .microbatch_count = training.microbatch_count,
                    .copy_count = training.copy_count,
                    .rank_of_stage = training.rank_of_stage,
                    .ranks = std::vector<std::vector<Action>>(rank_count)};
  const auto share = training.microbatch_count / training.copy_count;
  for (std::uint32_t begin = 0; begin < share; begin += rank_count) {
    const auto end = std::min(begin + rank_count, share);
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
      const auto first = schedule.microbatches_of(StageIndex{s}).begin;
      auto& row = schedule.ranks[schedule.rank_of_stage[s].value()];
      for (auto m = begin; m < end; ++m) {
        row.push_back({StageIndex{s}, Pass::forward, MicrobatchIndex{first + m}});
      }
    }
  }
  return schedule;
}

Schedule split_backward(Schedule schedule) {
  bool has_whole = false;
  for (auto& row : schedule.ranks) {
    std::vector<Action> split;
    split.reserve(row.size() + row.size() / 2);
    for (auto action : row) {
      if (action.pass == Pass::backward) {
        has_whole = true;
        action.pass = Pass::backward_input;
        split.push_back(action);
        action.pass = Pass::backward_weight;
      }
      split.push_back(action);
    }
    row = std::move(split);
  }
  if (has_whole) schedule.name += "-split";
  return schedule;
}

Schedule with_weight_passes_in_order(Schedule schedule) {
  if (!is_within_itself(schedule)) return schedule;  // `validate` says what is out of range.
  std::vector<WeightPassOrder> orders;
  orders.reserve(schedule.stage_count());
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    orders.emplace_back(schedule.microbatches_of(StageIndex{s}).begin);
  }
  for (auto& old_row : schedule.ranks) {
    std::vector<Action> row;
    row.reserve(old_row.size());
    for (auto action : old_row) {
      auto& order = orders[action.stage.value()];
      const bool in_turn = !accumulates_weights(action.pass) || order.is_turn_of(action.microbatch);
      if (!in_turn) order.put_off(action.microbatch);
      if (action.pass == Pass::backward && !in_turn) action.pass = Pass::backward_input;
      if (action.pass != Pass::backward_weight || in_turn) row.push_back(action);
      if (!accumulates_weights(action.pass) || !in_turn) continue;
      order.took_turn(action.microbatch);
      order.append_due(action.stage, false, row);
    }
    old_row = std::move(row);
  }
  // Only an incomplete schedule has passes whose turn never came; `validate` will say so.
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    orders[s].append_due(StageIndex{s}, true, schedule.ranks[schedule.rank_of_stage[s].value()]);
  }
  return schedule;
}

bool is_searched(std::string_view name) {
  const auto* const found = std::ranges::find(generators, name, &NamedGenerator::name);
  return found != generators.end() && found->is_searched;
}

std::span<const std::string_view> schedule_names() {
  return names;
}

Expected<Schedule> make_schedule(std::string_view name, const ScheduleRequest& request) {
  const auto* const generator = std::find_if(generators.begin(), generators.end(),
                                             [&](const auto& known) { return known.name == name; });
  if (generator == generators.end()) return unknown_name(name);
  auto settled = request;
  if (request.chunk_count == 1) settled.chunk_count = std::max(1U, generator->chunk_count);
  if (auto ok = check_counts(settled); !ok) return ok.error();
  if (auto ok = check_fits(*generator, settled); !ok) return ok.error();
  auto schedule = generator->make(settled);
  if (!schedule || !request.split) return schedule;
  return split_backward(std::move(schedule).value());
}

}  // namespace troupe
