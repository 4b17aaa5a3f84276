// troupe/actors/messages.hpp -- every message an actor of this system may receive.
//
// Messages carry facts and indices, never tensors: the bytes of an activation travel through a
// `transport::Link` from device buffer to device buffer. A message with an `inspect` may travel
// between processes; the others are shared within one.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <caf/all.hpp>

#include "troupe/actors/step_report.hpp"
#include "troupe/engine/stage_machine.hpp"
#include "troupe/stages/stage.hpp"

namespace troupe {

template <class Inspector, class Tag>
typename Inspector::result_type inspect(Inspector& f, Index<Tag>& x) {
  auto value = x.value();
  const auto load = [&]() -> caf::error {
    x = Index<Tag>{value};
    return caf::none;
  };
  return f(value, caf::meta::load_callback(load));
}

template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, Action& x) {
  return f(x.stage, x.pass, x.microbatch);
}

}  // namespace troupe

namespace troupe::actors {

// -- to a stage actor -----------------------------------------------------------------------------

/// From the loader of its process: begin a step, once the one before is over. `batch` outlives the
/// step.
struct StepStarted {
  std::uint32_t step = 0;
  StepKind kind = StepKind::training;
  const stages::Batch* batch = nullptr;
  double loss_scale = 1.0;
  std::uint32_t weights_of = 0;
};

/// From a completion of a link, a device or a collective: something this actor began has ended.
struct Completed {
  StageEvent event;
  Errc code = Errc::none;
  stages::DeviceSpan span{};  ///< Of device work; zero otherwise.
};

/// From the director: every rank's gradients are known, update the weights.
struct UpdateStarted {
  std::uint32_t update = 0;  ///< Counted from 1: the step without those that were skipped.
  float learning_rate = 0.0F;
  float gradient_scale = 1.0F;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, UpdateStarted& x) {
  return f(x.update, x.learning_rate, x.gradient_scale);
}

/// From the director: a gradient of some rank has overflowed, end the step and leave the weights.
struct UpdateSkipped {};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, UpdateSkipped&) {
  return f();
}

// -- to a loader ----------------------------------------------------------------------------------

/// From the director: run `step`.
struct StepWanted {
  std::uint32_t step = 0;
  StepKind kind = StepKind::training;
  // The director knows the following.
  double loss_scale = 1.0;
  std::uint32_t weights_of = 0;  ///< The last step whose update the weights are to have.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, StepWanted& x) {
  return f(x.step, x.kind, x.loss_scale, x.weights_of);
}

[[nodiscard]] inline std::vector<std::uint64_t> bits_of(const std::vector<double>& numbers) {
  std::vector<std::uint64_t> bits;
  for (const auto number : numbers) bits.push_back(std::bit_cast<std::uint64_t>(number));
  return bits;
}
[[nodiscard]] inline std::vector<double> numbers_of(const std::vector<std::uint64_t>& bits) {
  std::vector<double> numbers;
  for (const auto one : bits) numbers.push_back(std::bit_cast<double>(one));
  return numbers;
}

// -- to the director ------------------------------------------------------------------------------

/// From the trainer: lead this step. It has no form in which another process could send it.
struct StepDue {
  StepWanted what;
};
/// From the trainer: say when every step that has begun is over.
struct StepsAwaited {};

/// From a stage actor: the gradients are final, or, in an evaluation step, the losses are there.
struct StepReported {
  std::uint32_t rank = 0;                    ///< Of the grid, or a server.
  std::vector<double> losses;                ///< By microbatch, on the last stage's rank.
  std::vector<std::vector<double>> squares;  ///< By held stage, by owned parameter it updates.
  std::uint32_t target_count = 0;            ///< Of the step over all replicas.
  /// Of an evaluation that classifies, on the last stage's rank: [microbatches, sequences].
  std::vector<std::int32_t> predictions{};
};
/// As bits: what CAF makes of a number that is not finite is another, or never done.
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, StepReported& x) {
  auto losses = bits_of(x.losses);
  std::vector<std::vector<std::uint64_t>> squares;
  for (const auto& of_stage : x.squares) squares.push_back(bits_of(of_stage));
  const auto load = [&]() -> caf::error {
    x.losses = numbers_of(losses);
    x.squares.clear();
    for (const auto& of_stage : squares) x.squares.push_back(numbers_of(of_stage));
    return caf::none;
  };
  return f(x.rank, losses, squares, x.target_count, x.predictions, caf::meta::load_callback(load));
}

/// From a stage actor: the step is over on this rank.
struct RankFinished {
  std::uint32_t rank = 0;
  TimeAccount account;
  std::vector<TraceEntry> trace;
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RankFinished& x) {
  return f(x.rank, x.account.ns, x.account.begin_ns, x.account.end_ns, x.trace);
}

/// From a stage actor: an operation failed and the step cannot complete.
struct RankFailed {
  std::uint32_t rank = 0;
  Errc code = Errc::internal;
  std::string operation;  ///< What failed, for a person.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, RankFailed& x) {
  return f(x.rank, x.code, x.operation);
}

/// From the loader: the batches of a step could not be made.
struct LoadFailed {
  std::uint32_t step = 0;
  std::string reason;  ///< A sentence.
};
template <class Inspector>
typename Inspector::result_type inspect(Inspector& f, LoadFailed& x) {
  return f(x.step, x.reason);
}

/// From the door: a process that performs ranks is gone, or cut off.
struct NodeLost {
  std::string sentence;
};

/// From itself: the cause of a failure had time to show.
struct CauseAwaited {};

using StageHandle = caf::typed_actor<caf::reacts_to<StepStarted>, caf::reacts_to<Completed>,
                                     caf::reacts_to<UpdateStarted>, caf::reacts_to<UpdateSkipped>>;
using LoaderHandle = caf::typed_actor<caf::reacts_to<StepWanted>>;

/// A stage actor and the rank of the grid, or the server, that it performs.
struct PlacedStage {
  std::uint32_t rank = 0;
  StageHandle actor;
};

/// From the trainer, once and before any step: who is led.
struct GroupChosen {
  std::vector<LoaderHandle> loaders;  ///< One per process.
  std::vector<StageHandle> stages;    ///< By rank of the grid, and servers.
  /// By the same: what its process's clock shows less what the director's shows. Empty if
  /// all are one.
  std::vector<std::int64_t> clock_lead_ns{};
};

using DirectorHandle = caf::typed_actor<
    caf::reacts_to<GroupChosen>, caf::reacts_to<StepDue>, caf::reacts_to<StepsAwaited>,
    caf::reacts_to<StepReported>, caf::reacts_to<RankFinished>, caf::reacts_to<RankFailed>,
    caf::reacts_to<LoadFailed>, caf::reacts_to<NodeLost>, caf::reacts_to<CauseAwaited>>;

}  // namespace troupe::actors

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::StepStarted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::Completed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::StepDue)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::StepsAwaited)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::NodeLost)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::CauseAwaited)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::GroupChosen)
