// troupe/actors/director.hpp -- the actor that leads a step: starts it, joins what the ranks
// report, decides the clipping, and says when it is over.
//
// With a staleness s, step t begins when step t - s - 1 is over, before it is wanted: whoever wants
// step t hears of it when it is over, and t + 1 to t + s are on their way, but for those behind the
// next validation that the configuration names, or behind its last step. The weights of step t
// have the updates up to max(t - s - 1, the last such validation), neither more nor fewer.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "troupe/actors/messages.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/inline_function.hpp"
#include "troupe/engine/lanes.hpp"
#include "troupe/engine/loss_scaler.hpp"
#include "troupe/engine/plan.hpp"

namespace troupe::actors {

/// Called once per step that was wanted, and once per `StepsAwaited`, on the director's thread. It
/// must only post.
using StepDone = InlineFunction<void(Expected<StepReport>)>;

class DirectorState {
public:
  static inline const char* name = "troupe.director";  // Read by CAF's logger.

  void start(DirectorHandle::pointer self, std::shared_ptr<const Plan> plan, StepDone done);
  void on(const GroupChosen& message);
  void on(const StepDue& message);
  void on(const StepsAwaited& message);
  void on(StepReported& message);
  void on(RankFinished& message);
  void on(const RankFailed& message);
  void on(const LoadFailed& message);
  void on(const NodeLost& message);
  void on(const CauseAwaited& message);

private:
  /// A step that has begun and is not over. Ranks report their steps in order.
  struct StepUnderWay {
    StepReport report;
    std::vector<std::optional<StepReported>> reported;  ///< By rank and server.
    std::vector<bool> has_finished;                     ///< By rank and server.
    std::size_t reported_count = 0;
    std::size_t finished_count = 0;
  };
  /// What the trainer waits for.
  enum class Wanted : std::uint8_t { nothing, training, evaluation, end_of_steps };

  void begin(const StepWanted& what);
  void begin_training(std::uint32_t step);
  /// The last step that may begin once `step` is wanted.
  [[nodiscard]] std::uint32_t last_to_begin(std::uint32_t step) const;
  /// Gives the trainer what it waits for, if that is here.
  void answer();
  void end_first_step();
  void count_report(StepUnderWay& step, StepReported& message);

  /// Ends the run if `misfit` names what is wrong with a message that a rank has sent. Returns
  /// whether it does.
  bool refuse(const std::optional<std::string>& misfit);
  void decide_update(StepUnderWay& step);
  /// Whether the rank updates parameters: a server, or without such any.
  [[nodiscard]] bool updates(std::uint32_t rank) const;
  template <class Decision>
  void tell_who_updates(const Decision& decision) const;
  template <class Visit>
  void for_each_end(const StepUnderWay& step, const Visit& visit) const;
  [[nodiscard]] double mean_loss(const StepUnderWay& step) const;
  [[nodiscard]] std::vector<std::int32_t> predictions(const StepUnderWay& step) const;
  [[nodiscard]] std::optional<std::string> misfit_of_parts(const StepReported& message) const;
  [[nodiscard]] double global_norm(const StepUnderWay& step) const;
  /// What the rank of `holder` reported of its stage.
  [[nodiscard]] std::span<const double> squares_of(const StepUnderWay& step,
                                                   const StageHolder& holder) const;
  void finish(Expected<StepReport> outcome);
  /// Ends the steps under way, and every later one, with `sentence`.
  void give_up(Errc code, const std::string& sentence);
  /// ", in step 7", or nothing.
  [[nodiscard]] std::string step_under_way(const char* before, const char* after) const;
  [[nodiscard]] bool is_alone() const { return loaders_.size() <= 1; }

  DirectorHandle::pointer self_ = nullptr;
  std::shared_ptr<const Plan> plan_;
  StepDone done_;
  std::vector<LoaderHandle> loaders_;
  std::vector<StageHandle> stages_;  ///< By rank of the grid, and servers.
  /// By stage of a copy and owned parameter: shards hold parts of it.
  std::vector<std::vector<bool>> is_part_;
  std::deque<StepUnderWay> under_way_;  ///< The oldest first.
  std::deque<StepReport> over_;         ///< Steps of training that nobody has asked for yet.
  Wanted wanted_ = Wanted::nothing;
  StepWanted evaluation_;         ///< If that is wanted.
  std::uint32_t last_begun_ = 0;  ///< Of the steps of training.
  std::uint32_t barrier_ = 0;     ///< The last step before a validation that all steps waited for.
  std::int64_t last_end_ns_ = 0;
  std::optional<LossScaler> loss_scaler_;    ///< From `start` on.
  std::uint32_t skipped_count_ = 0;          ///< Steps without an update.
  std::vector<std::int64_t> clock_lead_ns_;  ///< By rank and server; empty if all are one.
  /// What a rank of another process said first: perhaps for the same cause that the door will name.
  std::optional<RankFailed> unexplained_;
  std::optional<Error> failure_;  ///< Of the run: there are no more steps.
};

/// The behavior to spawn. An actor begins when its turn comes, hence the shared `done`: it is moved
/// out.
DirectorHandle::behavior_type director(DirectorHandle::stateful_pointer<DirectorState> self,
                                       const std::shared_ptr<const Plan>& plan,
                                       const std::shared_ptr<StepDone>& done);

}  // namespace troupe::actors
