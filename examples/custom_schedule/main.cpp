// Defines a pipeline schedule that troupe does not know, looks at it, and trains with it: the
// losses are those of 1F1B, digit for digit.
//
//   custom_schedule          shows the schedule, and trains with both
//   custom_schedule csv      prints it as a file for `troupe schedule` and `troupe train`
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <vector>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/draw.hpp"
#include "troupe/engine/schedule_generators.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"
#include "troupe/engine/simulate.hpp"

namespace {

/// 1F1B in pairs: forward passes of two microbatches, then backward passes of two. A rank turns
/// round half as often, and holds up to twice as many microbatches.
troupe::Schedule make_2f2b(std::uint32_t rank_count, std::uint32_t microbatch_count) {
  troupe::Schedule schedule;
  schedule.name = "2f2b";
  schedule.microbatch_count = microbatch_count;
  schedule.rank_of_stage = troupe::make_stage_map(troupe::StageMap::looped, rank_count, 1);
  for (std::uint32_t rank = 0; rank < rank_count; ++rank) {
    std::vector<troupe::Action> row;
    std::uint32_t forward = 0;
    std::uint32_t backward = 0;
    const auto add_pair = [&](troupe::Pass pass, std::uint32_t& next) {
      for (int i = 0; i < 2 && next < microbatch_count; ++i) {
        row.push_back({troupe::StageIndex{rank}, pass, troupe::MicrobatchIndex{next++}});
      }
    };
    for (auto pair = rank + 1; pair < rank_count; ++pair) add_pair(troupe::Pass::forward, forward);
    while (backward < microbatch_count) {
      add_pair(troupe::Pass::forward, forward);
      add_pair(troupe::Pass::backward, backward);
    }
    schedule.ranks.push_back(row);
  }
  return schedule;
}

constexpr std::string_view text =
    "All the world's a stage, and all the men and women merely players. ";

/// Each sequence reads on from its own place in the sentence, which has no end.
void fill(troupe::StepKind, std::uint32_t step, std::uint32_t, troupe::stages::Batch& batch) {
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    const std::size_t place = step + i + i / batch.sequence * 7;
    batch.tokens[i] = static_cast<unsigned char>(text[place % text.size()]);
    batch.targets[i] = static_cast<unsigned char>(text[(place + 1) % text.size()]);
  }
}

/// The losses of ten steps.
troupe::Expected<std::vector<double>> train(const troupe::Plan& plan) {
  const auto trainer = troupe::actors::Trainer::make(plan, fill);
  if (!trainer) return trainer.error();
  std::vector<double> losses;
  for (int step = 0; step < 10; ++step) {
    const auto report = (*trainer)->train_step();
    if (!report) return report.error();
    losses.push_back(report->loss);
  }
  return losses;
}

int fail(const troupe::Error& error) {
  std::fprintf(stderr, "custom_schedule: %s\n", error.context.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  troupe::Config config;
  config.model = {.layers = 3, .heads = 2, .hidden = 32, .sequence = 32};
  config.parallel = {.data = 1, .tensor = 1, .pipeline = 3};
  config.schedule = {.name = "1f1b", .microbatches = 6, .microbatch_size = 2};
  config.train = {.steps = 10, .learning_rate = 1e-2, .warmup_steps = 2};

  const auto schedule = make_2f2b(config.parallel.pipeline, config.schedule.microbatches);
  if (const auto valid = troupe::validate(schedule); !valid) return fail(valid.error());
  if (argc > 1 && argv[1] == std::string_view{"csv"}) {
    std::fputs(troupe::to_csv(schedule).c_str(), stdout);
    return 0;
  }
  const auto timeline = troupe::simulate(schedule, {});
  std::fputs(draw_text(make_picture(schedule.name, schedule, timeline)).c_str(), stdout);
  std::printf("bubble %.1f %% of the time\n\n", 100 * timeline.bubble_of_total());

  const auto plan = troupe::make_plan(config, schedule);
  if (!plan) return fail(plan.error());
  const auto losses = train(*plan);
  if (!losses) return fail(losses.error());
  const auto known_plan = troupe::make_plan(config);
  if (!known_plan) return fail(known_plan.error());
  const auto known_losses = train(*known_plan);
  if (!known_losses) return fail(known_losses.error());
  for (std::size_t step = 0; step < losses->size(); ++step) {
    std::printf("step %2zu  2f2b %.6f  1f1b %.6f\n", step + 1, (*losses)[step],
                (*known_losses)[step]);
  }
  if (*losses == *known_losses) return 0;
  return fail({troupe::Errc::internal, "the losses differ"});
}
