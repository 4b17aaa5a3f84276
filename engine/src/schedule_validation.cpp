#include "troupe/engine/schedule_validation.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "troupe/engine/check.hpp"

#include "dependency_order.hpp"
#include "rejection.hpp"

namespace troupe {

namespace {

using PassPlace = Place<Schedule>;

bool divides(std::uint32_t divisor, std::uint32_t count) {
  return divisor != 0 && count % divisor == 0;
}

Verdict check_shape(const Schedule& schedule) {
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
  if (idle == has_stage.end()) return std::nullopt;
  return broken("shape", name_of(static_cast<std::uint32_t>(idle - has_stage.begin()))
                             + " holds no stage; leave it out");
}

Verdict check_place(const PassPlace& place) {
  const auto& schedule = place.schedule;
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
  if (home != place.rank) {
    return broken_at(
        "placement", place,
        ", but stage " + std::to_string(action.stage.value()) + " is on " + name_of(home));
  }
  if (schedule.kind == StepKind::evaluation && action.pass != Pass::forward) {
    return broken_at("kind", place, ", but an evaluation step has forward passes only");
  }
  return std::nullopt;
}

Rejection missing(const Schedule& schedule, const Action& action) {
  const auto rank = schedule.rank_of_stage[action.stage.value()].value();
  const PassPlace end{schedule, rank, schedule.ranks[rank].size()};
  const auto of = [&](Pass pass) { return to_string({action.stage, pass, action.microbatch}); };
  const auto split = " (or " + of(Pass::backward_input) + " and " + of(Pass::backward_weight) + ")";
  return broken("completeness", name_of(rank) + " never runs " + to_string(action)
                                    + (action.pass == Pass::backward ? split : "")
                                    + ", which the step needs; its row ends " + excerpt(end));
}

/// Finds a stage with fewer forward passes than microbatches, without memory for all microbatches
/// of all stages. What passes has at least as many actions as stages times microbatches.
Verdict check_forward_counts(const Schedule& schedule) {
  const auto share = schedule.microbatch_count / schedule.copy_count;
  std::vector<std::size_t> count(schedule.stage_count(), 0);
  for (const auto& row : schedule.ranks) {
    for (const auto& action : row) {
      if (action.pass == Pass::forward) ++count[action.stage.value()];
    }
  }
  const auto poor = std::find_if(count.begin(), count.end(), [&](auto n) { return n < share; });
  if (poor == count.end()) return std::nullopt;
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

  Verdict enter_once(const PassPlace& place) {
    const auto& action = place.action();
    auto& seen = seen_of(action);
    const auto parts = parts_of(action.pass);
    if ((seen & parts) != 0) {
      const bool forward = action.pass == Pass::forward;
      return stopped_at("once", place,
                        forward ? " a second time" : " a second time (B is I and W)");
    }
    seen = static_cast<std::uint8_t>(seen | parts);
    return std::nullopt;
  }

  [[nodiscard]] Verdict check_complete() const {
    const bool training = schedule_.kind == StepKind::training;
    const auto all = training ? forward_bit | input_bit | weight_bit : +forward_bit;
    const auto gap = std::find_if(seen_.begin(), seen_.end(), [&](auto s) { return s != all; });
    if (gap == seen_.end()) return std::nullopt;
    const auto at = static_cast<std::size_t>(gap - seen_.begin());
    const auto pass = (*gap & forward_bit) == 0                ? Pass::forward
                      : (*gap & (input_bit | weight_bit)) == 0 ? Pass::backward
                      : (*gap & input_bit) == 0                ? Pass::backward_input
                                                               : Pass::backward_weight;
    const StageIndex stage{static_cast<std::uint32_t>(at / share_)};
    const auto first = schedule_.microbatches_of(stage).begin;
    const auto rank = schedule_.rank_of_stage[stage.value()].value();
    return stopped_at(
        {{rank, schedule_.ranks[rank].size()}},
        missing(schedule_,
                {stage, pass, MicrobatchIndex{first + static_cast<std::uint32_t>(at % share_)}}));
  }

  /// Forgets what was seen; the second walk checks the order of a complete schedule.
  void start_again() { std::fill(seen_.begin(), seen_.end(), std::uint8_t{0}); }

  Verdict enter_in_order(const PassPlace& place, WeightOrder weight_order) {
    const auto& action = place.action();
    auto& seen = seen_of(action);
    if (action.pass != Pass::forward && (seen & forward_bit) == 0) {
      return stopped_at("order", place, before(action, Pass::forward));
    }
    if (action.pass == Pass::backward_weight && (seen & input_bit) == 0) {
      return stopped_at("order", place, before(action, Pass::backward_input));
    }
    if (weight_order == WeightOrder::by_microbatch && accumulates_weights(action.pass)) {
      auto& next = next_weight_pass_[action.stage.value()];
      if (action.microbatch.value() != next) {
        return stopped_at("weight order", place,
                          " before the weight pass of microbatch " + std::to_string(next)
                              + ", but weight gradients add up in microbatch order");
      }
      ++next;
    }
    seen = static_cast<std::uint8_t>(seen | parts_of(action.pass));
    return std::nullopt;
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

/// The stage whose output `action` waits for.
StageIndex awaited_by(const Action& action) {
  const auto stage = action.stage.value();
  return StageIndex{action.pass == Pass::forward ? stage - 1 : stage + 1};
}

/// For example `rank 0 waits at 0B0 for the gradient of stage 1 on rank 1 [0F0 >0B0< 0F1 0B1]`.
std::string wait_of(const PassPlace& place) {
  const auto& action = place.action();
  const auto stage = awaited_by(action);
  return name_of(place.rank) + " waits at " + to_string(action) + " for the "
         + (action.pass == Pass::forward ? "activations" : "gradient") + " of stage "
         + std::to_string(stage.value()) + " on "
         + name_of(place.schedule.rank_of_stage[stage.value()].value()) + " " + excerpt(place);
}

Verdict check_deadlock(const Schedule& schedule) {
  const auto stopped = visit_in_dependency_order(
      schedule, [](RankIndex, const Action&, std::size_t, std::size_t) {});
  const auto blocker = [&](std::uint32_t r) {
    return schedule.rank_of_stage[awaited_by(schedule.ranks[r][stopped[r]]).value()].value();
  };
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    if (stopped[r] == schedule.ranks[r].size()) continue;
    return deadlock(stopped, r, blocker, [&](std::uint32_t rank) {
      return wait_of({schedule, rank, stopped[rank]});
    });
  }
  return std::nullopt;
}

// -- memory ---------------------------------------------------------------------------------------

/// The slots that a rank holds.
class Slots {
public:
  explicit Slots(StepKind kind) : kind_{kind} {}

  void run(const Action& action) {
    if (kind_ == StepKind::evaluation) {
      max_ = 1;
    } else if (action.pass == Pass::forward) {
      max_ = std::max(max_, ++held_);
    } else if (accumulates_weights(action.pass)) {
      --held_;
    }
  }
  /// The most so far.
  [[nodiscard]] std::uint32_t max() const noexcept { return max_; }

private:
  const StepKind kind_;
  std::uint32_t held_ = 0;
  std::uint32_t max_ = 0;
};

}  // namespace

Verdict find_rejection(const Schedule& schedule, WeightOrder weight_order) {
  if (auto verdict = check_shape(schedule)) return verdict;
  if (auto verdict = for_every_place(schedule, check_place)) return verdict;
  if (auto verdict = check_forward_counts(schedule)) return verdict;
  PassLedger ledger{schedule};
  const auto enter_once = [&](const PassPlace& place) { return ledger.enter_once(place); };
  if (auto verdict = for_every_place(schedule, enter_once)) return verdict;
  if (auto verdict = ledger.check_complete()) return verdict;
  ledger.start_again();
  const auto enter_in_order = [&](const PassPlace& place) {
    return ledger.enter_in_order(place, weight_order);
  };
  if (auto verdict = for_every_place(schedule, enter_in_order)) return verdict;
  return check_deadlock(schedule);
}

Expected<Done> validate(const Schedule& schedule) {
  if (const auto verdict = find_rejection(schedule, WeightOrder::by_microbatch))
    return verdict->error;
  return Done{};
}

Expected<Done> validate_memory(const Schedule& schedule,
                               const std::vector<std::uint32_t>& slots_max) {
  TROUPE_ASSERT(slots_max.size() == 1 || slots_max.size() == schedule.rank_count());
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    const auto has = slots_max[slots_max.size() == 1 ? 0 : r];
    PassPlace lacking{schedule, r, schedule.ranks[r].size()};
    Slots slots{schedule.kind};
    for (std::size_t at = 0; at < schedule.ranks[r].size(); ++at) {
      slots.run(schedule.ranks[r][at]);
      if (slots.max() > has) lacking.at = std::min(lacking.at, at);
    }
    if (slots.max() <= has) continue;
    return broken_at("memory", lacking,
                     ", for which it lacks a slot: it has " + std::to_string(has) + " and needs "
                         + std::to_string(slots.max()) + " in all")
        .error;
  }
  return Done{};
}

}  // namespace troupe
