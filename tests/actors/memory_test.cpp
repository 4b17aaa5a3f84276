// A run allocates its tensors when it starts: in the steady state nothing as large as a page is
// allocated, and the heap does not grow. What comes and goes are messages, and the report of a step
// that the caller takes, whose traces are one block per rank: 32 bytes per pass, reduction and
// update, less than a page for the programs of this test.

#include <iostream>

#include <gtest/gtest.h>
#include <malloc.h>

#include "troupe/actors/trainer.hpp"

#include "../stages/allocations.hpp"

namespace troupe::actors {
namespace {

TEST(Memory, TheSteadyStateAllocatesNothingLargeAndDoesNotGrow) {
  Config config;
  config.model = {.layers = 4, .heads = 4, .hidden = 64, .sequence = 32, .vocabulary = 256};
  config.parallel = {.data = 2, .tensor = 1, .pipeline = 2};
  config.schedule.microbatches = 32;
  config.schedule.microbatch_size = 2;
  const auto plan = make_plan(config);
  ASSERT_TRUE(plan.has_value()) << plan.error().context;
  auto trainer =
      Trainer::make(*plan, [](StepKind, std::uint32_t, std::uint32_t, stages::Batch&) {});
  const auto train_and_evaluate = [&] {
    ASSERT_TRUE((*trainer)->train_step().has_value());
    ASSERT_TRUE((*trainer)->evaluate_step(1).has_value());
  };
  for (int step = 0; step < 5; ++step) train_and_evaluate();
  constexpr std::size_t step_count = 20;
  const auto heap_before = mallinfo2().uordblks;
  watch_allocations();
  for (std::size_t step = 0; step < step_count; ++step) train_and_evaluate();
  const auto allocations = watched_allocations();
  const auto heap_after = mallinfo2().uordblks;
  EXPECT_EQ(allocations.large_count, 0U);
  EXPECT_LT(heap_after, heap_before + 64 * 1024) << "in " << step_count << " steps";
  const auto action_count = (plan->training.action_count() + plan->evaluation.action_count())
                            * config.parallel.data * step_count;
  const auto per_action =
      static_cast<double>(allocations.small_count) / static_cast<double>(action_count);
  std::cout << "small allocations per pass, a step's others included: " << per_action << '\n';
  EXPECT_LT(per_action, 1.5 * 3.9)
      << "3.5 to 3.9 were measured: a message per pass, send and receive";
}

}  // namespace
}  // namespace troupe::actors
