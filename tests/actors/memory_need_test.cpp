#include "troupe/actors/memory_need.hpp"

#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/lanes.hpp"
#include "troupe/transport/linked_group.hpp"

namespace troupe::actors {
namespace {

constexpr std::uint64_t plenty = std::uint64_t{1} << 40U;
/// Of a member that sums with one other, in another process.
constexpr std::uint64_t staged = transport::linked_staging_bytes(2, {});

Plan two_by_two() {
  Config config;
  config.model = {.layers = 4, .heads = 2, .hidden = 16, .sequence = 8, .vocabulary = 256};
  config.parallel = {.data = 2, .tensor = 1, .pipeline = 2};
  return make_plan(config).value();
}

/// What so many ranks of each pipeline rank need, and the batches of so many replicas.
std::uint64_t ranks_and_batches(const Plan& plan, std::uint64_t count_0, std::uint64_t count_1,
                                std::uint64_t replica_count) {
  return count_0 * plan.bytes_of(RankIndex{0}) + count_1 * plan.bytes_of(RankIndex{1})
         + replica_count * 2 * 8 * plan.tokens_per_step() / 2;
}

TEST(MemoryNeed, OfAProcessIsThatOfItsRanksTheirBatchesAndTheRuntime) {
  const auto plan = two_by_two();
  const std::vector<std::uint32_t> all{0, 1, 2, 3};
  EXPECT_EQ(process_bytes(plan), process_bytes(plan, all));
  EXPECT_EQ(process_bytes(plan, all), runtime_bytes(plan, 4) + ranks_and_batches(plan, 2, 2, 2));
  const std::vector<std::uint32_t> second_replica{1, 3};
  EXPECT_EQ(process_bytes(plan, second_replica),
            runtime_bytes(plan, 2) + 2 * staged + ranks_and_batches(plan, 1, 1, 1));
}

TEST(MemoryNeed, OfSumsIsThatOfGroupsWithMembersElsewhere) {
  auto config = two_by_two().config;
  const auto bytes = [&](const std::vector<std::uint32_t>& ranks) {
    return staging_bytes(make_plan(config).value(), ranks);
  };
  // Ranks 0 and 1 hold the same parameters, and so do 2 and 3.
  EXPECT_EQ(bytes({0, 1, 2, 3}), 0U);
  EXPECT_EQ(bytes({0, 1}), 0U);
  EXPECT_EQ(bytes({0, 2}), 2 * staged);
  EXPECT_EQ(bytes({0, 1, 2}), staged);
  config.train.gradient_wire = WireFormat::bf16;
  EXPECT_EQ(bytes({3}), transport::linked_staging_bytes(2, {}, WireFormat::bf16));
  config.parallel = {.data = 1, .tensor = 2, .pipeline = 2};
  EXPECT_EQ(bytes({0, 1}), 0U);
  EXPECT_EQ(bytes({1, 2}), 2 * staged) << "shards always exchange fp32";
  config.parallel = {.data = 1, .tensor = 1, .pipeline = 2};
  config.train.gradient_wire = WireFormat::fp32;
  EXPECT_EQ(bytes({0}), 0U);
  config.schedule.name = "dualpipe";
  config.schedule.microbatches = 4;
  EXPECT_EQ(bytes({0}), 2 * staged) << "each rank has half of both copies";
}

TEST(MemoryNeed, OfSumsIsThatOfTheShardsOfServersToo) {
  auto config = two_by_two().config;
  config.parallel = {.data = 2, .tensor = 2, .pipeline = 1};
  config.train.synchronization = Synchronization::parameter_server;
  const auto plan = make_plan(config).value();
  const auto with_replicas = transport::linked_staging_bytes(3, {});
  // Ranks 4 and 5 serve those of two replicas.
  EXPECT_EQ(staging_bytes(plan, std::vector<std::uint32_t>{4, 5}), 2 * with_replicas);
  EXPECT_EQ(staging_bytes(plan, std::vector<std::uint32_t>{4}), with_replicas + staged);
}

TEST(MemoryNeed, OfServersIsWhereTheyAre) {
  auto config = two_by_two().config;
  config.train.synchronization = Synchronization::parameter_server;
  const auto plan = make_plan(config).value();
  EXPECT_EQ(process_bytes(plan), runtime_bytes(plan, 6) + ranks_and_batches(plan, 2, 2, 2)
                                     + plan.server_bytes_of(RankIndex{0})
                                     + plan.server_bytes_of(RankIndex{1}));
  const std::vector<std::uint32_t> with_server{0, 4};
  EXPECT_EQ(process_bytes(plan, with_server),
            runtime_bytes(plan, 2) + 2 * transport::linked_staging_bytes(3, {})
                + ranks_and_batches(plan, 1, 0, 1) + plan.server_bytes_of(RankIndex{0}));
  config.train.staleness = 2;
  EXPECT_EQ(batch_bytes(make_plan(config).value(), 2), 2 * batch_bytes(plan, 2));
}

TEST(MemoryNeed, OfTheRuntimeGrowsWithRanksThreadsAndTheLargestParameter) {
  constexpr std::uint64_t thread_bytes = std::uint64_t{1} << 20U;
  const auto plan = two_by_two();
  EXPECT_EQ(runtime_bytes(plan, 3) - runtime_bytes(plan, 2), thread_bytes);
  EXPECT_GT(runtime_bytes(plan, 3), runtime_bytes(plan, 4)) << "alone a process needs no fabric";

  auto wider = plan.config;
  wider.run.threads_per_stage = 2;
  wider.model.vocabulary += 100;
  EXPECT_EQ(runtime_bytes(make_plan(wider).value(), 4) - runtime_bytes(plan, 4),
            4 * thread_bytes + 100 * wider.model.hidden * sizeof(float));
}

TEST(MemoryNeed, FitsToTheByte) {
  const auto plan = two_by_two();
  const auto one_node = place_ranks(plan, 1);
  const auto needed = runtime_bytes(plan, 4) + ranks_and_batches(plan, 2, 2, 2);
  EXPECT_TRUE(check_memory(plan, one_node, std::vector<NodeMemory>{{"vm", needed}}));
  EXPECT_FALSE(check_memory(plan, one_node, std::vector<NodeMemory>{{"vm", needed - 1}}));
}

TEST(MemoryNeed, NamesRankHostBothNumbersAndWhatToDo) {
  const auto plan = two_by_two();
  const auto fits = check_memory(plan, place_ranks(plan, 1),
                                 std::vector<NodeMemory>{{"vm", std::uint64_t{3} << 19U}});
  ASSERT_FALSE(fits);
  EXPECT_EQ(fits.error().code, Errc::out_of_memory);
  const auto largest = plan.bytes_of(RankIndex{0}) > plan.bytes_of(RankIndex{1}) ? 0U : 1U;
  EXPECT_EQ(fits.error().context,
            "the run needs " + format_bytes(process_bytes(plan)) + " of memory on vm, "
                + format_bytes(plan.bytes_of(RankIndex{largest})) + " of it for pipeline rank "
                + std::to_string(largest)
                + ", and 1.50 MiB are available there; make model.hidden, "
                  "schedule.microbatch_size or schedule.microbatches smaller, or spread the ranks "
                  "over more machines");
}

TEST(MemoryNeed, OfTheNodesOfOneHostIsOne) {
  const auto plan = two_by_two();
  const auto node_of_rank = place_ranks(plan, 4);
  const auto with = [&](std::uint64_t bytes) {
    const std::vector<NodeMemory> nodes{
        {"a", bytes + 1}, {"a", bytes}, {"b", plenty}, {"a", bytes + 2}};
    return check_memory(plan, node_of_rank, nodes);
  };
  // Nodes 0 and 1 hold pipeline rank 0, nodes 2 and 3 rank 1.
  const auto shared = 3 * (runtime_bytes(plan, 1) + staged) + ranks_and_batches(plan, 2, 1, 3);
  EXPECT_TRUE(with(shared));
  const auto fits = with(shared - 1);
  ASSERT_FALSE(fits) << "each alone has room, and the least of what they see counts";
  EXPECT_TRUE(fits.error().context.starts_with("nodes 0, 1 and 3 need ")) << fits.error().context;
  EXPECT_NE(fits.error().context.find(" of memory on a, "), std::string::npos);
}

TEST(MemoryNeed, IsNotComparedWithWhatIsUnknown) {
  const auto plan = two_by_two();
  const auto node_of_rank = place_ranks(plan, 2);
  EXPECT_TRUE(check_memory(plan, node_of_rank, std::vector<NodeMemory>{{"a", 0}, {"b", plenty}}));
  const auto fits =
      check_memory(plan, node_of_rank, std::vector<NodeMemory>{{"a", 0}, {"b", 1024}});
  ASSERT_FALSE(fits);
  EXPECT_TRUE(fits.error().context.starts_with("node 1 needs ")) << fits.error().context;
}

TEST(MemoryNeed, OfProcessesIsThatOfTheLargest) {
  auto config = two_by_two().config;
  config.parallel = {.data = 1, .tensor = 1, .pipeline = 2};
  config.schedule.layers_per_stage = {1, 3};
  const auto plan = make_plan(config).value();
  const auto last = process_bytes(plan, std::vector<std::uint32_t>{1});
  EXPECT_GT(last, process_bytes(plan, std::vector<std::uint32_t>{0}));
  EXPECT_EQ(largest_process_bytes(plan, 2), last);
  EXPECT_EQ(largest_process_bytes(plan, 1), process_bytes(plan));
}

}  // namespace
}  // namespace troupe::actors
