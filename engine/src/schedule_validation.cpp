#include "troupe/engine/schedule_validation.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "dependency_order.hpp"

namespace troupe {

namespace {

constexpr std::size_t cells_around = 4;     ///< Shown before and behind the offending action.
constexpr std::size_t ranks_shown_max = 4;  ///< Of a circle of waiting ranks.

/// An action in its place.
struct Place {
  const Schedule& schedule;
  std::uint32_t rank;
  std::size_t at;  ///< One past the end for something missing.

  [[nodiscard]] const std::vector<Action>& row() const { return schedule.ranks[rank]; }
  [[nodiscard]] const Action& action() const { return row()[at]; }
};

/// A part of the row, for example `[... 1F0 1B0 >1B1< 1F1 ...]`.
std::string excerpt(const Place& place) {
  const auto& row = place.row();
  const auto begin = place.at - std::min(place.at, cells_around);
  const auto end = std::min(row.size(), place.at + cells_around + 1);
  std::string text = begin > 0 ? "[..." : "[";
  for (auto i = begin; i < end; ++i) {
    if (text.size() > 1) text += ' ';
    text += i == place.at ? '>' + to_string(row[i]) + '<' : to_string(row[i]);
  }
  return text + (end < row.size() ? " ...]" : "]");
}

std::string name_of(std::uint32_t rank) {
  return "rank " + std::to_string(rank);
}

Error broken(std::string rule, const std::string& what) {
  return {Errc::invalid_schedule, std::move(rule += ": ") + what};
}

Error broken_at(const char* rule, const Place& place, const std::string& what) {
  return broken(rule, name_of(place.rank) + " runs " + to_string(place.action()) + what + " "
                          + excerpt(place));
}

std::string to_range(std::uint32_t count) {
  return count == 1 ? "only 0 exists" : "they are 0 to " + std::to_string(count - 1);
}

bool divides(std::uint32_t divisor, std::uint32_t count) {
  return divisor != 0 && count % divisor == 0;
}

Expected<Done> check_shape(const Schedule& schedule) {
  if (schedule.ranks.empty()) return broken("shape", "there are no ranks");
  if (schedule.rank_of_stage.empty()) return broken("shape", "there are no stages");
  if (schedule.microbatch_count == 0) return broken("shape", "there are no microbatches");
  if (!divides(schedule.copy_count, schedule.stage_count())
      || !divides(schedule.copy_count, schedule.microbatch_count)) {
    return broken("shape",
                  std::to_string(schedule.copy_count) + " copies of the model cannot share "
                      + std::to_string(schedule.stage_count()) + " stages and "
                      + std::to_string(schedule.microbatch_count) + " microbatches equally");
  }
  std::vector<bool> has_stage(schedule.rank_count(), false);
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    const auto rank = schedule.rank_of_stage[s].value();
    if (rank >= schedule.rank_count()) {
      return broken("shape", "stage " + std::to_string(s) + " is on " + name_of(rank)
                                 + ", which does not exist: " + to_range(schedule.rank_count()));
    }
    has_stage[rank] = true;
  }
  const auto idle = std::find(has_stage.begin(), has_stage.end(), false);
  if (idle == has_stage.end()) return Done{};
  return broken("shape", name_of(static_cast<std::uint32_t>(idle - has_stage.begin()))
                             + " holds no stage; leave it out");
}

Expected<Done> check_place(const Place& place) {
  const auto& [schedule, rank, at] = place;
  const auto& action = place.action();
  if (action.stage.value() >= schedule.stage_count()) {
    return broken_at("range", place,
                     ", a stage that does not exist: " + to_range(schedule.stage_count()));
  }
  if (action.microbatch.value() >= schedule.microbatch_count) {
    return broken_at("range", place,
                     ", a microbatch that does not exist: " + to_range(schedule.microbatch_count));
  }
  if (!schedule.microbatches_of(action.stage).contains(action.microbatch)) {
    return broken_at("copy", place,
                     ", but the microbatches of that copy of the model are "
                         + std::to_string(schedule.microbatches_of(action.stage).begin) + " to "
                         + std::to_string(schedule.microbatches_of(action.stage).end - 1));
  }
  const auto home = schedule.rank_of_stage[action.stage.value()].value();
  if (home != rank) {
    return broken_at(
        "placement", place,
        ", but stage " + std::to_string(action.stage.value()) + " is on " + name_of(home));
  }
  if (schedule.kind == StepKind::evaluation && action.pass != Pass::forward) {
    return broken_at("kind", place, ", but an evaluation step has forward passes only");
  }
  return Done{};
}

Error missing(const Schedule& schedule, const Action& action) {
  const auto rank = schedule.rank_of_stage[action.stage.value()].value();
  const Place end{schedule, rank, schedule.ranks[rank].size()};
  const auto of = [&](Pass pass) { return to_string({action.stage, pass, action.microbatch}); };
  const auto split = " (or " + of(Pass::backward_input) + " and " + of(Pass::backward_weight) + ")";
  return broken("completeness", name_of(rank) + " never runs " + to_string(action)
                                    + (action.pass == Pass::backward ? split : "")
                                    + ", which the step needs; its row ends " + excerpt(end));
}

/// Finds a stage with fewer forward passes than microbatches, without memory for all microbatches
/// of all stages. What passes has at least as many actions as stages times microbatches.
Expected<Done> check_forward_counts(const Schedule& schedule) {
  const auto share = schedule.microbatch_count / schedule.copy_count;
  std::vector<std::size_t> count(schedule.stage_count(), 0);
  for (const auto& row : schedule.ranks) {
    for (const auto& action : row) {
      if (action.pass == Pass::forward) ++count[action.stage.value()];
    }
  }
  const auto poor = std::find_if(count.begin(), count.end(), [&](auto n) { return n < share; });
  if (poor == count.end()) return Done{};
  const StageIndex stage{static_cast<std::uint32_t>(poor - count.begin())};
  const auto begin = schedule.microbatches_of(stage).begin;
  std::vector<bool> seen(share, false);
  for (const auto& action : schedule.ranks[schedule.rank_of_stage[stage.value()].value()]) {
    if (action.stage == stage && action.pass == Pass::forward) {
      seen[action.microbatch.value() - begin] = true;
    }
  }
  const auto first = std::find(seen.begin(), seen.end(), false) - seen.begin();
  return missing(
      schedule, {stage, Pass::forward, MicrobatchIndex{begin + static_cast<std::uint32_t>(first)}});
}

/// Which passes of every stage and microbatch have been seen.
class PassLedger {
public:
  explicit PassLedger(const Schedule& schedule)
      : schedule_{schedule},
        share_{schedule.microbatch_count / schedule.copy_count},
        seen_(std::size_t{schedule.stage_count()} * share_, 0),
        next_weight_pass_(schedule.stage_count()) {
    for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
      next_weight_pass_[s] = schedule.microbatches_of(StageIndex{s}).begin;
    }
  }

  Expected<Done> enter_once(const Place& place) {
    const auto& action = place.action();
    auto& seen = seen_of(action);
    const auto parts = parts_of(action.pass);
    if ((seen & parts) != 0) {
      const bool forward = action.pass == Pass::forward;
      return broken_at("once", place, forward ? " a second time" : " a second time (B is I and W)");
    }
    seen = static_cast<std::uint8_t>(seen | parts);
    return Done{};
  }

  [[nodiscard]] Expected<Done> check_complete() const {
    const bool training = schedule_.kind == StepKind::training;
    const auto all = training ? forward_bit | input_bit | weight_bit : +forward_bit;
    const auto gap = std::find_if(seen_.begin(), seen_.end(), [&](auto s) { return s != all; });
    if (gap == seen_.end()) return Done{};
    const auto at = static_cast<std::size_t>(gap - seen_.begin());
    const auto pass = (*gap & forward_bit) == 0                ? Pass::forward
                      : (*gap & (input_bit | weight_bit)) == 0 ? Pass::backward
                      : (*gap & input_bit) == 0                ? Pass::backward_input
                                                               : Pass::backward_weight;
    const StageIndex stage{static_cast<std::uint32_t>(at / share_)};
    const auto first = schedule_.microbatches_of(stage).begin;
    return missing(schedule_,
                   {stage, pass, MicrobatchIndex{first + static_cast<std::uint32_t>(at % share_)}});
  }

  /// Forgets what was seen; the second walk checks the order of a complete schedule.
  void start_again() { std::fill(seen_.begin(), seen_.end(), std::uint8_t{0}); }

  Expected<Done> enter_in_order(const Place& place) {
    const auto& action = place.action();
    auto& seen = seen_of(action);
    if (action.pass != Pass::forward && (seen & forward_bit) == 0) {
      return broken_at("order", place, before(action, Pass::forward));
    }
    if (action.pass == Pass::backward_weight && (seen & input_bit) == 0) {
      return broken_at("order", place, before(action, Pass::backward_input));
    }
    if (accumulates_weights(action.pass)) {
      auto& next = next_weight_pass_[action.stage.value()];
      if (action.microbatch.value() != next) {
        return broken_at("weight order", place,
                         " before the weight pass of microbatch " + std::to_string(next)
                             + ", but weight gradients add up in microbatch order");
      }
      ++next;
    }
    seen = static_cast<std::uint8_t>(seen | parts_of(action.pass));
    return Done{};
  }

private:
  static constexpr std::uint8_t forward_bit = 1;
  static constexpr std::uint8_t input_bit = 2;
  static constexpr std::uint8_t weight_bit = 4;

  static std::uint8_t parts_of(Pass pass) noexcept {
    if (pass == Pass::forward) return forward_bit;
    return static_cast<std::uint8_t>((makes_input_gradient(pass) ? input_bit : 0)
                                     | (accumulates_weights(pass) ? weight_bit : 0));
  }
  static std::string before(const Action& action, Pass pass) {
    return " before " + to_string({action.stage, pass, action.microbatch})
           + ", whose result it needs";
  }
  std::uint8_t& seen_of(const Action& action) noexcept {
    return seen_[std::size_t{action.stage.value()} * share_ + action.microbatch.value() % share_];
  }

  const Schedule& schedule_;
  const std::uint32_t share_;                    ///< Microbatches of each copy.
  std::vector<std::uint8_t> seen_;               ///< By stage and microbatch: bits of passes.
  std::vector<std::uint32_t> next_weight_pass_;  ///< By stage: the microbatch whose turn it is.
};

template <class Check>
Expected<Done> for_every_place(const Schedule& schedule, Check check) {
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    for (std::size_t at = 0; at < schedule.ranks[r].size(); ++at) {
      if (auto ok = check(Place{schedule, r, at}); !ok) return ok;
    }
  }
  return Done{};
}

/// The stage whose output `action` waits for.
StageIndex awaited_by(const Action& action) {
  const auto stage = action.stage.value();
  return StageIndex{action.pass == Pass::forward ? stage - 1 : stage + 1};
}

/// For example `rank 0 waits at 0B0 for the gradient of stage 1 on rank 1 [0F0 >0B0< 0F1 0B1]`.
std::string wait_of(const Place& place) {
  const auto& action = place.action();
  const auto stage = awaited_by(action);
  return name_of(place.rank) + " waits at " + to_string(action) + " for the "
         + (action.pass == Pass::forward ? "activations" : "gradient") + " of stage "
         + std::to_string(stage.value()) + " on "
         + name_of(place.schedule.rank_of_stage[stage.value()].value()) + " " + excerpt(place);
}

/// Follows the waiting ranks from `rank`, which waits, to a circle, and shows it.
Error deadlock(const Schedule& schedule, const std::vector<std::size_t>& stopped,
               std::uint32_t rank) {
  const auto blocker = [&](std::uint32_t r) {
    return schedule.rank_of_stage[awaited_by(schedule.ranks[r][stopped[r]]).value()].value();
  };
  std::vector<bool> seen(schedule.rank_count(), false);
  for (; !seen[rank]; rank = blocker(rank)) seen[rank] = true;
  const auto first = rank;
  std::string text;
  std::size_t length = 0;
  do {
    if (length < ranks_shown_max) {
      text += (length == 0 ? "" : "; ") + wait_of({schedule, rank, stopped[rank]});
    }
    ++length;
    rank = blocker(rank);
  } while (rank != first);
  if (length > ranks_shown_max) {
    text += "; and so on around " + std::to_string(length) + " ranks";
  }
  return broken("deadlock", text);
}

Expected<Done> check_deadlock(const Schedule& schedule) {
  const auto stopped = visit_in_dependency_order(
      schedule, [](RankIndex, const Action&, std::size_t, std::size_t) {});
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    if (stopped[r] < schedule.ranks[r].size()) return deadlock(schedule, stopped, r);
  }
  return Done{};
}

}  // namespace

Expected<Done> validate(const Schedule& schedule) {
  if (auto ok = check_shape(schedule); !ok) return ok;
  if (auto ok = for_every_place(schedule, check_place); !ok) return ok;
  if (auto ok = check_forward_counts(schedule); !ok) return ok;
  PassLedger ledger{schedule};
  const auto enter_once = [&](const Place& place) { return ledger.enter_once(place); };
  if (auto ok = for_every_place(schedule, enter_once); !ok) return ok;
  if (auto ok = ledger.check_complete(); !ok) return ok;
  ledger.start_again();
  const auto enter_in_order = [&](const Place& place) { return ledger.enter_in_order(place); };
  if (auto ok = for_every_place(schedule, enter_in_order); !ok) return ok;
  return check_deadlock(schedule);
}

}  // namespace troupe
