#include "troupe/engine/bf16.hpp"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace troupe {
namespace {

constexpr auto infinity = std::numeric_limits<float>::infinity();

TEST(Bf16, KnownNumbersAreRoundedAsTheyShould) {
  struct Case {
    float value;
    std::uint16_t bits;
  };
  for (const auto& [value, bits] : {
           Case{0.0F, 0x0000},
           Case{-0.0F, 0x8000},
           Case{1.0F, 0x3f80},
           Case{-2.0F, 0xc000},
           Case{0x1.01p0F, 0x3f80},    // A tie: down to the even one.
           Case{0x1.03p0F, 0x3f82},    // A tie: up to the even one.
           Case{0x1.0101p0F, 0x3f81},  // More than a tie.
           Case{0x1.ffp0F, 0x4000},    // Carried into the exponent.
           Case{0x1p-133F, 0x0001},    // The least.
           Case{0x1p-134F, 0x0000},    // A tie with zero.
           Case{0x1.8p-134F, 0x0001},
           Case{0x1.fep-127F, 0x0080},  // From the subnormal numbers to the least normal one.
           Case{0x1.fep127F, 0x7f7f},   // The largest.
           Case{0x1.fefffep127F, 0x7f7f},
           Case{0x1.ffp127F, 0x7f80},  // Beyond it.
           Case{std::numeric_limits<float>::max(), 0x7f80},
           Case{infinity, 0x7f80},
           Case{-infinity, 0xff80},
           Case{std::bit_cast<float>(0x7fffffffU), 0x7fc0},  // Not carried into the sign.
           Case{std::bit_cast<float>(0x7f800001U), 0x7fc0},  // Not rounded to infinity.
       }) {
    EXPECT_EQ(to_bf16(value), bits) << value;
  }
}

TEST(Bf16, EveryNumberComesBack) {
  for (std::uint32_t bits = 0; bits <= 0xffffU; ++bits) {
    const auto value = from_bf16(static_cast<std::uint16_t>(bits));
    EXPECT_EQ(to_bf16(value), std::isnan(value) ? 0x7fc0U : bits);
  }
}

TEST(Bf16, BetweenTwoNumbersTheNearerIsTaken) {
  for (std::uint32_t bits = 0; bits < 0x7f7fU; ++bits) {
    const auto below = double{from_bf16(static_cast<std::uint16_t>(bits))};
    const auto above = double{from_bf16(static_cast<std::uint16_t>(bits + 1))};
    const auto middle = static_cast<float>((below + above) / 2);
    EXPECT_EQ(to_bf16(middle), bits + bits % 2);
    EXPECT_EQ(to_bf16(std::nextafter(middle, 0.0F)), bits);
    EXPECT_EQ(to_bf16(std::nextafter(middle, infinity)), bits + 1);
  }
}

}  // namespace
}  // namespace troupe
