// Schedules with sends and receives: their text, how they are made, and what PyTorch writes.
#include "troupe/engine/communication.hpp"

#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "troupe/engine/communication_validation.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/engine/schedule_text.hpp"
#include "troupe/engine/schedule_validation.hpp"

#include "schedule_scope.hpp"
#include "v_schedule.hpp"

namespace troupe {
namespace {

TEST(InstructionText, IsThatOfPyTorch) {
  for (const auto* text : {"2F0", "3I4", "12W305", "0SEND_F0", "1RECV_F3", "7SEND_B2", "6RECV_B2",
                           "0WAIT_SEND_F1", "1WAIT_SEND_B1", "0UNSHARD", "5RESHARD", "2REDUCE_GRAD",
                           "2WAIT_REDUCE_GRAD", "(0F1;3B0)OVERLAP_F_B", "(7F4;0I0)OVERLAP_F_B"}) {
    const auto instruction = parse_instruction(text);
    ASSERT_TRUE(instruction) << text;
    EXPECT_EQ(to_string(*instruction), text);
  }
  EXPECT_EQ(*parse_instruction("1RECV_B3"),
            Instruction(Transfer{StageIndex{1}, TransferStep::receive, Cargo::gradient,
                                 MicrobatchIndex{3}}));
  EXPECT_EQ(*parse_instruction("4RESHARD"),
            Instruction(WeightExchange{StageIndex{4}, WeightStep::reshard}));
  EXPECT_EQ(*parse_instruction("( 0F1 ;3B0 )OVERLAP_F_B"),
            *parse_instruction("(0F1;3B0)OVERLAP_F_B"));
}

TEST(InstructionText, RefusesWhatIsNoInstruction) {
  for (const auto* text : {"",
                           "0SEND_F",
                           "SEND_F0",
                           "0SEND_F0x",
                           "0send_f0",
                           "0SEND_W0",
                           "0UNSHARD0",
                           "UNSHARD",
                           "0UNSHARD ",
                           "0FULL_BACKWARD0",
                           "0BW0",
                           "0OVERLAP_F_B",
                           "(0F1)OVERLAP_F_B",
                           "(0F1;3B0)",
                           "(0F1;3B0;1B0)OVERLAP_F_B",
                           "(0F1;3SEND_B0)OVERLAP_F_B",
                           "(0F1;3B0",
                           "(0F1;3B0) OVERLAP_F_B",
                           "0SEND_F1048576",
                           "1048576UNSHARD",
                           "(",
                           "()OVERLAP_F_B"}) {
    EXPECT_FALSE(parse_instruction(text)) << text;
  }
  EXPECT_EQ(parse_instruction("0BW0").error().context,
            "\"0BW0\" is no instruction; expected stage, pass (F, B, I or W) and microbatch, as in "
            "2F0, or communication, as in 1SEND_F0 and 0UNSHARD, or (0F1;1B0)OVERLAP_F_B");
}

TEST(WithCommunication, SendsAtTheEndOfTheStepInWhichAPassRuns) {
  EXPECT_EQ(to_csv(with_communication(make_1f1b(3, 2))),
            "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\r\n"
            "1RECV_F0,1F0,1RECV_F1,1SEND_F0,1F1,1SEND_F1,1RECV_B0,1B0,1SEND_B0,1RECV_B1,1B1,"
            "1SEND_B1\r\n"
            "2RECV_F0,2F0,2RECV_F1,2B0,2SEND_B0,2F1,2B1,2SEND_B1\r\n");
  EXPECT_EQ(to_csv(with_communication(split_backward(make_gpipe(2, 1)))),
            "0F0,0SEND_F0,0RECV_B0,0I0,0W0\r\n"
            "1RECV_F0,1F0,1I0,1SEND_B0,1W0\r\n");
}

TEST(WithCommunication, SendsNothingWithinARank) {
  EXPECT_EQ(to_csv(with_communication(make_v_schedule(2, 1))),
            "0F0,0SEND_F0,3RECV_F0,3F0,3B0,3SEND_B0,0RECV_B0,0B0\r\n"
            "1RECV_F0,1F0,2F0,2SEND_F0,2RECV_B0,2B0,1B0,1SEND_B0\r\n");
  EXPECT_FALSE(has_communication(with_communication(make_gpipe(1, 3))));
}

TEST(WithCommunication, KeepsTheCopiesOfTheModelApart) {
  const auto schedule = from_csv("0F0,3F1,3B1,0B0\r\n2F1,1F0,1B0,2B1\r\n", "two ways").value();
  ASSERT_EQ(schedule.copy_count, 2U);
  ASSERT_TRUE(validate(schedule));
  const auto both_ways = with_communication(schedule);
  EXPECT_EQ(to_csv(both_ways),
            "0F0,0SEND_F0,3RECV_F1,3F1,3B1,3SEND_B1,0RECV_B0,0B0\r\n"
            "2F1,1RECV_F0,2SEND_F1,1F0,1B0,2RECV_B1,1SEND_B0,2B1\r\n");
  EXPECT_TRUE(validate(both_ways, Matching::ordered));
}

/// What must hold of every schedule, and of its text.
void expect_sound(const Schedule& schedule) {
  const auto with = with_communication(schedule);
  for (const auto matching : {Matching::tagged, Matching::ordered}) {
    const auto verdict = validate(with, matching);
    ASSERT_TRUE(verdict) << verdict.error().context;
  }
  ASSERT_EQ(without_communication(with), schedule);
  const auto text = to_csv(with);
  const auto read = communication_from_csv(text, schedule.name);
  ASSERT_TRUE(read) << read.error().context;
  ASSERT_EQ(*read, with);
  ASSERT_EQ(to_csv(*read), text);
}

TEST(WithCommunication, MakesSoundSchedulesOfAll) {
  for_every_schedule(expect_sound);
  for_every_extent([](std::uint32_t p, std::uint32_t m) { expect_sound(make_v_schedule(p, m)); });
  expect_sound(make_forward_only_on(make_stage_map(StageMap::v_shaped, 3, 2), 5));
}

TEST(CommunicationCsv, LosesOnlyQuotesSpacesAndEmptyCells) {
  const std::string text = "0UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0\r\n1RECV_F0,1F0,1B0,1SEND_B0\r\n";
  const auto read = communication_from_csv(
      "\"0UNSHARD\", 0F0,,0SEND_F0,\" 0RECV_B0\",0B0,\n1RECV_F0,1F0,1B0,1SEND_B0\n\n", "x");
  ASSERT_TRUE(read) << read.error().context;
  EXPECT_EQ(to_csv(*read), text);
  EXPECT_EQ(*read, *communication_from_csv(text, "x"));
  EXPECT_TRUE(has_communication(*read));
  const std::string overlapped = "0F0,(0F1;0B0)OVERLAP_F_B,0B1\r\n";
  EXPECT_EQ(to_csv(*communication_from_csv(overlapped, "x")), overlapped);
  EXPECT_EQ(to_csv(*from_csv(overlapped, "x")), "0F0,0F1,0B0,0B1\r\n");
  EXPECT_FALSE(has_communication(*communication_from_csv(overlapped, "x")));
  EXPECT_EQ(from_csv(text, "x")->ranks, from_csv("0F0,0B0\n1F0,1B0\n", "x")->ranks);
}

TEST(CommunicationCsv, ErrorsNameRowColumnAndCell) {
  EXPECT_EQ(communication_from_csv("0F0,0SEND_F0\n1RECV_F0,1FF0\n", "x").error().context,
            "x: row 2, column 2: \"1FF0\" is no instruction; expected stage, pass (F, B, I or W) "
            "and microbatch, as in 2F0, or communication, as in 1SEND_F0 and 0UNSHARD, or "
            "(0F1;1B0)OVERLAP_F_B");
  EXPECT_EQ(communication_from_csv("0F0,1F0\n(2F0;1B0)OVERLAP_F_B\n", "x").error().context,
            "x: row 2, column 1: \"(2F0;1B0)OVERLAP_F_B\" runs stage 1, which row 1 runs; a stage "
            "is on one rank");
  EXPECT_EQ(communication_from_csv("0F0,0SEND_F0\n1RECV_F0\n", "x").error().context,
            "x: row 2: this rank runs nothing; leave the row out");
}

TEST(CommunicationCsv, SurvivesDamage) {
  // Whatever a few changed bytes make of a file: an error, or text that is written as it was read.
  const std::string whole =
      "0UNSHARD,0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0WAIT_SEND_F0,0RECV_B1,0B1,0REDUCE_GRAD\r\n"
      "1RECV_F0,1F0,1RECV_F1,(1F1;1B0)OVERLAP_F_B,1SEND_B0,1I1,1SEND_B1,1W1\r\n";
  constexpr std::string_view letters = "0123456789FBIWSENDRCV_,\"\r\n \t\0\xff;()";
  std::uint32_t read_count = 0;
  std::uint32_t valid_count = 0;
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    Random random{seed};
    auto damaged = whole;
    for (auto changes = random.below(4); changes > 0; --changes) {
      damaged[random.below(damaged.size())] = letters[random.below(letters.size())];
    }
    damaged.resize(damaged.size() - random.below(2) * random.below(damaged.size()));
    const auto schedule = communication_from_csv(damaged, "damaged.csv");
    if (!schedule) {
      ASSERT_LT(schedule.error().context.size(), 300U);
      continue;
    }
    ++read_count;
    ASSERT_EQ(communication_from_csv(to_csv(*schedule), "damaged.csv").value(), *schedule);
    const auto verdict = validate(*schedule, Matching::ordered);
    ASSERT_TRUE(verdict || verdict.error().context.size() < 1000U);
    if (verdict) ++valid_count;
  }
  EXPECT_GT(read_count, 500U);
  EXPECT_GT(valid_count, 100U);
}

// -- files ----------------------------------------------------------------------------------------

struct FileCase {
  const char* name;        ///< Of the file.
  const char* written_by;  ///< PyTorch's schedule, and its version.
  bool is_ordered;         ///< Whether it ends under ordered matching.
};

/// As `_dump_csv` of torch.distributed.pipelining leaves them for two ranks with two stages each,
/// byte for byte. Those of 2.7.1 were made by loading the compute-only file of a schedule into
/// `_PipelineScheduleRuntime`, which adds the communication. Those of 2.15.0 were made with its
/// options: LoopedBFS with one active stage and reductions deferred, Interleaved1F1B with receives
/// deferred.
constexpr FileCase file_cases[]{
    {"interleaved_1f1b_comms", "Interleaved1F1B_2_7_1", true},
    {"interleaved_zero_bubble_comms", "InterleavedZeroBubble_2_7_1", true},
    {"v_zero_bubble_comms", "ZBVZeroBubble_2_7_1", true},
    {"dual_pipe_v_comms", "DualPipeV_2_15_0", true},
    {"looped_bfs_comms", "LoopedBFS_2_15_0", true},
    {"interleaved_1f1b_deferred_comms", "Interleaved1F1B_2_15_0", false},
};

std::string text_of_file(const std::string& name) {
  std::ifstream file{TROUPE_SCHEDULES_DIR "/" + name + ".csv", std::ios::binary};
  return {std::istreambuf_iterator<char>{file}, {}};
}

class PyTorchCommunication : public testing::TestWithParam<FileCase> {};

INSTANTIATE_TEST_SUITE_P(Files, PyTorchCommunication, testing::ValuesIn(file_cases),
                         [](const auto& test) { return std::string{test.param.written_by}; });

TEST_P(PyTorchCommunication, IsReadValidAndWrittenBackByteForByte) {
  const auto text = text_of_file(GetParam().name);
  const auto schedule = communication_from_csv(text, "file.csv");
  ASSERT_TRUE(schedule) << schedule.error().context;
  EXPECT_TRUE(has_communication(*schedule));
  EXPECT_EQ(to_csv(*schedule), text);
  const auto tagged = validate(*schedule, Matching::tagged);
  EXPECT_TRUE(tagged) << tagged.error().context;
  EXPECT_EQ(validate(*schedule, Matching::ordered).has_value(), GetParam().is_ordered);
  const auto passes = with_weight_passes_in_order(from_csv(text, "file.csv").value());
  EXPECT_TRUE(validate(passes));
}

TEST(PyTorchCommunications, HaveThePassesOfTheirComputeOnlyFile) {
  EXPECT_EQ(from_csv(text_of_file("interleaved_zero_bubble_comms"), "").value(),
            from_csv(text_of_file("interleaved_zero_bubble"), "").value());
}

TEST(PyTorchCommunications, HaveThePassesOfTheScheduleThatIsGeneratedHere) {
  EXPECT_EQ(from_csv(text_of_file("interleaved_1f1b_comms"), "").value().ranks,
            make_interleaved_1f1b(2, 4, 2)->ranks);
}

TEST(PyTorchCommunications, DeferredReceivesNeedMoreThanOneQueue) {
  // `defer_pp_recv` posts a receive right before the pass that needs it. Both ranks then send.
  const auto schedule =
      communication_from_csv(text_of_file("interleaved_1f1b_deferred_comms"), "").value();
  EXPECT_EQ(validate(schedule, Matching::ordered).error().context,
            "deadlock: rank 0 waits at 2SEND_F1 for 3RECV_F1 on rank 1 [... 2F0 2RECV_F1 2SEND_F0 "
            "2F1 >2SEND_F1< 2RECV_B0 2B0 2WAIT_SEND_F0 2SEND_B0 ...]; rank 1 waits at 3SEND_B0 for "
            "2RECV_B0 on rank 0 [... 1SEND_F1 3RECV_F0 3F0 3B0 >3SEND_B0< 3RECV_F1 3F1 3B1 "
            "3SEND_B1 ...]");
}

}  // namespace
}  // namespace troupe
