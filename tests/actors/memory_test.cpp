// A run allocates its tensors when it starts: in the steady state nothing as large as a page is
// allocated, and the heap does not grow. What comes and goes are messages, and the report of a step
// that the caller takes, whose traces are one block per rank: 32 bytes per pass, reduction and
// update, less than a page for the programs of this test.

#include <atomic>
#include <cstdlib>
#include <iostream>
#include <new>

#include <gtest/gtest.h>
#include <malloc.h>

#include "troupe/actors/trainer.hpp"

namespace {

std::atomic<bool> is_counting = false;
std::atomic<std::uint64_t> large_count = 0;
std::atomic<std::uint64_t> small_count = 0;
constexpr std::size_t page_bytes = 4096;

void count(std::size_t size_bytes) {
  if (!is_counting.load(std::memory_order_relaxed)) return;
  (size_bytes >= page_bytes ? large_count : small_count).fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

// The program's own allocation functions, so that every allocation in C++ is seen.
void* operator new(std::size_t size_bytes) {
  count(size_bytes);
  if (auto* memory = std::malloc(size_bytes)) return memory;
  throw std::bad_alloc{};
}
void* operator new(std::size_t size_bytes, std::align_val_t alignment) {
  count(size_bytes);
  const auto boundary = static_cast<std::size_t>(alignment);
  if (auto* memory =
          std::aligned_alloc(boundary, (size_bytes + boundary - 1) / boundary * boundary)) {
    return memory;
  }
  throw std::bad_alloc{};
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

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
  is_counting = true;
  for (std::size_t step = 0; step < step_count; ++step) train_and_evaluate();
  is_counting = false;
  const auto heap_after = mallinfo2().uordblks;
  EXPECT_EQ(large_count, 0U);
  EXPECT_LT(heap_after, heap_before + 64 * 1024) << "in " << step_count << " steps";
  const auto action_count = (plan->training.action_count() + plan->evaluation.action_count())
                            * config.parallel.data * step_count;
  const auto per_action = static_cast<double>(small_count) / static_cast<double>(action_count);
  std::cout << "small allocations per pass, a step's others included: " << per_action << '\n';
  EXPECT_LT(per_action, 1.5 * 3.9)
      << "3.5 to 3.9 were measured: a message per pass, send and receive";
}

}  // namespace
}  // namespace troupe::actors
