// engine/src/list_scheduler.hpp -- makes a schedule by letting every rank begin what it can.
//
// Time passes from event to event. Whenever a rank is free and something has arrived, it begins
// what the policy likes best, and puts weight passes where it would otherwise wait. On each stage
// microbatches go forward, backward, and through the weight pass in their order.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

#include "step_problem.hpp"

namespace troupe {

/// What a rank begins when an F and an I (or B) could begin at once.
enum class Turn : std::uint8_t {
  alternate,  ///< The other of the two than it began last.
  backward,   ///< Backward.
  forward,    ///< Forward, as long as there are slots.
};

/// Which of several stages of a rank comes first.
enum class Depth : std::uint8_t {
  late_first,   ///< The stage nearest to the loss.
  early_first,  ///< The stage nearest to the tokens.
  oldest,       ///< The one with the oldest microbatch, then the one nearest to the loss.
};

/// How a rank chooses.
struct ListPolicy {
  std::vector<std::uint32_t> slots;  ///< By stage: the most microbatches in flight, at least 1.
  std::vector<std::uint32_t> ahead;  ///< By stage: the most between F and the end of I, at least 1.
  std::vector<bool> whole;           ///< By stage: whether backward passes are not split.
  Turn turn = Turn::alternate;
  Depth forward_depth = Depth::late_first;
  Depth backward_depth = Depth::late_first;
  std::uint32_t fill_percent = 100;  ///< A W fills a gap of at least this share of its time.
  std::uint32_t yield_percent = 0;  ///< An F waits for an I that comes within this share of its own
                                    ///< time.
};

/// Runs policies on one problem.
class ListScheduler {
public:
  explicit ListScheduler(const StepProblem& problem);

  /// The programs that the policy makes; they keep to its slots and end.
  [[nodiscard]] const Rows& run(const ListPolicy& policy);

private:
  struct StageState {
    std::uint32_t forward_count = 0;  ///< Passes begun.
    std::uint32_t backward_count = 0;
    std::uint32_t weight_count = 0;
  };
  struct RankState {
    std::int64_t free_ns = 0;
    bool was_forward = false;  ///< Whether the last pass that was no W was an F.
  };
  struct Candidate {
    std::uint32_t stage = 0;
    std::uint32_t microbatch = 0;
    std::int64_t ready_ns = std::numeric_limits<std::int64_t>::max();
  };
  struct Choices {
    Candidate forward;
    Candidate backward;
    Candidate weight;  ///< Ready when an F is here for which its slot is needed.
    bool has_weight = false;
  };
  using Event = std::pair<std::int64_t, std::uint32_t>;  ///< When, and the rank that may begin.

  void start_again();
  [[nodiscard]] Choices choices_of(std::uint32_t rank, std::int64_t now_ns,
                                   const ListPolicy& policy) const;
  void decide(std::uint32_t rank, std::int64_t now_ns, const ListPolicy& policy);
  void begin(std::uint32_t stage, Pass pass, std::int64_t now_ns);
  void arrive(std::uint32_t rank, std::int64_t at_ns);
  [[nodiscard]] bool has_slot(std::uint32_t stage, const ListPolicy& policy) const;

  const StepProblem& problem_;
  std::vector<StageState> stages_;
  std::vector<RankState> ranks_;
  std::vector<std::int64_t> forward_here_ns_;   ///< By stage and microbatch.
  std::vector<std::int64_t> gradient_here_ns_;  ///< By stage and microbatch.
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  Rows rows_;
};

}  // namespace troupe
