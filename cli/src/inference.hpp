// cli/src/inference.hpp -- a whole model on one stage, to ask and not to train.
#pragma once

#include <cstdint>
#include <memory>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/model_spec.hpp"
#include "troupe/stages/device.hpp"
#include "troupe/stages/transformer_stage.hpp"

namespace troupe::cli {

/// Builds a stage that holds all of `model` and takes a microbatch of `microbatch_size` sequences.
/// Device and stream outlive it.
/// @returns `out_of_memory` if the device refuses.
[[nodiscard]] Expected<std::unique_ptr<stages::TransformerStage>> make_inference_stage(
    stages::Device& device, stages::Stream& stream, const ModelSpec& model,
    std::uint32_t microbatch_size);

/// Passes `batch`, one microbatch, through `stage`, whose logits may then be read. Blocks until
/// `stream`, the stage's, is empty.
void infer(stages::Stage& stage, stages::Stream& stream, const stages::Batch& batch);

}  // namespace troupe::cli
