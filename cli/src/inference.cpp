#include "inference.hpp"

namespace troupe::cli {

Expected<std::unique_ptr<stages::TransformerStage>> make_inference_stage(
    stages::Device& device, stages::Stream& stream, const ModelSpec& model,
    std::uint32_t microbatch_size) {
  return stages::make_transformer_stage(device, stream,
                                        {.model = model,
                                         .spec = {.layer_begin = 0,
                                                  .layer_end = model.layers,
                                                  .has_embedding = true,
                                                  .has_head = true},
                                         .bounds = {.slots = 1, .trains = false},
                                         .microbatch_count = 1,
                                         .microbatch_size = microbatch_size,
                                         .train = {}});
}

void infer(stages::Stage& stage, stages::Stream& stream, const stages::Batch& batch) {
  const Action forward{StageIndex{0}, Pass::forward, MicrobatchIndex{0}};
  stage.begin_step({.step = 1, .kind = StepKind::evaluation, .batch = &batch});
  stage.enqueue(forward, [](Errc, stages::DeviceSpan) {});
  stream.synchronize();
  stage.finish(forward);
}

}  // namespace troupe::cli
