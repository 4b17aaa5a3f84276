#include "troupe/engine/measured_costs.hpp"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace troupe
