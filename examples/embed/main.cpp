// Trains a tiny GPT on one sentence, as two pipeline stages in this process, until it knows it.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string_view>

#include "troupe/actors/trainer.hpp"

namespace {

constexpr std::string_view text =
    "All the world's a stage, and all the men and women merely players. ";
constexpr double known_loss = 0.2;  // In nats; before training it is ln 256 = 5.5.

/// Each sequence reads on from its own place in the sentence, which has no end: after the last
/// letter comes the first.
void fill(troupe::StepKind, std::uint32_t step, std::uint32_t, troupe::stages::Batch& batch) {
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    const std::size_t place = step + i + i / batch.sequence * 7;
    batch.tokens[i] = static_cast<unsigned char>(text[place % text.size()]);
    batch.targets[i] = static_cast<unsigned char>(text[(place + 1) % text.size()]);
  }
}

int fail(const troupe::Error& error) {
  std::fprintf(stderr, "embed: %s\n", error.context.c_str());
  return 1;
}

}  // namespace

int main() {
  troupe::Config config;
  config.model = {.layers = 2, .heads = 2, .hidden = 32, .sequence = 32};
  config.parallel = {.data = 1, .tensor = 1, .pipeline = 2};
  config.schedule = {.name = "1f1b", .microbatches = 4, .microbatch_size = 4};
  config.train = {.steps = 300, .learning_rate = 1e-2, .warmup_steps = 10};

  const auto plan = troupe::make_plan(config);
  if (!plan) return fail(plan.error());
  const auto trainer = troupe::actors::Trainer::make(*plan, fill);
  if (!trainer) return fail(trainer.error());

  for (std::uint32_t step = 1; step <= config.train.steps; ++step) {
    const auto report = (*trainer)->train_step();
    if (!report) return fail(report.error());
    std::printf("step %3u  loss %.4f\n", report->step, report->loss);
    if (report->loss < known_loss) return 0;
  }
  return fail({troupe::Errc::internal, "the model has not learned the sentence"});
}
