// troupe/actors/trainer.hpp -- a run, led by this process: the composition root of an embedder.
//
//   auto plan = troupe::make_plan(config);
//   auto trainer = troupe::actors::Trainer::make(*plan, source);
//   while (...) auto report = (*trainer)->train_step();
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "troupe/actors/batch_source.hpp"
#include "troupe/actors/local_ranks.hpp"
#include "troupe/actors/step_report.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"

namespace troupe::actors {

class Cluster;

/// The whole grid of a plan as actors: one stage actor per pipeline rank and replica, each with its
/// own stream, a director, and a loader in each process.
///
/// Thread safety: none; one thread owns a trainer, and its members block until the step is over.
class Trainer {
public:
  /// Allocates everything the plan announced and starts the actors.
  /// @returns `out_of_memory` if the device refuses, or what a part of `parts` returned.
  [[nodiscard]] static Expected<std::unique_ptr<Trainer>> make(const Plan& plan,
                                                               const BatchSource& source,
                                                               RankParts parts = {});
  /// Waits for the nodes of `cluster`, which outlives the trainer, and gives them all ranks: blocks
  /// of neighbouring ranks, as equal as can be. Blocks until they are ready.
  /// @returns what a node refused, or why it was lost; the nodes have been told then.
  [[nodiscard]] static Expected<std::unique_ptr<Trainer>> make_on(Cluster& cluster,
                                                                  const Plan& plan);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// Runs the next training step: forward, backward, reduction, clipping, update. With a
  /// `train.staleness` s its report comes when up to s more steps have begun, none of them behind
  /// the next multiple of `train.validation_interval` or the last step.
  /// @returns `diverged` if the loss or the gradient norm is no longer a finite number, before the
  ///          update: the weights can still be read; or what made a rank fail. After an error no
  ///          further step can be run.
  [[nodiscard]] Expected<StepReport> train_step();

  /// Runs one forward-only step on held-out data: batch `index`, counted from 1. It waits for the
  /// steps that have begun, and is of weights with their updates: at a multiple of
  /// `train.validation_interval` those of the steps that were reported, elsewhere up to
  /// `train.staleness` more. What is trained does not depend on whether and when it is called.
  [[nodiscard]] Expected<StepReport> evaluate_step(std::uint32_t index);

  /// Copies the values of a parameter, from the first replica or its server, to `values`: the
  /// `index`-th of `parameters_of(plan().config.model)`, as many as it has. Waits as
  /// `evaluate_step` does.
  [[nodiscard]] Expected<Done> read_parameter(std::size_t index, std::span<float> values);

  /// Matrix-product peak of the cores that the ranks use, all at work at once, in FLOP/s; measured
  /// now, in about a tenth of a second.
  [[nodiscard]] Expected<double> measure_peak_flops();

  [[nodiscard]] const Plan& plan() const noexcept;
  class Impl;

private:
  explicit Trainer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::actors
