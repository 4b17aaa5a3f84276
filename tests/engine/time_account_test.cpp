#include "troupe/engine/time_account.hpp"

#include <set>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"

namespace troupe {
namespace {

constexpr StageIndex middle{1};
constexpr MicrobatchIndex m0{0};
constexpr MicrobatchIndex m1{1};

TEST(TimeKeeper, BooksEveryNanosecondOnce) {
  TimeKeeper keeper{100};
  keeper.advance(WaitCause::next_step, 110);  // 10 until the step begins
  keeper.advance(WaitCause::none, 150);       // 40 with a pass enqueued ...
  keeper.add_pass(30, 0, 0);                  // ... of which the device worked 30
  keeper.advance(WaitCause::gradient, 175);   // 25 for the neighbour
  keeper.advance(WaitCause::optimizer, 180);  // 5
  const auto account = keeper.close();
  EXPECT_EQ(account[TimeCause::next_step], 10);
  EXPECT_EQ(account[TimeCause::computing], 30);
  EXPECT_EQ(account[TimeCause::dispatch], 10);
  EXPECT_EQ(account[TimeCause::gradient], 25);
  EXPECT_EQ(account[TimeCause::optimizer], 5);
  EXPECT_EQ(account.total_ns(), 80);
  EXPECT_EQ(account.begin_ns, 100);
  EXPECT_EQ(account.end_ns, 180);
}

TEST(TimeKeeper, BeginsAnAccountWhereTheOneBeforeEnds) {
  TimeKeeper keeper{100};
  keeper.advance(WaitCause::none, 150);
  keeper.add_pass(50, 0, 0);
  (void)keeper.close();
  EXPECT_EQ(keeper.close(), (TimeAccount{.ns = {}, .begin_ns = 150, .end_ns = 150}));
  keeper.advance(WaitCause::none, 170);
  const auto account = keeper.close();
  EXPECT_EQ(account.begin_ns, 150);
  EXPECT_EQ(account.end_ns, 170);
  EXPECT_EQ(account[TimeCause::dispatch], 20) << "the passes before count for their own account";
}

TEST(TimeKeeper, BooksNoMoreComputingThanThereWasTimeForIt) {
  TimeKeeper keeper{0};
  keeper.advance(WaitCause::none, 10);
  keeper.add_pass(12, 0, 0);  // The device's clock and the driver's are read apart.
  keeper.advance(WaitCause::send, 15);
  const auto account = keeper.close();
  EXPECT_EQ(account[TimeCause::computing], 10);
  EXPECT_EQ(account[TimeCause::dispatch], 0);
  EXPECT_EQ(account[TimeCause::send], 5);
}

/// A machine with a clock that the test winds, driven as an actor drives it.
struct ScriptedRank {
  StageMachine machine;
  TimeKeeper keeper{0};
  std::int64_t now_ns = 0;
  StageMachine::Commands commands{};

  void after(std::int64_t elapsed_ns, const StageEvent& event) {
    now_ns += elapsed_ns;
    keeper.advance(machine.waits_for(), now_ns);
    machine.on(event, commands);
  }
  void pass_after(std::int64_t elapsed_ns, const Action& action, std::int64_t device_ns) {
    after(elapsed_ns, PassFinished{action});
    keeper.add_pass(device_ns, 0, 0);
  }
};

/// The middle of three ranks, with one buffer of each kind for what leaves.
ScriptedRank middle_rank(const Schedule& schedule) {
  const MachineStage stage{.bounds = {.slots = 2,
                                      .activations_in = 2,
                                      .activations_out = 1,
                                      .gradients_in = 2,
                                      .gradients_out = 1},
                           .bucket_count = 1};
  return {.machine{schedule, RankIndex{1}, std::vector{stage}, SumRole::peer, 1}};
}

TEST(TimeKeeper, BooksEachDelayOfATrainingStepOnWhatCausedIt) {
  // 1F0 1F1 1B0 1B1. Every delay is a power of two: a sum says which delays it is made of.
  auto rank = middle_rank(make_1f1b(3, 2));
  rank.after(1, Started{});
  rank.after(2, ActivationArrived{middle, m0});
  rank.pass_after(4, {middle, Pass::forward, m0}, 3);
  rank.after(8, ActivationArrived{middle, m1});
  rank.after(16, ActivationSent{middle, m0});
  rank.pass_after(32, {middle, Pass::forward, m1}, 30);
  rank.after(64, GradientArrived{middle, m0});
  rank.pass_after(128, {middle, Pass::backward, m0}, 100);
  rank.after(256, GradientArrived{middle, m1});
  rank.after(512, GradientSent{middle, m0});
  rank.after(1024, BucketFilled{middle, 0});
  rank.pass_after(2048, {middle, Pass::backward, m1}, 3000);
  rank.after(4096, BucketReduced{middle, 0});
  rank.after(8192, ActivationSent{middle, m1});
  rank.after(16384, GradientSent{middle, m1});
  rank.after(32768, GradientsMeasured{middle});
  rank.after(65536, ClippingDecided{});
  rank.after(131072, OptimizerFinished{middle});
  ASSERT_TRUE(rank.machine.step_finished());
  const auto account = rank.keeper.close();
  const auto computing_ns = 3 + 30 + 100 + 3000;
  EXPECT_EQ(account[TimeCause::computing], computing_ns);
  EXPECT_EQ(account[TimeCause::dispatch], 4 + 32 + 128 + 1024 + 2048 - computing_ns);
  EXPECT_EQ(account[TimeCause::activation], 2 + 8);
  EXPECT_EQ(account[TimeCause::gradient], 64 + 256);
  EXPECT_EQ(account[TimeCause::send], 16 + 512 + 8192 + 16384);
  EXPECT_EQ(account[TimeCause::reduction], 4096);
  EXPECT_EQ(account[TimeCause::measuring], 32768);
  EXPECT_EQ(account[TimeCause::director], 65536);
  EXPECT_EQ(account[TimeCause::optimizer], 131072);
  EXPECT_EQ(account[TimeCause::next_step], 1);
  EXPECT_EQ(account.total_ns(), account.end_ns - account.begin_ns);
}

TEST(TimeKeeper, BooksTheEndOfAnEvaluationStepOnTheLastSend) {
  auto rank = middle_rank(make_forward_only(make_1f1b(3, 1)));
  rank.after(1, Started{});
  rank.after(2, ActivationArrived{middle, m0});
  rank.pass_after(4, {middle, Pass::forward, m0}, 3);
  rank.after(8, ActivationSent{middle, m0});
  ASSERT_TRUE(rank.machine.step_finished());
  const auto account = rank.keeper.close();
  EXPECT_EQ(account[TimeCause::next_step], 1);
  EXPECT_EQ(account[TimeCause::activation], 2);
  EXPECT_EQ(account[TimeCause::computing], 3);
  EXPECT_EQ(account[TimeCause::dispatch], 1);
  EXPECT_EQ(account[TimeCause::send], 8);
  EXPECT_EQ(account.total_ns(), 15);
}

TEST(TimeCause, EveryCauseHasItsOwnName) {
  EXPECT_EQ(to_string(TimeCause::computing), "computing");
  EXPECT_EQ(to_string(TimeCause::next_step), "next_step");
  std::set<std::string_view> names;
  for (std::size_t c = 0; c < time_cause_count; ++c) {
    names.insert(to_string(static_cast<TimeCause>(c)));
  }
  EXPECT_EQ(names.size(), time_cause_count);
}

}  // namespace
}  // namespace troupe
