// troupe/actors/director.hpp -- the actor that leads a step: starts it, joins what the ranks
// report, decides the clipping, and says when it is over.
#pragma once

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

/// Called once per step that was wanted, on the director's thread. It must only post.
using StepDone = InlineFunction<void(Expected<StepReport>)>;

class DirectorState {
public:
  static inline const char* name = "troupe.director";  // Read by CAF's logger.

  void start(DirectorHandle::pointer self, std::shared_ptr<const Plan> plan, StepDone done);
  void on(const GroupChosen& message);
  void on(const StepDue& message);
  void on(StepReported& message);
  void on(RankFinished& message);
  void on(const RankFailed& message);
  void on(const LoadFailed& message);
  void on(const NodeLost& message);
  void on(const CauseAwaited& message);

private:
  /// Ends the run if `misfit` names what is wrong with a message that a rank has sent. Returns
  /// whether it does.
  bool refuse(const std::optional<std::string>& misfit);
  void decide_update();
  /// Whether the rank updates parameters: a server, or without such any.
  [[nodiscard]] bool updates(std::uint32_t rank) const;
  template <class Decision>
  void tell_who_updates(const Decision& decision) const;
  template <class Visit>
  void for_each_end(const Visit& visit) const;
  [[nodiscard]] double mean_loss() const;
  [[nodiscard]] std::vector<std::int32_t> predictions() const;
  [[nodiscard]] std::optional<std::string> misfit_of_parts(const StepReported& message) const;
  [[nodiscard]] double global_norm() const;
  /// What the rank of `holder` reported of its stage.
  [[nodiscard]] std::span<const double> squares_of(const StageHolder& holder) const;
  void finish(Expected<StepReport> outcome);
  /// Ends the step, and every later one, with `sentence`.
  void give_up(Errc code, const std::string& sentence);
  [[nodiscard]] bool is_alone() const { return loaders_.size() <= 1; }

  DirectorHandle::pointer self_ = nullptr;
  std::shared_ptr<const Plan> plan_;
  StepDone done_;
  std::vector<LoaderHandle> loaders_;
  std::vector<StageHandle> stages_;  ///< By rank of the grid, and servers.
  /// By stage of a copy and owned parameter: shards hold parts of it.
  std::vector<std::vector<bool>> is_part_;
  /// By rank and server; empty until it has reported, in this step.
  std::vector<std::optional<StepReported>> reported_;
  std::vector<bool> has_finished_;  ///< By rank and server.
  std::size_t reported_count_ = 0;
  std::size_t finished_count_ = 0;
  bool is_running_ = false;
  StepReport report_;
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
