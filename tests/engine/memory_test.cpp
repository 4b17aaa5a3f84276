#include "troupe/engine/memory.hpp"

#include <gtest/gtest.h>

namespace troupe {
namespace {

TEST(FormatBytes, IsForAPerson) {
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(std::uint64_t{3} << 41U), "6144.00 GiB");
}

}  // namespace
}  // namespace troupe
