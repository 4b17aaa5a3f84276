#include "calibration.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "troupe/stages/gpt2_stage.hpp"

namespace troupe::cli {

namespace {

constexpr int round_count = 4;  // The first is a warm-up in which matrix products are compiled.

/// Keeps the shortest time of the device.
class Shortest {
public:
  void add(const stages::DeviceSpan& span) {
    const auto seconds = static_cast<double>(span.end_ns - span.begin_ns) * 1e-9;
    seconds_ = std::min(seconds_, std::max(seconds, 1e-9));
  }
  [[nodiscard]] double seconds() const { return seconds_; }

private:
  double seconds_ = std::numeric_limits<double>::max();
};

}  // namespace

Expected<ComputeRates> measure_rates(stages::Device& device, const Plan& plan) {
  const auto rows = plan.config.schedule.microbatch_size;
  auto model = plan.config.model;
  model.layers = 1;
  const StageSpec spec{.layer_begin = 0, .layer_end = 1, .has_embedding = true, .has_head = true};
  const auto stream = device.make_stream("calibrate", plan.config.run.threads_per_stage);
  auto stage = stages::make_gpt2_stage(device, *stream,
                                       {.model = model,
                                        .spec = spec,
                                        .bounds = {.slots = 1},
                                        .microbatch_count = 1,
                                        .microbatch_size = rows,
                                        .train = plan.config.train});
  if (!stage) return stage.error();

  stages::Batch batch{.microbatch_count = 1,
                      .microbatch_size = rows,
                      .sequence = model.sequence,
                      .tokens = std::vector<std::int32_t>(std::size_t{rows} * model.sequence),
                      .targets = std::vector<std::int32_t>(std::size_t{rows} * model.sequence)};
  Shortest forward;
  Shortest backward;
  Shortest update;
  const auto into = [](Shortest& shortest) {
    return [&shortest](Errc, stages::DeviceSpan span) { shortest.add(span); };
  };
  for (int round = 1; round <= round_count; ++round) {
    (*stage)->begin_step({.step = 1,
                          .kind = StepKind::training,
                          .batch = &batch,
                          .token_count = rows * model.sequence});
    (*stage)->enqueue({StageIndex{0}, Pass::forward, MicrobatchIndex{0}}, into(forward));
    (*stage)->enqueue({StageIndex{0}, Pass::backward, MicrobatchIndex{0}}, into(backward));
    (*stage)->optimize({.step = 1, .learning_rate = 0.0F}, into(update));
    stream->synchronize();
  }
  const auto flops = flops_of(model, spec, rows);
  double elements = 0.0;
  for (const auto& parameter : (*stage)->parameters()) {
    elements += static_cast<double>(parameter.values.size());
  }
  return ComputeRates{.forward_flops_per_second = flops.forward / forward.seconds(),
                      .backward_flops_per_second =
                          (flops.backward_input + flops.backward_weight) / backward.seconds(),
                      .updates_per_second = elements / update.seconds()};
}

}  // namespace troupe::cli
