// bench/empty_stages.hpp -- grids whose stages compute nothing, to see what the runtime costs.
#pragma once

#include <cstdint>
#include <memory>

#include "troupe/actors/local_ranks.hpp"
#include "troupe/stages/counting_stage.hpp"

namespace troupe {

/// One stage per pipeline rank, whose messages are one token of 16 floats.
inline Config empty_config(const GridExtent& parallel, std::uint32_t microbatches) {
  Config config;
  config.model = {.layers = parallel.pipeline,
                  .heads = 1,
                  .hidden = 16,
                  .sequence = 1,
                  .vocabulary = 256,
                  .tie_embeddings = false};
  config.parallel = parallel;
  config.schedule.microbatches = microbatches;
  config.schedule.microbatch_size = 1;
  return config;
}

inline stages::CountingProps empty_stage_props(const Plan& plan, const StagePlan& stage,
                                               const stages::StagePeers& peers) {
  return {.stage = stage.stage,
          .stage_count = plan.training.stages_per_copy(),
          .bounds = stage.bounds,
          .microbatch_count = plan.training.microbatch_count,
          .holders = peers.holders,
          .has_server = plan.has_servers(),
          .staleness = plan.config.train.staleness};
}

inline Expected<std::unique_ptr<stages::Stage>> make_empty_stage(const Plan& plan,
                                                                 const StagePlan& stage,
                                                                 stages::Device& device,
                                                                 stages::Stream& stream,
                                                                 const stages::StagePeers& peers) {
  return stages::make_counting_stage(device, stream, empty_stage_props(plan, stage, peers));
}

/// Leaves the batch as it is: zeros.
inline void empty_batch(StepKind /*kind*/, std::uint32_t /*step*/, std::uint32_t /*replica*/,
                        stages::Batch& /*batch*/) {}

}  // namespace troupe
