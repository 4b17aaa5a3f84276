// troupe/engine/stage_machine.hpp -- what one pipeline rank does next, as a pure state machine.
//
// The machine performs no I/O, reads no clock and owns no buffer. A driver (an actor in production,
// a loop over a priority queue in the simulator and in tests) feeds it events and carries out the
// commands it returns. That is why every interleaving of a whole pipeline can be tested in one
// thread.
//
// A step of training goes through these phases on every rank:
//
//   passes      the rank's program, each pass when its input is here and its output buffer is free,
//               or whatever its policy prefers of the passes of which that is true; of shards the
//               leader prefers, and the others follow
//   reducing    the gradient buckets still on their way around the replicas, the tied gradients too
//   measuring   the sum of squares of every gradient
//   waiting     until the director knows the global norm
//   optimizing  the update, unless the director refuses it
//
// A rank that gives its gradients to a server neither measures nor updates: it reports once they
// are given, asks for the new weights, which its next passes wait for, and is finished. The server
// goes through the same phases without passes.
//
// An evaluation step ends with its passes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "troupe/engine/model_layout.hpp"
#include "troupe/engine/policy.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

// -- events: facts the driver reports -------------------------------------------------------------

struct Started {};
/// A receive that `ExpectActivation` asked for is complete.
struct ActivationArrived {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
/// A receive that `ExpectGradient` asked for is complete.
struct GradientArrived {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
/// The output activation of `stage` has left; its buffer is free again.
struct ActivationSent {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
/// The input gradient that `stage` made has left; its buffer is free again.
struct GradientSent {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
struct PassFinished {
  Action action;
};
/// The leader of the shards has enqueued this pass as number `index` of the step, and so does this
/// one. Choices may arrive in any order.
struct PassChosen {
  std::uint32_t index = 0;
  Action action;
};
/// The last backward pass of the step has completed a bucket of gradients.
struct BucketFilled {
  StageIndex stage;
  std::uint32_t bucket = 0;
};
/// May come in a later step, if the machine was made for that.
struct BucketReduced {
  StageIndex stage;
  std::uint32_t bucket = 0;
  std::uint32_t round = 0;  ///< As the command had it.
};
struct TiedArrived {
  StageIndex stage;
};
struct TiedSent {
  StageIndex stage;
};
struct TiedAdded {
  StageIndex stage;
};
struct GradientsMeasured {
  StageIndex stage;
};
/// The director has the global norm: the optimizer may run.
struct ClippingDecided {};
/// The director has found gradients that are not finite: the step ends without an update.
struct UpdateRefused {};
struct OptimizerFinished {
  StageIndex stage;
};
/// What `ExchangeWeights` asked for is on its way.
struct WeightsExchanged {
  StageIndex stage;
};

using StageEvent =
    std::variant<Started, ActivationArrived, GradientArrived, ActivationSent, GradientSent,
                 PassFinished, PassChosen, BucketFilled, BucketReduced, TiedArrived, TiedSent,
                 TiedAdded, GradientsMeasured, ClippingDecided, UpdateRefused, OptimizerFinished,
                 WeightsExchanged>;

// -- commands: what the driver must do ------------------------------------------------------------

/// Post the receive of an input activation of `stage`; a buffer is free for it.
struct ExpectActivation {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
/// Post the receive of an output gradient of `stage`; a buffer is free for it.
struct ExpectGradient {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
/// Enqueue a pass. Passes run in the order of these commands; several may be enqueued at once.
struct RunPass {
  Action action;
};
/// Bring back what the stage has offloaded of the microbatch: the pass that the program has next
/// needs it, and all passes before it are enqueued.
struct FetchSlot {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
/// Post the receive of the leader's choice number `index` of the step.
struct ExpectChoice {
  std::uint32_t index = 0;
};
/// Send the output activation of `stage` to the next stage.
struct SendActivation {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
/// Send the input gradient of `stage` to the previous stage.
struct SendGradient {
  StageIndex stage;
  MicrobatchIndex microbatch;
};
/// Sum a bucket over all stages that hold the same parameters, in other copies of the model and
/// other replicas; or give it to their server, and being that, sum up what they give. All of them
/// issue the stage's buckets in the same order.
struct ReduceBucket {
  StageIndex stage;
  std::uint32_t bucket = 0;
  std::uint32_t round = 0;  ///< Which of the machine's steps it belongs to, counted around.
};
/// Post the receive of the tied gradient from the other end of the model.
struct ExpectTied {
  StageIndex stage;
};
/// Send the tied gradient to the other end of the model.
struct SendTied {
  StageIndex stage;
};
/// Add the halves of the tied gradient.
struct AddTied {
  StageIndex stage;
};
struct MeasureGradients {
  StageIndex stage;
};
/// Tell the director that every gradient is final and measured, or, after an evaluation step, that
/// the losses are there.
struct ReportStep {};
struct RunOptimizer {
  StageIndex stage;
};
/// Take the new weights from the server; or, being that, give out the old ones again.
struct ExchangeWeights {
  StageIndex stage;
};
/// The step is over on this rank; tell the director.
struct FinishStep {};

using StageCommand =
    std::variant<ExpectActivation, ExpectGradient, RunPass, FetchSlot, ExpectChoice, SendActivation,
                 SendGradient, ReduceBucket, ExpectTied, SendTied, AddTied, MeasureGradients,
                 ReportStep, RunOptimizer, ExchangeWeights, FinishStep>;

/// What a rank that is not computing waits for.
enum class WaitCause : std::uint8_t {
  none,        ///< Nothing: a pass is enqueued, or it could be.
  activation,  ///< An activation from the previous stage.
  gradient,    ///< A gradient from the next stage.
  send,        ///< An earlier output to leave its buffer.
  leader,      ///< The leader of the shards to choose a pass.
  reduction,   ///< Gradients on their way around the replicas, or between tied embeddings.
  measuring,   ///< Its own gradient norms.
  director,    ///< The other ranks' gradient norms, through the director.
  optimizer,   ///< Its own optimizer.
  next_step,   ///< The step is over.
};

/// A virtual stage as its rank's machine sees it.
struct MachineStage {
  StageBounds bounds;
  std::uint32_t bucket_count = 0;
  bool exchanges_tied =
      false;  ///< Its last bucket is a tied gradient with the other half elsewhere.
};

/// Who applies the policy.
enum class Chooser : std::uint8_t {
  self,
  leader,  ///< Another machine, of another shard of the same stages: see `PassChosen`.
};

/// What a rank has to do with the others that hold the same parameters.
enum class SumRole : std::uint8_t {
  alone,   ///< There are none.
  peer,    ///< All sum up their gradients, and update.
  client,  ///< It gives its gradients to a server, which updates.
  server,  ///< It runs no passes, sums up what its clients give, and updates.
};

/// Walks one rank through its program, step after step. Allocates only when it is made.
class StageMachine {
public:
  using Commands = std::vector<StageCommand>;

  /// @param schedule a validated schedule.
  /// @param rank the rank this machine drives.
  /// @param stages what is to be known of each stage the rank holds, in ascending order of stage.
  /// @param enqueued_max how many passes may be enqueued on the device at once, so that it need not
  ///        wait for the driver between two of them.
  /// @param staleness how many of its steps a client may be ahead of its oldest gradients that are
  ///        not given away yet.
  StageMachine(const Schedule& schedule, RankIndex rank, std::span<const MachineStage> stages,
               SumRole role, std::uint32_t enqueued_max, Policy policy = Policy::in_order,
               Chooser chooser = Chooser::self, std::uint32_t staleness = 0);

  /// Consumes `event` and appends the commands it makes possible to `out`, in the order to issue
  /// them. `Started` begins a step; the one before must be over, but for what `staleness` allows.
  /// Reporting a fact twice aborts.
  void on(const StageEvent& event, Commands& out);

  /// What keeps the next pass, or the end of the step, from happening.
  [[nodiscard]] WaitCause waits_for() const;
  /// The pass to enqueue next, if one is left and known: if `waits_for` is about an input or
  /// output, it is this one's.
  [[nodiscard]] std::optional<Action> next_action() const;
  /// Whether a leader can have chosen the pass: the rank holds its stage, which has the microbatch.
  [[nodiscard]] bool has(const Action& action) const;
  [[nodiscard]] bool step_finished() const noexcept { return phase_ == Phase::finished; }

private:
  enum class Phase : std::uint8_t { passes, reducing, measuring, waiting, optimizing, finished };

  struct StageState {
    StageIndex stage;
    MachineStage props;
    bool is_first = false;
    bool is_last = false;
    MicrobatchRange microbatches;
    std::vector<MicrobatchIndex> arrival_order;  ///< As the stage before sends them.
    // The fields below begin anew with every step.
    std::vector<bool> activation_here;  ///< By microbatch.
    std::vector<bool> gradient_here;    ///< By microbatch.
    std::size_t expected_count = 0;     ///< Of `arrival_order`: receives asked for.
    std::uint32_t activations_in_free = 0;
    std::uint32_t activations_out_free = 0;
    std::uint32_t gradients_out_free = 0;
    std::uint32_t buckets_filled = 0;
    // What has been enqueued, for a policy to choose what is next.
    std::uint32_t slots_free = 0;
    std::uint32_t forward_next = 0;  ///< Microbatch.
    std::uint32_t weight_next = 0;   ///< Microbatch.
    std::vector<bool> input_done;    ///< By microbatch: its B or I.
    bool tied_here = false;
    bool tied_sent = false;
    bool tied_added = false;
  };

  void handle(const Started&, Commands& out);
  void handle(const ActivationArrived& event, Commands& out);
  void handle(const GradientArrived& event, Commands& out);
  void handle(const ActivationSent& event, Commands& out);
  void handle(const GradientSent& event, Commands& out);
  void handle(const PassFinished& event, Commands& out);
  void handle(const PassChosen& event, Commands& out);
  void handle(const BucketFilled& event, Commands& out);
  void handle(const BucketReduced& event, Commands& out);
  void handle(const TiedArrived& event, Commands& out);
  void handle(const TiedSent& event, Commands& out);
  void handle(const TiedAdded& event, Commands& out);
  void handle(const GradientsMeasured& event, Commands& out);
  void handle(const ClippingDecided&, Commands& out);
  void handle(const UpdateRefused&, Commands& out);
  void handle(const OptimizerFinished& event, Commands& out);
  void handle(const WeightsExchanged& event, Commands& out);

  [[nodiscard]] StageState& state_of(StageIndex stage);
  [[nodiscard]] const StageState& state_of(StageIndex stage) const;
  [[nodiscard]] WaitCause obstacle(const Action& action) const;
  [[nodiscard]] std::size_t pass_count() const;
  [[nodiscard]] std::optional<Action> preferred() const;
  template <class Visit>
  void for_every_candidate(const StageState& stage, Visit visit) const;
  [[nodiscard]] std::optional<MicrobatchIndex> next_input(const StageState& stage) const;
  void enqueue(const Action& action, Commands& out);
  void begin_step(StageState& stage) const;
  void expect_activations(StageState& stage, Commands& out) const;
  void expect_choice(Commands& out);
  void add_tied_when_ready(const StageState& stage, Commands& out) const;
  void reduce(StageIndex stage, std::uint32_t bucket, Commands& out);
  void enqueue_ready_passes(Commands& out);
  void fetch_ahead(Commands& out);
  void advance_phase(Commands& out);
  template <class Command>
  void begin_optimizing(Commands& out);
  [[nodiscard]] bool all_stages_reported();
  [[nodiscard]] bool gradients_are_away() const;

  StepKind kind_;
  Policy policy_;
  Chooser chooser_;
  std::vector<Action> program_;  ///< All passes; with a policy, what has been chosen so far.
  std::vector<StageState> stages_;
  std::vector<std::uint32_t> local_of_stage_;  ///< By virtual stage: its index in `stages_`.
  SumRole role_;
  std::uint32_t enqueued_max_;
  std::uint32_t bucket_count_ = 0;  ///< Of all stages.

  Phase phase_ = Phase::finished;
  std::size_t next_ = 0;            ///< The next action to enqueue.
  std::size_t finished_count_ = 0;  ///< Actions finished.
  std::size_t fetched_count_ = 0;   ///< Actions whose slots need no more `FetchSlot`.
  std::uint32_t choices_expected_ = 0;
  std::vector<bool> choice_here_;  ///< By index.
  std::uint32_t buckets_issued_ = 0;
  /// Buckets issued and not reduced, by step: of the current one at `round_`, and of those before
  /// it, around.
  std::vector<std::uint32_t> buckets_pending_;
  std::uint32_t round_ = 0;
  std::uint32_t stages_reported_ = 0;  ///< Answers to the current phase's command.
};

}  // namespace troupe
