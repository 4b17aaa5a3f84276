// troupe/actors/trainer.hpp -- a run in this process: the composition root of an embedder.
//
//   auto plan = troupe::make_plan(config);
//   auto trainer = troupe::actors::Trainer::make(*plan, source);
//   while (...) auto report = (*trainer)->train_step();
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "troupe/actors/loader.hpp"
#include "troupe/actors/step_report.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/stage.hpp"
#include "troupe/transport/in_process.hpp"

namespace troupe::actors {

/// Builds one virtual stage of one replica; everything it enqueues goes to `stream`.
using StageFactory = std::function<Expected<std::unique_ptr<stages::Stage>>(
    const Plan& plan, const StagePlan& stage, stages::Device& device, stages::Stream& stream)>;

/// The parts of a run that can be replaced. Every default is the real thing.
struct TrainerParts {
  std::function<std::unique_ptr<stages::Device>()> make_device;  ///< The CPU of this machine.
  StageFactory make_stage;                                       ///< The plan's model family.
  std::function<transport::LinkPair()> make_link;                ///< In-process lanes.
  /// The members of a group of replicas, in rank order: in process.
  std::function<std::vector<std::unique_ptr<transport::Collective>>(std::uint32_t size)> make_group;
};

/// The whole grid of a plan as actors of this process: one stage actor per pipeline rank and
/// replica, each with its own stream, a director and a loader.
///
/// Thread safety: none; one thread owns a trainer, and its members block until the step is over.
class Trainer {
public:
  /// Allocates everything the plan announced and starts the actors.
  /// @returns `out_of_memory` if the device refuses, or what a part of `parts` returned.
  [[nodiscard]] static Expected<std::unique_ptr<Trainer>> make(const Plan& plan, BatchSource source,
                                                               TrainerParts parts = {});
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// Runs the next training step: forward, backward, reduction, clipping, update.
  /// @returns `device_failure` if the loss is no longer a number, or what made a rank fail. After
  /// an
  ///          error the trainer can only be destroyed.
  [[nodiscard]] Expected<StepReport> train_step();

  /// Runs one forward-only step on held-out data: batch `index`, counted from 1.
  [[nodiscard]] Expected<StepReport> evaluate_step(std::uint32_t index);

  /// The parameters in model order, each once, from the first replica, in the device's memory
  /// space. Valid until the next step.
  [[nodiscard]] std::vector<stages::ParameterView> parameters();
  /// Copies the values of `parameters()[index]` to `values`, as many.
  void read_parameter(std::size_t index, std::span<float> values);

  [[nodiscard]] const Plan& plan() const noexcept;
  /// The device all ranks compute on.
  [[nodiscard]] stages::Device& device() noexcept;

private:
  class Impl;
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::actors
