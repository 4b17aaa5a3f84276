#include "troupe/engine/loss_scaler.hpp"

#include <limits>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace troupe {
namespace {

LossScaler scaler_of(double scale, std::uint32_t interval) {
  TrainConfig train;
  train.precision = Precision::fp16;
  train.loss_scale = scale;
  train.loss_scale_interval = interval;
  return LossScaler{train};
}

/// The scale before and after each step: `u` has an update, `o` overflows.
std::vector<double> scales_of(LossScaler scaler, std::string_view steps) {
  std::vector<double> scales{scaler.scale()};
  for (const char step : steps) {
    if (step == 'u') {
      scaler.on_update();
    } else {
      EXPECT_TRUE(scaler.on_overflow());
    }
    scales.push_back(scaler.scale());
  }
  return scales;
}

TEST(LossScaler, DoublesAfterSoManyUpdatesInARowAndHalvesOnOverflow) {
  struct Case {
    double scale;
    std::uint32_t interval;
    std::string_view steps;
    std::vector<double> expected;
  };
  const std::vector<Case> cases{
      {65536, 2000, "", {65536}},
      {65536, 2000, "uuu", {65536, 65536, 65536, 65536}},
      {8, 1, "uu", {8, 16, 32}},
      {8, 3, "uuuuuuu", {8, 8, 8, 16, 16, 16, 32, 32}},
      {8, 3, "o", {8, 4}},
      {8, 3, "ooo", {8, 4, 2, 1}},
      {8, 3, "uuouuu", {8, 8, 8, 4, 4, 4, 8}},
      {8, 3, "uuuo", {8, 8, 8, 16, 8}},
      {8, 0, "uuuuo", {8, 8, 8, 8, 8, 4}},
      {loss_scale_max,
       1,
       "uou",
       {loss_scale_max, loss_scale_max, loss_scale_max / 2, loss_scale_max}},
  };
  for (const auto& [scale, interval, steps, expected] : cases) {
    SCOPED_TRACE(testing::Message() << scale << ", " << interval << ", " << steps);
    EXPECT_EQ(scales_of(scaler_of(scale, interval), steps), expected);
  }
}

TEST(LossScaler, AtOneItIsNotToBlame) {
  auto scaler = scaler_of(2.0, 1);
  EXPECT_TRUE(scaler.on_overflow());
  EXPECT_FALSE(scaler.on_overflow());
  EXPECT_EQ(scaler.scale(), 1.0);
  scaler.on_update();
  EXPECT_EQ(scaler.scale(), 2.0);
}

TEST(LossScaler, IsOneForeverWhereNothingIsRoundedToHalves) {
  for (const auto precision : {Precision::fp32, Precision::bf16}) {
    TrainConfig train;
    train.precision = precision;
    train.loss_scale_interval = 1;
    LossScaler scaler{train};
    EXPECT_EQ(scaler.scale(), 1.0);
    scaler.on_update();
    EXPECT_EQ(scaler.scale(), 1.0);
    EXPECT_FALSE(scaler.on_overflow());
  }
}

TEST(LossScaler, ScalesArePowersOfTwo) {
  for (const double scale : {1.0, 2.0, 65536.0, loss_scale_max}) EXPECT_TRUE(is_loss_scale(scale));
  for (const double other :
       {0.0, -2.0, 0.5, 3.0, 65535.0, 2.0 * loss_scale_max, std::numeric_limits<double>::infinity(),
        std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_FALSE(is_loss_scale(other)) << other;
  }
}

}  // namespace
}  // namespace troupe
