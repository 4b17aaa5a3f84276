// troupe/stages/counting_stage.hpp -- a stage without a model, to rehearse a plan.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "troupe/engine/model_layout.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/stage.hpp"

namespace troupe::stages {

/// What a counting stage is built from.
struct CountingProps {
  StageIndex stage;
  std::uint32_t stage_count = 1;  ///< Of one copy of the model.
  StageBounds bounds;
  std::uint32_t microbatch_count = 1;  ///< Of a step, of all copies.
  bool tie_ends = false;  ///< First and last stage share a gradient, as tied embeddings do.
  Peers holders{};
  bool has_server = false;      ///< The last of the holders.
  std::uint32_t staleness = 0;  ///< How many steps it may be ahead of that.
  /// Of how many parameters it reports gradients.
  std::uint32_t reported_count = 1;
  /// How long its stream sleeps in a pass of a step, as if something was computed elsewhere; empty:
  /// not at all.
  std::function<std::chrono::nanoseconds(std::uint32_t step)> pass_time{};
};

/// Builds a stage that does next to nothing and leaves a trace of everything: its messages carry
/// their receiver and microbatch, which it checks, and a number in which every pass on the way has
/// left its mark; its "gradients" depend on the order of the weight passes. Whoever runs it learns
/// what the runtime itself costs, and that nothing was swapped, lost or run out of turn: a pass
/// that finds the wrong message in its buffer completes with `internal`.
///
/// One parameter of 16 floats, whose values after each step are the trace. Device and stream
/// outlive the stage.
/// @returns `out_of_memory` if the device refuses its few lines of memory.
[[nodiscard]] Expected<std::unique_ptr<Stage>> make_counting_stage(Device& device, Stream& stream,
                                                                   const CountingProps& props);

}  // namespace troupe::stages
