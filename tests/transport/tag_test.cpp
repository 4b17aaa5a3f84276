#include "troupe/transport/tag.hpp"

#include <gtest/gtest.h>

namespace troupe::transport {
namespace {

TEST(Tag, EveryFieldTellsTransfersApart) {
  const auto base = make_tag(Port::activation, 3, StageIndex{2}, MicrobatchIndex{1});
  EXPECT_NE(base, make_tag(Port::gradient, 3, StageIndex{2}, MicrobatchIndex{1}));
  EXPECT_NE(base, make_tag(Port::activation, 4, StageIndex{2}, MicrobatchIndex{1}));
  EXPECT_NE(base, make_tag(Port::activation, 3, StageIndex{3}, MicrobatchIndex{1}));
  EXPECT_NE(base, make_tag(Port::activation, 3, StageIndex{2}, MicrobatchIndex{2}));
}

TEST(Tag, OperationPartAndSegmentTellACollectivesTransfersApart) {
  const auto base = make_collective_tag(3, 2, 1);
  EXPECT_NE(base, make_collective_tag(4, 2, 1));
  EXPECT_NE(base, make_collective_tag(3, 1, 1));
  EXPECT_NE(base, make_collective_tag(3, 2, 2));
  EXPECT_NE(base, make_tag(Port::activation, 3, StageIndex{2}, MicrobatchIndex{1}));
  EXPECT_EQ(base, make_collective_tag(3 + (std::uint64_t{1} << 40U), 2, 1)) << "wraps";
}

TEST(Tag, TheLargestFieldsDoNotSpillIntoTheirNeighbours) {
  const MicrobatchIndex last_microbatch{(1U << microbatch_bits) - 1};
  const StageIndex last_stage{(1U << stage_bits) - 1};
  EXPECT_NE(make_tag(Port::activation, 0, StageIndex{0}, last_microbatch),
            make_tag(Port::activation, 0, StageIndex{1}, MicrobatchIndex{0}));
  EXPECT_NE(make_tag(Port::activation, 0, last_stage, last_microbatch),
            make_tag(Port::activation, 1, StageIndex{0}, MicrobatchIndex{0}));
}

TEST(TagDeathTest, AMicrobatchTooLargeForItsFieldAborts) {
  EXPECT_DEATH(
      (void)make_tag(Port::activation, 0, StageIndex{0}, MicrobatchIndex{1U << microbatch_bits}),
      "microbatch");
}

}  // namespace
}  // namespace troupe::transport
