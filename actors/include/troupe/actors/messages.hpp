// troupe/actors/messages.hpp -- every message an actor of this system may receive.
//
// Messages carry facts and indices, never tensors: the bytes of an activation travel through a
// `transport::Link` from device buffer to device buffer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <caf/all.hpp>

#include "troupe/actors/step_report.hpp"
#include "troupe/engine/stage_machine.hpp"
#include "troupe/stages/stage.hpp"

namespace troupe::actors {

// -- to a stage actor -----------------------------------------------------------------------------

/// From the loader: begin a step. `batch` outlives the step.
struct StepStarted {
  std::uint32_t step = 0;
  StepKind kind = StepKind::training;
  const stages::Batch* batch = nullptr;
};

/// From a completion of a link, a device or a collective: something this actor began has ended.
struct Completed {
  StageEvent event;
  Errc code = Errc::none;
  stages::DeviceSpan span{};  ///< Of device work; zero otherwise.
};

/// From the director: every rank's gradients are known, update the weights.
struct UpdateStarted {
  float learning_rate = 0.0F;
  float gradient_scale = 1.0F;
};

// -- to the director ------------------------------------------------------------------------------

/// From the trainer: run `step`.
struct StepWanted {
  std::uint32_t step = 0;
  StepKind kind = StepKind::training;
};

/// From a stage actor: the gradients are final, or, in an evaluation step, the losses are there.
struct StepReported {
  std::uint32_t rank = 0;                    ///< Of the grid.
  std::vector<double> losses;                ///< By microbatch, on the last stage's rank.
  std::vector<std::vector<double>> squares;  ///< By held stage, by owned parameter.
};

/// From a stage actor: the step is over on this rank.
struct RankFinished {
  std::uint32_t rank = 0;
  TimeAccount account;
  std::vector<TraceEntry> trace;
};

/// From a stage actor: an operation failed and the step cannot complete.
struct RankFailed {
  std::uint32_t rank = 0;
  Errc code = Errc::internal;
  std::string operation;  ///< What failed, for a person.
};

/// From the loader: the batches of a step could not be made.
struct LoadFailed {
  std::string reason;  ///< A sentence.
};

using StageHandle = caf::typed_actor<caf::reacts_to<StepStarted>, caf::reacts_to<Completed>,
                                     caf::reacts_to<UpdateStarted>>;
using LoaderHandle = caf::typed_actor<caf::reacts_to<StepWanted>>;

/// A stage actor and the rank of the grid that it performs.
struct PlacedStage {
  std::uint32_t rank = 0;
  StageHandle actor;
};

/// From the trainer, once and before any step: who is led.
struct GroupChosen {
  std::vector<LoaderHandle> loaders;  ///< One per process.
  std::vector<StageHandle> stages;    ///< By rank of the grid.
};

using DirectorHandle = caf::typed_actor<caf::reacts_to<GroupChosen>, caf::reacts_to<StepWanted>,
                                        caf::reacts_to<StepReported>, caf::reacts_to<RankFinished>,
                                        caf::reacts_to<RankFailed>, caf::reacts_to<LoadFailed>>;

}  // namespace troupe::actors

// Within one process messages are shared, not serialized.
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::StepStarted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::Completed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::UpdateStarted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::StepWanted)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::StepReported)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::RankFinished)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::RankFailed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::LoadFailed)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::actors::GroupChosen)
