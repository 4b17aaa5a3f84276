// In the steady state a linked member allocates nothing: what it posts to links and queues fits
// into places that exist.

#include "../stages/allocations.hpp"
#include "seeded_group_world.hpp"

namespace troupe::transport {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CollectiveConformance);

class LinkedGroupMemory : public testing::TestWithParam<WireFormat> {};

TEST_P(LinkedGroupMemory, OperationsOfTheSteadyStateAllocateNothing) {
  constexpr std::uint32_t size = 3;
  SeededGroupWorld world{1};
  // Few transfers at once, so that the links have soon seen as many pending as they ever will.
  auto members = make_members(size, {.segment_bytes = 4096, .segments_in_flight = 1}, GetParam(),
                              [&](auto, auto) { return world.network().make_link(); });
  auto values = one_each(size, 40'000, random_floats);
  const auto run_all_operations = [&] {
    std::uint32_t left = 5 * size;
    const auto done = [&left](Errc) { --left; };
    for (std::uint32_t r = 0; r < size; ++r) {
      auto& queue = world.queue(r);
      const auto array = view_of(values[r]);
      members[r]->all_reduce(queue, array, done);
      members[r]->reduce_scatter(queue, array, done);
      members[r]->all_gather(queue, array, done);
      members[r]->broadcast(queue, array, 1, done);
      members[r]->barrier(queue, done);
    }
    world.progress_until([&] { return left == 0; });
  };
  for (int i = 0; i < 50; ++i) run_all_operations();
  watch_allocations();
  for (int i = 0; i < 20; ++i) run_all_operations();
  const auto watched = watched_allocations();
  EXPECT_EQ(watched.small_count, 0U);
  EXPECT_EQ(watched.large_count, 0U);
}

INSTANTIATE_TEST_SUITE_P(Wires, LinkedGroupMemory,
                         testing::Values(WireFormat::fp32, WireFormat::bf16), [](const auto& test) {
                           return std::string{
                               wire_format_names[static_cast<std::size_t>(test.param)]};
                         });

}  // namespace troupe::transport
