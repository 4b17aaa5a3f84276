#include "troupe/engine/schedule_generators.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>
#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/engine/nearest.hpp"

namespace troupe {

namespace {

Schedule with_one_stage_per_rank(const char* name, std::uint32_t rank_count,
                                 std::uint32_t microbatch_count) {
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  return {.name = name,
          .microbatch_count = microbatch_count,
          .rank_of_stage = make_stage_map(StageMap::looped, rank_count, 1),
          .ranks = std::vector<std::vector<Action>>(rank_count)};
}

/// `count` forward and backward passes in turn, after `warmup_count` forward passes and until no
/// backward pass is left. `forward(k)` and `backward(k)` are the k-th pass of either kind.
template <class Forward, class Backward>
std::vector<Action> one_forward_one_backward(std::uint32_t warmup_count, std::uint32_t count,
                                             Forward forward, Backward backward) {
  std::vector<Action> row;
  row.reserve(std::size_t{2} * count);
  for (std::uint32_t k = 0; k < warmup_count; ++k) row.push_back(forward(k));
  for (std::uint32_t k = warmup_count; k < count; ++k) {
    row.push_back(forward(k));
    row.push_back(backward(k - warmup_count));
  }
  for (std::uint32_t k = count - warmup_count; k < count; ++k) row.push_back(backward(k));
  return row;
}

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

/// Lets generators of one stage per rank, and of several, take part in the table.
template <Schedule (*make)(std::uint32_t, std::uint32_t)>
Expected<Schedule> without_chunks(const ScheduleRequest& request) {
  return make(request.rank_count, request.microbatch_count);
}
template <Expected<Schedule> (*make)(std::uint32_t, std::uint32_t, std::uint32_t)>
Expected<Schedule> with_chunks(const ScheduleRequest& request) {
  return make(request.rank_count, request.microbatch_count, request.chunk_count);
}

struct NamedGenerator {
  std::string_view name;
  bool takes_chunks;
  Generator make;
};

constexpr std::array generators{
    NamedGenerator{"gpipe", false, &without_chunks<make_gpipe>},
    NamedGenerator{"1f1b", false, &without_chunks<make_1f1b>},
    NamedGenerator{"interleaved-1f1b", true, &with_chunks<make_interleaved_1f1b>},
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
  const auto [rank_count, microbatch_count, chunk_count, split] = request;
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

Schedule make_gpipe(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  auto schedule = with_one_stage_per_rank("gpipe", rank_count, microbatch_count);
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    schedule.ranks[r].reserve(std::size_t{2} * microbatch_count);
    for (const auto pass : {Pass::forward, Pass::backward}) {
      for (std::uint32_t m = 0; m < microbatch_count; ++m) {
        schedule.ranks[r].push_back({StageIndex{r}, pass, MicrobatchIndex{m}});
      }
    }
  }
  return schedule;
}

Schedule make_1f1b(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  auto schedule = with_one_stage_per_rank("1f1b", rank_count, microbatch_count);
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    const auto pass_on_stage = [r](Pass pass) {
      return [r, pass](std::uint32_t k) { return Action{StageIndex{r}, pass, MicrobatchIndex{k}}; };
    };
    const auto warmup_count = std::min(rank_count - 1 - r, microbatch_count);
    schedule.ranks[r] =
        one_forward_one_backward(warmup_count, microbatch_count, pass_on_stage(Pass::forward),
                                 pass_on_stage(Pass::backward));
  }
  return schedule;
}

Expected<Schedule> make_interleaved_1f1b(std::uint32_t rank_count, std::uint32_t microbatch_count,
                                         std::uint32_t chunk_count) {
  TROUPE_ASSERT(rank_count >= 1 && microbatch_count >= 1);
  if (chunk_count < 2) {
    return refused("interleaved-1f1b needs at least 2 chunks per rank, found "
                   + std::to_string(chunk_count) + "; with one stage per rank use 1f1b");
  }
  if (const auto excess = microbatch_count % rank_count; excess != 0) {
    const auto below = microbatch_count - excess;
    return refused(
        "interleaved-1f1b needs microbatches in multiples of its " + std::to_string(rank_count)
        + " ranks, found " + std::to_string(microbatch_count) + "; use "
        + (below == 0 ? "" : std::to_string(below) + " or ") + std::to_string(below + rank_count));
  }
  Schedule schedule{.name = "interleaved-1f1b",
                    .microbatch_count = microbatch_count,
                    .rank_of_stage = make_stage_map(StageMap::looped, rank_count, chunk_count),
                    .ranks = std::vector<std::vector<Action>>(rank_count)};
  // Passes go in groups: as many microbatches as ranks through one chunk, then through the next.
  const auto group = rank_count * chunk_count;
  const auto count = microbatch_count * chunk_count;
  for (std::uint32_t r = 0; r < rank_count; ++r) {
    const auto action = [=](Pass pass, std::uint32_t chunk, std::uint32_t k) {
      return Action{StageIndex{chunk * rank_count + r}, pass,
                    MicrobatchIndex{k / group * rank_count + k % rank_count}};
    };
    const auto forward = [=](std::uint32_t k) {
      return action(Pass::forward, k % group / rank_count, k);
    };
    const auto backward = [=](std::uint32_t k) {
      return action(Pass::backward, chunk_count - 1 - k % group / rank_count, k);
    };
    const auto warmup_count = 2 * (rank_count - 1 - r) + (chunk_count - 1) * rank_count;
    schedule.ranks[r] =
        one_forward_one_backward(std::min(warmup_count, count), count, forward, backward);
  }
  return schedule;
}

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
  for (auto& row : schedule.ranks) {
    std::vector<Action> split;
    split.reserve(row.size() + row.size() / 2);
    for (auto action : row) {
      if (action.pass == Pass::backward) {
        action.pass = Pass::backward_input;
        split.push_back(action);
        action.pass = Pass::backward_weight;
      }
      split.push_back(action);
    }
    row = std::move(split);
  }
  schedule.name += "-split";
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

std::span<const std::string_view> schedule_names() {
  return names;
}

Expected<Schedule> make_schedule(std::string_view name, const ScheduleRequest& request) {
  const auto* const generator = std::find_if(generators.begin(), generators.end(),
                                             [&](const auto& known) { return known.name == name; });
  if (generator == generators.end()) return unknown_name(name);
  if (auto ok = check_counts(request); !ok) return ok.error();
  if (!generator->takes_chunks && request.chunk_count != 1) {
    return refused(std::string{name} + " holds one stage per rank, found "
                   + std::to_string(request.chunk_count)
                   + " chunks; use 1 chunk, or interleaved-1f1b");
  }
  auto schedule = generator->make(request);
  if (!schedule || !request.split) return schedule;
  return split_backward(std::move(schedule).value());
}

}  // namespace troupe
