// Runs that keep activations in host memory, with real actors and threads, on a CPU that passes for
// a device with memory of its own.

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/schedule_generators.hpp"

#include "device_apart.hpp"
#include "tiny_training.hpp"

namespace troupe::actors {
namespace {

Config config_of(Offload offload) {
  auto config = tiny_config(true);
  config.train.steps = 3;
  config.train.offload = offload;
  return config;
}

Outcome train_apart(const Plan& plan, TakenBytes& taken) {
  RankParts parts;
  parts.make_device = [&taken] { return std::make_unique<DeviceApart>(taken); };
  auto trainer = Trainer::make(plan, source_of(plan.config), parts);
  EXPECT_TRUE(trainer.has_value());
  return train(**trainer);
}

const Outcome& serial() {
  static const auto outcome = train(config_of(Offload::none));
  return outcome;
}

bool offloads(const Plan& plan) {
  return std::ranges::any_of(plan.stages,
                             [](const StagePlan& stage) { return stage.bounds.offloads; });
}

class OffloadedActivations : public testing::TestWithParam<std::string_view> {};

TEST_P(OffloadedActivations, EqualTheSerialRunAndTakeWhatThePlanAnnounces) {
  constexpr std::array modes{std::pair{Recompute::none, Policy::in_order},
                             std::pair{Recompute::selective, Policy::in_order},
                             std::pair{Recompute::full, Policy::in_order},
                             std::pair{Recompute::none, Policy::backward_first}};
  for (const auto& [recompute, policy] : modes) {
    SCOPED_TRACE(testing::Message() << "recompute " << static_cast<int>(recompute) << ", "
                                    << policy_names[static_cast<std::size_t>(policy)]);
    auto config = config_of(Offload::activations);
    config.train.recompute = recompute;
    config.schedule.policy = policy;
    const auto plan = plan_of(config, GetParam(), 3);
    ASSERT_TRUE(plan) << plan.error().context;
    EXPECT_TRUE(offloads(*plan));
    TakenBytes announced;
    for (std::uint32_t r = 0; r < 3; ++r) {
      const auto for_host = plan->host_bytes_of(RankIndex{r});
      announced[MemorySpace::host_pinned] += for_host;
      announced[MemorySpace::device] += plan->bytes_of(RankIndex{r}) - for_host;
    }
    TakenBytes taken;
    EXPECT_TRUE(train_apart(*plan, taken) == serial());
    EXPECT_EQ(taken, announced);
  }
}

/// Without copies of the model, which sum up their gradients in memory of the host.
std::vector<std::string_view> schedules_of_one_copy() {
  std::vector<std::string_view> names(schedule_names().begin(), schedule_names().end());
  std::erase(names, "dualpipe");
  return names;
}

INSTANTIATE_TEST_SUITE_P(Schedules, OffloadedActivations,
                         testing::ValuesIn(schedules_of_one_copy()), [](const auto& parameter) {
                           std::string name{parameter.param};
                           std::erase(name, '-');
                           return name;
                         });

TEST(Offload, IsRefusedWhereTheDeviceComputesInHostMemory) {
  const auto plan = make_plan(config_of(Offload::activations)).value();
  const auto refused = Trainer::make(plan, source_of(plan.config));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, Errc::invalid_config);
  EXPECT_TRUE(refused.error().context.starts_with("train.offload: "));
}

}  // namespace
}  // namespace troupe::actors
