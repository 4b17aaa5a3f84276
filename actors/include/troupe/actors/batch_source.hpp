// troupe/actors/batch_source.hpp -- where the batches of a run come from.
#pragma once

#include <cstdint>
#include <functional>

#include "troupe/engine/schedule.hpp"
#include "troupe/stages/stage.hpp"

namespace troupe::actors {

/// Fills the tokens and targets of `replica` for a step, and of a BERT also segments and lengths;
/// the batch has its final size already. If not every target is there, says how many the step has
/// over all replicas. Must depend on its arguments alone. Called on the loader's own thread while
/// the step before runs, also for one step more than is wanted in the end. What it throws, and
/// numbers out of their range, end the step with `invalid_batch`.
using BatchSource =
    std::function<void(StepKind kind, std::uint32_t step, std::uint32_t replica, stages::Batch&)>;

}  // namespace troupe::actors
