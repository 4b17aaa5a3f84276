// troupe/actors/stage_actor.hpp -- the actor that performs one pipeline rank of one replica, or the
// parameter server of a pipeline rank.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "troupe/actors/local_ranks.hpp"
#include "troupe/actors/messages.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/transport/tag.hpp"

namespace troupe::actors {

/// State of the stage actor: two `StageMachine`s that decide (training and evaluation), and the
/// rank's streams, stages and lanes that carry out.
class StageActorState {
public:
  static inline const char* name = "troupe.stage";  // Read by CAF's logger.

  void start(StageHandle self, std::shared_ptr<const Plan> plan, LocalRank& local,
             DirectorHandle director);
  void on(const StepStarted& message);
  void on(const Completed& message);
  void on(const UpdateStarted& message);
  void on(const UpdateSkipped& message);

private:
  /// Where a buffer is while it travels, and how many lanes have yet to say that it has.
  struct Travelling {
    Buffer buffer;
    std::uint32_t awaited = 0;
  };
  /// One place per stage, edge and microbatch.
  struct Landing {
    std::vector<Travelling> places;
    [[nodiscard]] Travelling& at(stages::Edge edge, MicrobatchIndex microbatch);
  };

  /// Lets a buffer, or its parts, travel over the lanes of an edge, each of which posts `event`.
  template <class Event>
  void travel(std::vector<LaneEnd>& lanes, transport::Tag tag, Buffer buffer, const Event& event);
  /// Whether no other lane is to post the same.
  template <class Event>
  [[nodiscard]] bool is_last(const Event& event);
  template <class Event>
  [[nodiscard]] stages::DeviceDone then(Event event);
  void advance(StageMachine& machine, const StageEvent& event);
  void begin(const StepStarted& message);
  /// What the director has decided on the gradients.
  void on_decision(const StageEvent& event);

  // Put buffers that a completion brought, or that a pass no longer needs, where they belong.
  void settle(const PassFinished& event);
  void settle(const ActivationArrived& event);
  void settle(const GradientArrived& event);
  void settle(const ActivationSent& event);
  void settle(const GradientSent& event);
  void settle(const TiedArrived& event);
  void settle(const TiedSent& event);
  void settle(const TiedAdded& event);
  void settle(const auto&) {}
  void hold(const auto& arrived);
  void give_free(const auto& sent);

  // Remember what the device did and when.
  void record(const PassFinished& event, const stages::DeviceSpan& span);
  void record(const BucketReduced& event, const stages::DeviceSpan& span);
  void record(const OptimizerFinished& event, const stages::DeviceSpan& span);
  void record(const auto&, const stages::DeviceSpan&) {}

  /// Tells the director, and ignores what comes later.
  void fail(Errc code, const std::string& operation);

  void carry_out(const ExpectActivation& command);
  void carry_out(const ExpectGradient& command);
  void carry_out(const RunPass& command);
  void carry_out(const FetchSlot& command);
  void tell_choice(const Action& choice);
  void carry_out(const ExpectChoice& command);
  void carry_out(const SendActivation& command);
  void carry_out(const SendGradient& command);
  void carry_out(const ReduceBucket& command);
  void carry_out(const ExpectTied& command);
  void carry_out(const SendTied& command);
  void carry_out(const AddTied& command);
  void carry_out(const MeasureGradients& command);
  void carry_out(const ReportStep& command);
  void carry_out(const RunOptimizer& command);
  void carry_out(const ExchangeWeights& command);
  void carry_out(const FinishStep& command);

  [[nodiscard]] HeldStage& held(StageIndex stage);
  [[nodiscard]] Landing& landing(StageIndex stage);
  /// Entries of the current step's trace: passes, reductions of buckets, updates of stages.
  [[nodiscard]] std::size_t trace_size_max() const;
  [[nodiscard]] std::uint32_t rank() const;
  [[nodiscard]] SumRole role() const;
  /// Whether another shard, or this one for the others, chooses the passes of the current step.
  [[nodiscard]] bool follows() const;
  [[nodiscard]] bool leads() const;

  StageHandle self_;
  DirectorHandle director_;
  std::shared_ptr<const Plan> plan_;
  LocalRank* local_ = nullptr;
  std::optional<StageMachine> training_;
  std::optional<StageMachine> evaluation_;
  StageMachine* machine_ = nullptr;  ///< The one of the current step.
  std::optional<TimeKeeper> keeper_;
  std::vector<std::uint32_t> local_of_stage_;  ///< By virtual stage: its index in `local_->stages`.
  std::vector<Landing> landings_;              ///< By held stage.
  std::vector<TraceEntry> trace_;  ///< Allocated once per step, whole; the report takes it along.
  StageMachine::Commands commands_;
  stages::OptimizerStep update_;
  std::deque<StepStarted> waiting_;  ///< For the step before to be over.
  std::uint32_t step_ = 0;
  std::uint32_t target_count_ = 0;  ///< Of the step's batch.
  std::uint32_t choices_told_ = 0;  ///< In the current step.
  bool has_failed_ = false;  ///< Told once; whatever completes later belongs to no step any more.
};

/// The behavior to spawn.
StageHandle::behavior_type stage_actor(StageHandle::stateful_pointer<StageActorState> self,
                                       const std::shared_ptr<const Plan>& plan, LocalRank* local,
                                       const DirectorHandle& director);

}  // namespace troupe::actors
