#include "message_checks.hpp"

#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include <caf/actor_system.hpp>
#include <caf/actor_system_config.hpp>
#include <caf/binary_deserializer.hpp>
#include <caf/binary_serializer.hpp>
#include <gtest/gtest.h>

#include "troupe/engine/schedule_text.hpp"

#include "../engine/custom_layers.hpp"
#include "../fuzz/messages.hpp"

namespace troupe::actors {
namespace {

/// A pipeline of three on two nodes.
RanksGiven good_gift() {
  Config config;
  config.model = {.layers = 3, .heads = 1, .hidden = 4, .sequence = 4, .vocabulary = 256};
  config.parallel.pipeline = 3;
  const auto plan = make_plan(config).value();
  return {.node = 1,
          .config = to_toml(config),
          .custom_layer = {},
          .schedule = to_csv(plan.training),
          .node_of_rank = {0, 1, 1},
          .nodes = std::vector<NodeFacts>(2),
          .director_fabric = {},
          .director = {}};
}

TEST(RanksGiven, MakeThePlanThatTheDirectorHas) {
  const auto plan = plan_of(good_gift(), nullptr);
  ASSERT_TRUE(plan) << plan.error().context;
  EXPECT_EQ(plan->training.rank_count(), 3U);
}

TEST(RanksGiven, AreRefusedIfTheyLieOnNoNode) {
  const auto refusal_of = [](auto change) {
    auto gift = good_gift();
    change(gift);
    const auto plan = plan_of(gift, nullptr);
    return plan ? std::string{"accepted"} : plan.error().context;
  };
  EXPECT_EQ(refusal_of([](auto& gift) {
              gift.node_of_rank = {0, 1, 2};
            }),
            "the director places 3 of 3 ranks on 2 nodes, or on others, which is a bug");
  EXPECT_EQ(refusal_of([](auto& gift) { gift.node_of_rank.pop_back(); }),
            "the director places 2 of 3 ranks on 2 nodes, or on others, which is a bug");
  EXPECT_EQ(refusal_of([](auto& gift) { gift.node = 2; }),
            "the director places 3 of 3 ranks on 2 nodes, or on others, which is a bug");
  EXPECT_NE(refusal_of([](auto& gift) { gift.schedule = "0F0\n"; }).find("the director's schedule"),
            std::string::npos);
  EXPECT_NE(refusal_of([](auto& gift) { gift.config = "[model"; }).find("configuration"),
            std::string::npos);
}

TEST(RanksGiven, BringALayerThatTheNodeMustHave) {
  auto gift = good_gift();
  auto config = parse_config(gift.config, "run.toml", {}).value();
  config.model.family = Family::custom;
  config.model.heads = 1;
  config.model.custom_layer = parallel_block();
  gift.config = to_toml(config);
  gift.custom_layer = fingerprint_of_layer(config.model);
  EXPECT_TRUE(plan_of(gift, parallel_block()));
  EXPECT_EQ(plan_of(gift, nullptr).error().context,
            "the model is made of the layer \"" + gift.custom_layer
                + "\", and this node has none; set NodeOptions::custom_layer");
  auto other = *parallel_block();
  other.has_positions = true;
  config.model.custom_layer = std::make_shared<const CustomLayer>(other);
  EXPECT_EQ(plan_of(gift, config.model.custom_layer).error().context,
            "the model is made of the layer \"" + gift.custom_layer + "\", but this node's is \""
                + fingerprint_of_layer(config.model) + "\"; give it the director's");
}

TEST(StepReported, BringsNumbersThatAreNotFiniteToAnotherProcess) {
  constexpr auto infinity = std::numeric_limits<double>::infinity();
  StepReported sent{.rank = 3,
                    .losses = {1.5, -0.0, infinity},
                    .squares = {{-infinity, std::numeric_limits<double>::denorm_min()},
                                {std::numeric_limits<double>::quiet_NaN()}},
                    .target_count = 7};
  std::vector<char> bytes;
  caf::binary_serializer sink{nullptr, bytes};
  ASSERT_FALSE(sink(sent));
  StepReported received;
  caf::binary_deserializer source{nullptr, bytes};
  ASSERT_FALSE(source(received));
  EXPECT_EQ(received.rank, 3U);
  EXPECT_EQ(bits_of(received.losses), bits_of(sent.losses));
  ASSERT_EQ(received.squares.size(), 2U);
  EXPECT_EQ(received.squares[0], sent.squares[0]);
  EXPECT_EQ(bits_of(received.squares[1]), bits_of(sent.squares[1]));
  EXPECT_EQ(received.target_count, 7U);
}

/// Of the last of two ranks with two microbatches of two sequences.
TEST(StepReported, HasAClassForEachSequenceOfAnEvaluationThatClassifies) {
  Config config;
  config.model = {.family = Family::bert,
                  .layers = 2,
                  .heads = 1,
                  .hidden = 4,
                  .sequence = 4,
                  .vocabulary = 257,
                  .tie_embeddings = false,
                  .task = Task::classification,
                  .classes = 3};
  config.parallel.pipeline = 2;
  config.schedule.microbatches = 2;
  config.schedule.microbatch_size = 2;
  const auto plan = make_plan(config).value();
  const auto misfit = [&](StepKind kind, std::uint32_t rank,
                          std::vector<std::int32_t> predictions) {
    const StepReported message{.rank = rank,
                               .losses = std::vector<double>(rank == 1 ? 2 : 0),
                               .squares = {{}},
                               .target_count = 4,
                               .predictions = std::move(predictions)};
    return misfit_of(plan, kind, message);
  };
  constexpr auto evaluation = StepKind::evaluation;
  EXPECT_EQ(misfit(evaluation, 1, {0, 1, 2, 0}), std::nullopt);
  EXPECT_EQ(misfit(evaluation, 0, {}), std::nullopt);
  EXPECT_EQ(misfit(StepKind::training, 1, {}), std::nullopt);
  EXPECT_EQ(misfit(evaluation, 1, {}), "0 predictions from a rank that has 4");
  EXPECT_EQ(misfit(evaluation, 1, {0, 1, 2}), "3 predictions from a rank that has 4");
  EXPECT_EQ(misfit(evaluation, 0, {0, 1, 2, 0}), "4 predictions from a rank that has 0");
  EXPECT_EQ(misfit(StepKind::training, 1, {0, 1, 2, 0}), "4 predictions from a rank that has 0");
  EXPECT_EQ(misfit(evaluation, 1, {0, 1, 3, 0}), "class 3 of 3");
  EXPECT_EQ(misfit(evaluation, 1, {0, -1, 2, 0}), "class -1 of 3");
}

/// Inputs of another form than today's end the fuzzer's reading at once: it would go no further.
TEST(FuzzCorpus, HasEveryMessageAsItIsWrittenToday) {
  caf::actor_system_config settings;
  caf::actor_system system{settings};
  std::vector<char> bytes;
  caf::binary_serializer sink{system, bytes};
  const RankFinished finished{
      .rank = 1,
      .account = {.ns = {1, 2, 3}, .begin_ns = 4, .end_ns = 10},
      .trace = {{.action = {StageIndex{1}, Pass::forward, MicrobatchIndex{0}},
                 .begin_ns = 5,
                 .end_ns = 6}}};
  FuzzedMessages messages{
      StepReported{.rank = 1, .losses = {1.0, 0.5}, .squares = {{2.0, 0.25}}, .target_count = 4},
      finished,
      RankFailed{.rank = 1, .code = Errc::device_failure, .operation = "the pass 1F0"},
      LoadFailed{1, "the tape broke"},
      JoinAsked{.facts = {.host = "vm", .process = 12, .core_count = 2, .fabric_address = "a:1"},
                .node = {}},
      PeerGone{.node = 0, .peer = 1, .sentence = "gone"},
      good_gift(),
      RanksReady{Errc::none, {}, std::vector<StageHandle>(2)},
      StepWanted{.step = 1},
      ClockAsked{1},
      ClockTold{5},
      PeakAsked{2},
      PeakTold{1e9},
      RunEnded{.code = Errc::peer_unreachable, .sentence = "node 0 is lost"},
      JoinAnswered{{}, 1},
      ParameterAsked{.index = 1, .number = 2},
      UpdateStarted{.update = 1, .learning_rate = 0.1F},
      UpdateSkipped{}};
  std::uint8_t place = 0;
  const auto write = [&](auto& message) { EXPECT_FALSE(sink(place++, message)); };
  std::apply([&](auto&... message) { (write(message), ...); }, messages);

  std::ifstream file{TROUPE_FUZZ_CORPUS "/read_message/every_message", std::ios::binary};
  const std::vector<char> kept{std::istreambuf_iterator<char>{file}, {}};
  if (kept == bytes) return;
  const auto path = testing::TempDir() + "every_message";
  std::ofstream{path, std::ios::binary}.write(bytes.data(),
                                              static_cast<std::streamsize>(bytes.size()));
  FAIL() << "tests/fuzz/corpus/read_message/every_message is of another form; take " << path
         << ", and see which of its neighbours have changed as well";
}

/// One pipeline rank with two replicas, of ranks 0 and 1, and their server.
TEST(ParameterServer, ReportsWhatAServerCan) {
  Config config;
  config.model = {.layers = 1, .heads = 1, .hidden = 4, .sequence = 4, .vocabulary = 256};
  config.parallel.data = 2;
  config.schedule.microbatches = 1;
  config.train.synchronization = Synchronization::parameter_server;
  const auto plan = make_plan(config).value();
  const auto reported = [&](std::uint32_t rank, std::size_t loss_count) {
    return misfit_of(plan, StepKind::training,
                     StepReported{.rank = rank,
                                  .losses = std::vector<double>(loss_count),
                                  .squares = {{}},
                                  .target_count = 4});
  };
  EXPECT_EQ(reported(1, 1), std::nullopt);
  EXPECT_EQ(reported(2, 0), std::nullopt);
  EXPECT_EQ(reported(2, 1), "1 losses from a rank that has 0");
  EXPECT_EQ(reported(3, 0), "rank 3 of 3");
  const auto finished = [&](TraceEntry::Kind kind) {
    return misfit_of(plan, RankFinished{2, {}, {{kind, {}, 1, 2}}});
  };
  EXPECT_EQ(finished(TraceEntry::Kind::reduce), std::nullopt);
  EXPECT_EQ(finished(TraceEntry::Kind::optimize), std::nullopt);
  EXPECT_EQ(finished(TraceEntry::Kind::pass), "a pass that is not of the schedule");
}

TEST(StepWanted, IsOnWeightsThatAClientCanHave) {
  Config config;
  config.model = {.layers = 1, .heads = 1, .hidden = 4, .sequence = 4, .vocabulary = 256};
  config.parallel.data = 2;
  config.train.synchronization = Synchronization::parameter_server;
  config.train.staleness = 2;
  const auto plan = make_plan(config).value();
  const auto misfit = [&](StepKind kind, std::uint32_t step, std::uint32_t weights_of) {
    return misfit_of(plan, StepWanted{step, kind, 1.0, weights_of});
  };
  EXPECT_EQ(misfit(StepKind::training, 1, 0), std::nullopt);
  EXPECT_EQ(misfit(StepKind::training, 7, 4), std::nullopt);
  EXPECT_EQ(misfit(StepKind::training, 7, 6), std::nullopt);
  EXPECT_EQ(misfit(StepKind::training, 7, 3), "step 7 on the weights of step 3");
  EXPECT_EQ(misfit(StepKind::training, 7, 7), "step 7 on the weights of step 7");
  EXPECT_EQ(misfit(StepKind::training, 0, 0), "step 0 on the weights of step 0");
  EXPECT_EQ(misfit(StepKind::evaluation, 1, 70), std::nullopt);
  EXPECT_EQ(misfit(StepKind{2}, 1, 0), "a step of no kind");
  EXPECT_EQ(misfit_of(plan, StepWanted{1, StepKind::training, 3.0, 0}),
            "a step with a loss scale that is none");
}

TEST(RanksReady, AreAsManyActorsAsRanksOrAFailureWithItsCode) {
  EXPECT_EQ(misfit_of(RanksReady{Errc::none, {}, {}}, 0), std::nullopt);
  EXPECT_EQ(misfit_of(RanksReady{Errc::none, {}, std::vector<StageHandle>(2)}, 3),
            "2 stage actors for 3 ranks");
  EXPECT_EQ(misfit_of(RanksReady{Errc::none, {}, std::vector<StageHandle>(2)}, 2),
            "a stage actor that leads nowhere");
  EXPECT_EQ(misfit_of(RanksReady{Errc::out_of_memory, "no room", {}}, 2), std::nullopt);
  EXPECT_EQ(misfit_of(RanksReady{Errc{200}, "no room", {}}, 2), "error code 200");
}

TEST(ClockTold, IsWhatAClockCanShow) {
  for (const auto ns : {std::int64_t{0}, clock_max_ns}) {
    EXPECT_EQ(misfit_of(ClockTold{ns}), std::nullopt) << ns;
  }
  for (const auto ns : {INT64_MIN, std::int64_t{-1}, clock_max_ns + 1, INT64_MAX}) {
    EXPECT_EQ(misfit_of(ClockTold{ns}), "a time that no clock shows") << ns;
  }
}

}  // namespace
}  // namespace troupe::actors
