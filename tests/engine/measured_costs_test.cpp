#include "troupe/engine/measured_costs.hpp"

#include <gtest/gtest.h>

#include "troupe/engine/time_account.hpp"

namespace troupe {
namespace {

constexpr StageIndex first{0};
constexpr MicrobatchIndex m0{0};

TEST(MeasuredCosts, AreTheMeansOfWhatWasSeen) {
  MeasuredCosts measured{1};
  EXPECT_FALSE(measured.is_complete());
  measured.add({first, Pass::forward, m0}, 10);
  measured.add({first, Pass::forward, m0}, 20);
  EXPECT_FALSE(measured.is_complete());
  measured.add({first, Pass::backward, m0}, 31);
  ASSERT_TRUE(measured.is_complete());
  EXPECT_EQ(measured.costs().stages.at(0), (PassCosts{15, 31, 15, 16}));
}

TEST(MeasuredCosts, SumThePartsOfABackwardPassThatWasNeverWhole) {
  MeasuredCosts measured{1};
  measured.add({first, Pass::forward, m0}, 10);
  measured.add({first, Pass::backward_input, m0}, 11);
  EXPECT_FALSE(measured.is_complete());
  measured.add({first, Pass::backward_weight, m0}, 7);
  ASSERT_TRUE(measured.is_complete());
  EXPECT_EQ(measured.costs().stages.at(0), (PassCosts{10, 18, 11, 7}));
}

TEST(MeasuredCosts, ForgetWhatHasFaded) {
  MeasuredCosts measured{1};
  measured.add({first, Pass::forward, m0}, 100);
  measured.add({first, Pass::backward, m0}, 100);
  measured.fade(0.5);
  measured.add({first, Pass::forward, m0}, 400);
  EXPECT_EQ(measured.costs().stages.at(0).forward_ns, 300) << "(100 / 2 + 400) / 1.5";
  EXPECT_EQ(measured.costs().stages.at(0).backward_ns, 100) << "a faded mean is the same mean";
}

TEST(TimeKeeper, BooksEveryNanosecondOnce) {
  TimeKeeper keeper{100};
  keeper.advance(WaitCause::next_step, 110);  // 10 until the step begins
  keeper.advance(WaitCause::none, 150);       // 40 with a pass enqueued ...
  keeper.add_computing(30);                   // ... of which the device worked 30
  keeper.advance(WaitCause::gradient, 175);   // 25 for the neighbour
  keeper.advance(WaitCause::optimizer, 180);  // 5
  const auto account = keeper.close();
  EXPECT_EQ(account[TimeCause::next_step], 10);
  EXPECT_EQ(account[TimeCause::computing], 30);
  EXPECT_EQ(account[TimeCause::dispatch], 10);
  EXPECT_EQ(account[TimeCause::gradient], 25);
  EXPECT_EQ(account[TimeCause::optimizer], 5);
  EXPECT_EQ(account.total_ns(), 80);
  EXPECT_EQ(keeper.close().total_ns(), 0) << "a new account begins empty";
}

TEST(TimeCause, EveryCauseHasItsOwnName) {
  EXPECT_EQ(to_string(TimeCause::computing), "computing");
  EXPECT_EQ(to_string(TimeCause::next_step), "next_step");
}

}  // namespace
}  // namespace troupe
