#include "recorded_steps.hpp"

#include <string>

#include <gtest/gtest.h>

#include "troupe/engine/schedule_generators.hpp"

#include "made_steps.hpp"

namespace troupe::cli {
namespace {

RecordedSteps made_run(const Schedule& schedule, std::uint32_t replica_count = 1) {
  const auto timeline = simulate(schedule, {.optimizer_ns = {4}});
  RecordedSteps recorded{schedule, {}};
  for (const auto step : {3U, 4U, 7U}) {
    recorded.steps.push_back(made_step(schedule, timeline, step, replica_count));
  }
  return recorded;
}

/// A run of one rank and one microbatch: three lines, each in sight.
std::string small_text() {
  auto recorded = made_run(make_gpipe(1, 1));
  recorded.steps.pop_back();
  return to_jsonl(recorded);
}

/// The sentence that answers `text`, and that it is one line with the right code.
std::string refusal_of(const std::string& text) {
  const auto parsed = parse_recorded_steps(text, "run/steps.jsonl");
  if (parsed) return "accepted";
  EXPECT_EQ(parsed.error().code, Errc::invalid_file);
  EXPECT_EQ(parsed.error().context.find('\n'), std::string::npos) << parsed.error().context;
  return parsed.error().context;
}

/// The sentence when the last `before` of the small text is `after`.
std::string refusal_with(const std::string& before, const std::string& after) {
  auto text = small_text();
  const auto at = text.rfind(before);
  EXPECT_NE(at, std::string::npos) << before << " in\n" << text;
  if (at == std::string::npos) return {};
  return refusal_of(text.replace(at, before.size(), after));
}

TEST(RecordedSteps, AreALineForTheScheduleAndOneForEachStep) {
  const std::string account = R"({"begin_ns":0,"computing":3,"dispatch":0,"activation":0,)"
                              R"("gradient":0,"send":0,"reduction":0,"measuring":0,)"
                              R"("director":0,"optimizer":4,"next_step":0,"shards":0})";
  const std::string trace = R"([["0F0",0,1],["0B0",1,3],["0 optimize",3,7]])";
  const auto step = [&](const std::string& number) {
    return R"({"step":)" + number + R"(,"duration_ns":7,"ranks":[{"replica":0,"rank":0,"account":)"
           + account + R"(,"trace":)" + trace + "}]}\n";
  };
  EXPECT_EQ(small_text(), R"({"schedule":"gpipe","csv":"0F0,0B0\r\n"})"
                          "\n" + step("3")
                              + step("4"));
}

TEST(RecordedSteps, ComeBackFromTheirText) {
  const auto schedule = split_backward(make_interleaved_1f1b(2, 4, 2).value());
  const auto recorded = made_run(schedule, 3);
  const auto parsed = parse_recorded_steps(to_jsonl(recorded), "x");
  ASSERT_TRUE(parsed) << parsed.error().context;
  EXPECT_EQ(parsed->schedule, schedule);
  ASSERT_EQ(parsed->steps.size(), 3U);
  EXPECT_EQ(parsed->steps[2].step, 7U);
  for (std::size_t rank = 0; rank < 6; ++rank) {
    const auto& read = parsed->steps[2].ranks[rank];
    const auto& written = recorded.steps[2].ranks[rank];
    EXPECT_EQ(read.coordinate, written.coordinate);
    EXPECT_EQ(read.account.ns, written.account.ns);
    ASSERT_EQ(read.trace.size(), written.trace.size());
    for (std::size_t i = 0; i < read.trace.size(); ++i) {
      EXPECT_EQ(to_string(read.trace[i]), to_string(written.trace[i]));
      EXPECT_EQ(read.trace[i].begin_ns + 1000, written.trace[i].begin_ns);
      EXPECT_EQ(read.trace[i].end_ns + 1000, written.trace[i].end_ns);
    }
  }
  EXPECT_EQ(to_jsonl(*parsed), to_jsonl(recorded));
}

TEST(RecordedSteps, MayBeOfAScheduleNamedByAnyBytes) {
  auto recorded = made_run(make_gpipe(1, 1));
  recorded.schedule.name = "\xff\x01\".csv";
  const auto parsed = parse_recorded_steps(to_jsonl(recorded), "x");
  ASSERT_TRUE(parsed) << parsed.error().context;
  EXPECT_EQ(parsed->schedule.name, "\uFFFD\x01\".csv");
}

TEST(RecordedSteps, RefuseWhatIsNoJson) {
  const std::string expected = ", expected a line as `troupe train` writes it";
  EXPECT_EQ(refusal_of("\n"), "run/steps.jsonl:1: found no JSON from byte 1 on" + expected);
  EXPECT_EQ(refusal_of("{\"schedule\":\n"),
            "run/steps.jsonl:1: found no JSON from byte 13 on" + expected);
  EXPECT_EQ(refusal_with("[[\"0F0\"", "[[\"0F0\xc0"),
            "run/steps.jsonl:3: found no JSON from byte 241 on" + expected);
  EXPECT_EQ(refusal_of(""), "run/steps.jsonl:1: found the end of the file, expected a schedule");
}

TEST(RecordedSteps, RefuseAScheduleThatDoesNotTrain) {
  const auto with_csv = [](const std::string& csv) {
    return refusal_of("{\"schedule\":\"x\",\"csv\":\"" + csv + "\"}\n");
  };
  EXPECT_EQ(refusal_of("[]\n"),
            "run/steps.jsonl:1: schedule: found nothing, expected the schedule's name");
  EXPECT_EQ(refusal_of("{\"schedule\":\"x\",\"csv\":7}\n"),
            "run/steps.jsonl:1: csv: found 7, expected the schedule as CSV");
  EXPECT_TRUE(
      with_csv("0F0,zero")
          .starts_with(
              "run/steps.jsonl:1: csv: row 1, column 2: \"zero\" is no instruction; expected "));
  EXPECT_EQ(with_csv("0F0"),
            "run/steps.jsonl:1: csv: found no backward pass, expected a schedule that trains");
  EXPECT_TRUE(with_csv("0F0,0B0,0F1").starts_with("run/steps.jsonl:1: completeness: "));
  EXPECT_EQ(with_csv("0F0,0B0"), "run/steps.jsonl:2: found the end of the file, expected a step");
}

TEST(RecordedSteps, RefuseNumbersThatCannotBe) {
  EXPECT_EQ(refusal_with("\"step\":4", "\"step\":3"),
            "run/steps.jsonl:3: step: found 3, expected a whole number from 4 to 4294967295");
  EXPECT_EQ(refusal_with("\"duration_ns\":7", "\"duration_ns\":7.5"),
            "run/steps.jsonl:3: duration_ns: found 7.5, expected a whole number from 1 to "
            "1000000000000000");
  EXPECT_EQ(refusal_with("\"duration_ns\":7", "\"duration_ns\":1e999"),
            "run/steps.jsonl:3: found a number beyond all limits, expected whole numbers of "
            "nanoseconds");
  EXPECT_EQ(refusal_with("\"duration_ns\":7", "\"duration\":7"),
            "run/steps.jsonl:3: duration_ns: found nothing, expected a whole number from 1 to "
            "1000000000000000");
  EXPECT_EQ(refusal_with("\"computing\":3", "\"computing\":18446744073709551615"),
            "run/steps.jsonl:3: ranks[0].account.computing: found 18446744073709551615, expected a "
            "whole number from 0 to 1000000000000000");
  EXPECT_EQ(
      refusal_with("\"begin_ns\":0", "\"begin_ns\":{}"),
      "run/steps.jsonl:3: ranks[0].account.begin_ns: found an object, expected a whole number "
      "from -1000000000000000 to 1000000000000000");
  EXPECT_EQ(refusal_with("[\"0B0\",1,3]", "[\"0B0\",4,3]"),
            "run/steps.jsonl:3: ranks[0].trace[1][2]: found 3, expected a whole number from 4 to "
            "1000000000000000");
}

TEST(RecordedSteps, RefuseTimesWhoseSumCouldOverflow) {
  const auto long_step = [](std::uint32_t rank_count) {
    const auto schedule = make_gpipe(rank_count, 1);
    auto recorded = made_run(schedule);
    for (auto& step : recorded.steps) {
      for (auto& rank : step.ranks) rank.account.ns[0] = 900'000'000'000'000;
    }
    return to_jsonl(recorded);
  };
  EXPECT_EQ(refusal_of(long_step(30)), "accepted");
  EXPECT_EQ(
      refusal_of(long_step(50)),
      "run/steps.jsonl:4: found times that add up to more than three years, expected those of "
      "a run");
}

TEST(RecordedSteps, RefuseASecondUpdate) {
  EXPECT_EQ(refusal_with(R"(["0 optimize",3,7])", R"(["0 optimize",3,7],["0 optimize",7,8])"),
            "run/steps.jsonl:3: ranks[0].trace: 0 optimize is there twice");
}

TEST(RecordedSteps, RefuseAnotherGrid) {
  EXPECT_EQ(refusal_with("\"ranks\":[", "\"ranks\":[0,"),
            "run/steps.jsonl:3: ranks: found 2 ranks, expected 1 as in the steps before");
  EXPECT_EQ(refusal_with("\"ranks\":", "\"rank\":"),
            "run/steps.jsonl:3: ranks: found 0 ranks, expected 1 as in the steps before");
  EXPECT_EQ(refusal_with("\"rank\":0", "\"rank\":1"),
            "run/steps.jsonl:3: ranks[0].rank: found 1, expected a whole number from 0 to 0");
  EXPECT_EQ(refusal_of("{\"schedule\":\"x\",\"csv\":\"0F0,0B0\"}\n{\"step\":1,\"duration_ns\":1,"
                       "\"ranks\":[]}\n"),
            "run/steps.jsonl:2: ranks: found 0 ranks, expected the 1 of the schedule for each "
            "replica");
}

TEST(RecordedSteps, RefuseATraceThatIsNotOfTheSchedule) {
  const std::string entry = "run/steps.jsonl:3: ranks[0].trace[1]";
  const std::string a_name =
      ", expected a pass of one of the rank's stages, as in 2F0, or its sum or update, as in 2 "
      "reduce or 2 optimize";
  EXPECT_EQ(refusal_with("[\"0B0\",1,3]", "[\"0B0\",1]"),
            entry + ": found an array, expected an array of name, begin and end");
  EXPECT_EQ(refusal_with("\"0B0\"", "\"1B0\""), entry + "[0]: found \"1B0\"" + a_name);
  EXPECT_EQ(refusal_with("\"0B0\"", "\"1 reduce\""), entry + "[0]: found \"1 reduce\"" + a_name);
  EXPECT_EQ(refusal_with("\"0B0\"", "\"0 rest\""), entry + "[0]: found \"0 rest\"" + a_name);
  EXPECT_EQ(refusal_with("\"0B0\"", "12"), entry + "[0]: found 12" + a_name);
  const std::string trace = "run/steps.jsonl:3: ranks[0].trace";
  EXPECT_EQ(refusal_with("\"trace\":[[\"0F0\",0,1],[\"0B0\",1,3],[\"0 optimize\",3,7]]",
                         "\"trace\":null"),
            trace + ": found null, expected an array of what the device did");
  EXPECT_EQ(refusal_with("\"0B0\"", "\"0 reduce\""),
            trace + ": the schedule has 0B0 here, which is missing");
  EXPECT_EQ(refusal_with("\"0 optimize\"", "\"0B0\""),
            trace + ": 0B0 is once more than in the schedule");
  EXPECT_EQ(refusal_with("[\"0B0\",1,3]", "[\"0B0\",0,3]"),
            trace + ": 0B0 begins at 0, before 0F0 ends at 1");
}

TEST(RecordedSteps, RefuseAnOrderInWhichRanksWouldWaitForEachOther) {
  auto recorded = made_run(make_1f1b(1, 1));
  recorded.steps.resize(1);
  auto& trace = recorded.steps[0].ranks[0].trace;
  std::swap(trace[0].action, trace[1].action);
  const auto refusal = refusal_of(to_jsonl(recorded));
  EXPECT_TRUE(refusal.starts_with(
      "run/steps.jsonl:2: ranks: replica 0 cannot have run in this order: order: "))
      << refusal;
}

/// What a policy does.
TEST(RecordedSteps, MayHaveRunInAnotherOrderThanListed) {
  auto recorded = made_run(make_gpipe(1, 2));
  recorded.steps.resize(1);
  auto& trace = recorded.steps[0].ranks[0].trace;
  std::swap(trace[1].action, trace[2].action);  // 0F0 0B0 0F1 0B1
  EXPECT_EQ(refusal_of(to_jsonl(recorded)), "accepted");
}

}  // namespace
}  // namespace troupe::cli
