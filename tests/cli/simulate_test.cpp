// `troupe simulate` and `troupe profile`: what they print and draw, and what they refuse.

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "command_fixture.hpp"
#include "profile_file.hpp"
#include "sweep_plot.hpp"

namespace troupe::cli {
namespace {

nlohmann::json json_of(const std::string& text) {
  return nlohmann::json::parse(text);
}

TEST_F(Command, SimulatePrintsOneObject) {
  const auto outcome =
      shell("troupe simulate --schedule 1f1b --stages 4 --microbatches 8 --costs 1,1,1 --json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const auto object = json_of(outcome.output);
  EXPECT_EQ(object.at("makespan"), 3.0 * (8 + 3));
  EXPECT_DOUBLE_EQ(object.at("bubble_of_ideal"), 3.0 / 8);
  EXPECT_DOUBLE_EQ(object.at("bubble_of_total"), 3.0 / 11);
  EXPECT_EQ(object.at("idle"), (std::vector<double>{9, 9, 9, 9}));
  EXPECT_EQ(object.at("peak_activations"), (std::vector<int>{4, 3, 2, 1}));
  auto causes = 0.0;
  for (const auto& [cause, idle] : object.at("idle_by_cause").items()) causes += idle.get<double>();
  EXPECT_EQ(causes, 4.0 * 9);
}

TEST_F(Command, SimulateCountsActivationsOfChunksAndOfMicrobatches) {
  const auto outcome = shell("troupe simulate --schedule zb-v --stages 4 --microbatches 8 --json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const auto object = json_of(outcome.output);
  EXPECT_EQ(object.at("virtual_stages"), 8);
  EXPECT_EQ(object.at("idle_within_passes"), (std::vector<double>{0, 0, 0, 0}));
  EXPECT_EQ(object.at("peak_activations").at(0), 8);
  EXPECT_EQ(object.at("peak_microbatches").at(0), 4.0);
}

TEST_F(Command, SimulateKnowsTheMachineThatItIsTold) {
  const auto simulated = [&](const std::string& options) {
    const auto outcome = shell("troupe simulate --schedule 1f1b --json " + options);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    return json_of(outcome.output);
  };
  const auto makespan = [&](const std::string& options) { return simulated(options)["makespan"]; };
  // Two ranks, one microbatch: F F B B of 1 1 2 2, and a hop each way.
  const std::string two = "--stages 2 --microbatches 1 ";
  EXPECT_EQ(makespan(two + "--link 0.5 --transfer 0.25"), 6 + 2 * 0.75);
  EXPECT_EQ(makespan(two + "--straggler 1:3"), 6 + 2 * 3);
  EXPECT_EQ(makespan(two + "--straggler 0:2,1:3"), 3 * 2 + 3 * 3);
  EXPECT_EQ(makespan(two + "--replicas 2 --reduction 4"), 6 + 4);
  // The second pass of rank 0 waits until the first output has left.
  const std::string more = "--stages 2 --microbatches 2 --transfer 1 ";
  EXPECT_GT(makespan(more + "--no-overlap"), makespan(more));
  // Two neighbours at once over one interface: the second message waits for the first.
  const std::string four = "--stages 4 --microbatches 8 --transfer 2 ";
  EXPECT_GE(makespan(four + "--ranks-per-node 2"), makespan(four + "--ranks-per-node 4"));

  const auto slow_replica = simulated(two + "--replicas 2 --straggler 2:5");
  EXPECT_EQ(slow_replica["busy"], (std::vector<double>{3, 3, 15, 3}));
  EXPECT_EQ(slow_replica["makespan"], 15 + 3);

  const auto varied = makespan(two + "--jitter 0.3");
  EXPECT_NE(varied, 6);
  EXPECT_EQ(makespan(two + "--jitter 0.3"), varied);
  EXPECT_NE(makespan(two + "--jitter 0.3 --seed 1"), varied);

  EXPECT_EQ(simulated(two + "--memory")["activations_over_time"],
            json_of("[[[0,1],[6,0]],[[0,0],[1,1],[4,0]]]"));
}

TEST_F(Command, SimulateRefusesAStragglerThatIsNone) {
  for (const auto* straggler : {"2:1", "0", "0:", "0:-1", "0:1x", "x:1", "0:1e9", "-1:2"}) {
    expect_refused("troupe simulate --schedule 1f1b --stages 2 --microbatches 1 --straggler="
                       + std::string{straggler},
                   "expected one of the ranks 0 to 1, a colon and a factor from 0 to 1000, as in "
                   "0:1.5");
  }
  expect_refused("troupe simulate --schedule 1f1b --stages 2 --microbatches 1,2 --trace t.json",
                 "--trace: a file holds one step");
}

TEST_F(Command, SimulateWritesATraceWithTheActivationsThatAreHeld) {
  const auto outcome = shell(
      "troupe simulate --schedule 1f1b --stages 2 --microbatches 2 --replicas 2 --reduction 1 "
      "--trace t.json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  std::map<std::string, int> kinds;
  const auto trace = json_of(read("t.json"));
  for (const auto& event : trace.at("traceEvents")) {
    ++kinds[event.at("ph").get<std::string>()];
    if (event.at("name") == "1B1" && event.at("pid") == 1) {
      EXPECT_EQ(event.at("dur"), 2e3) << "a unit is a millisecond";
    }
  }
  EXPECT_EQ(kinds["X"], 2 * 2 * (4 + 1)) << "passes, and a sum for each stage";
  EXPECT_EQ(kinds["M"], 2 * 2 * 2);
  EXPECT_GT(kinds["C"], 2 * 2 * 2);
}

TEST_F(Command, SimulateSweepsIntoATableAndAPlot) {
  const auto outcome = shell(
      "troupe simulate --schedule 1f1b,zb-h1 --stages 4 --microbatches 4,8 --link 0,0.5 --csv "
      "--svg plot.svg");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(std::ranges::count(outcome.output, '\n'), 1 + 2 * 2 * 2);
  EXPECT_NE(outcome.output.find("zb-h1,4,8,0.5,"), std::string::npos) << outcome.output;
  const auto plot = read("plot.svg");
  for (const auto* line : {">1f1b, link 0<", ">1f1b, link 0.5<", ">zb-h1, link 0<"}) {
    EXPECT_NE(plot.find(line), std::string::npos) << line;
  }
}

TEST_F(Command, SimulateTakesAFileOnceAndWithAnyName) {
  write("a<b.csv", "0F0,0B0\n");
  const auto outcome = shell(
      "troupe simulate --schedule 'a<b.csv',1f1b --stages 1,2 --microbatches 1 --csv "
      "--svg plot.svg");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(std::ranges::count(outcome.output, '\n'), 1 + 1 + 2);
  EXPECT_NE(read("plot.svg").find("a&lt;b.csv"), std::string::npos);
}

TEST_F(Command, SimulateRefusesWhatItCannotKnow) {
  expect_refused("troupe simulate --schedule 1f1b",
                 "troupe: give --schedule, --stages and --microbatches, or a configuration with "
                 "--profile\n");
  for (const auto* costs : {"nan,1,1", "1e9,1,1", "inf,1,1"}) {
    expect_refused(
        "troupe simulate --schedule 1f1b --stages 4 --microbatches 8 --costs " + std::string{costs},
        "");
  }
  write("profile.json", "{}");
  expect_refused("troupe simulate run.toml --profile profile.json",
                 "troupe: profile.json: is not a profile: expected a JSON object with "
                 "\"troupe_profile\": 1; write one with `troupe profile`\n");
}

TEST_F(Command, ProfileWritesWhatSimulateReads) {
  const auto outcome = shell("troupe profile run.toml --seconds 0.1 --out p.json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("unevenness: in eight steps of ten an actor took "),
            std::string::npos)
      << outcome.output;
  // A busy machine may leave nothing for one part of a model that small, but not for all.
  const auto profile = json_of(read("p.json"));
  for (const auto* pass : {"F", "B", "I", "W"}) {
    std::int64_t sum_ns = 0;
    for (const auto* part : {"embedding", "layer", "head"}) {
      sum_ns += profile.at("parts").at(0).at(part).at(pass).get<std::int64_t>();
    }
    EXPECT_GT(sum_ns, 0) << pass;
  }
  std::vector<double> sums;
  const auto steps = profile.at("unevenness").at("slowdowns");
  for (const auto& of_step : steps) {
    sums.resize(of_step.size());
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += of_step.at(i).get<double>();
  }
  EXPECT_FALSE(sums.empty());
  for (const auto sum : sums) EXPECT_NEAR(sum / static_cast<double>(steps.size()), 1.0, 1e-3);
  const auto simulated =
      shell("troupe simulate run.toml --profile p.json --schedule gpipe,1f1b --json");
  ASSERT_EQ(simulated.exit_code, 0) << simulated.output;
  const auto objects = json_of(simulated.output);
  ASSERT_EQ(objects.size(), 2U);
  EXPECT_GT(objects[0].at("makespan"), 0.0);
  // GPipe holds all microbatches, 1F1B as many as there are ranks from here to the last.
  const auto& bytes = objects[0].at("peak_activation_bytes");
  const auto& sets = objects[0].at("peak_activations");
  for (std::size_t r = 0; r < bytes.size(); ++r) {
    const auto set_bytes = bytes.at(r).get<std::int64_t>() / sets.at(r).get<std::int64_t>();
    EXPECT_GT(set_bytes, 0);
    EXPECT_EQ(objects[1].at("peak_activation_bytes").at(r),
              set_bytes * objects[1].at("peak_activations").at(r).get<std::int64_t>());
  }
  const auto traced = shell(
      "troupe simulate run.toml --profile p.json --schedule gpipe --memory --json --trace t.json");
  ASSERT_EQ(traced.exit_code, 0) << traced.output;
  const auto over_time = json_of(traced.output).at("activation_bytes_over_time");
  ASSERT_EQ(over_time.size(), bytes.size());
  std::int64_t most = 0;
  for (const auto& level : over_time.at(0)) most = std::max(most, level.at(1).get<std::int64_t>());
  EXPECT_EQ(most, bytes.at(0).get<std::int64_t>());
  EXPECT_NE(read("t.json").find("\"bytes\":" + std::to_string(most)), std::string::npos);
  const auto one = shell("troupe simulate run.toml --profile p.json").output;
  for (const auto* words : {" KiB\n", "with passes as uneven as when they were profiled "}) {
    EXPECT_NE(one.find(words), std::string::npos) << one;
  }
  const auto planned = shell("troupe plan run.toml --set schedule.name=gpipe --profile p.json");
  ASSERT_EQ(planned.exit_code, 0) << planned.output;
  const std::string words = "predicted step: ";
  const auto at = planned.output.find(words);
  ASSERT_NE(at, std::string::npos) << planned.output;
  EXPECT_NEAR(std::stod(planned.output.substr(at + words.size())),
              objects[0].at("uneven_steps").at("mean").get<double>(), 0.051);
  expect_refused("troupe plan run.toml --set schedule.microbatch_size=7 --profile p.json",
                 "the configuration has 7; measure one for it with `troupe profile`");
  expect_refused("troupe simulate run.toml --set schedule.microbatch_size=7 --profile p.json",
                 "the configuration has 7; measure one for it with `troupe profile`");
}

TEST_F(Command, AProfileKnowsHowProcessesAndReplicasExchange) {
  const auto measured = shell("troupe profile run.toml --seconds 0.1 --out p.json");
  ASSERT_EQ(measured.exit_code, 0) << measured.output;
  for (const auto* words : {"\nsums over replicas: ", "\nbetween processes: "}) {
    EXPECT_NE(measured.output.find(words), std::string::npos) << measured.output;
  }
  auto profile = json_of(read("p.json"));
  for (const auto& wire : {profile.at("reduction"), profile.at("between_processes").at("link"),
                           profile.at("between_processes").at("reduction")}) {
    EXPECT_GT(wire.at("latency_ns"), 0) << wire;
    EXPECT_GT(wire.at("bytes_per_second"), 1e6) << wire;
  }
  // Slower links, slower steps, where something goes over them.
  profile["between_processes"]["link"]["latency_ns"] = 50'000'000;
  write("slow.json", profile.dump());
  const auto makespan = [&](const std::string& options) {
    const auto outcome = shell("troupe simulate run.toml --json --profile " + options);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    return json_of(outcome.output).at("makespan").get<double>();
  };
  EXPECT_EQ(makespan("slow.json"), makespan("p.json"));
  EXPECT_GT(makespan("slow.json --processes 2"), makespan("p.json --processes 2") + 2 * 50.0);
  const std::string replicas = " --set parallel.data=2 --set parallel.pipeline=1 ";
  EXPECT_GT(makespan("p.json --processes 2" + replicas), 0.0);
  const auto planned = shell("troupe plan run.toml --profile slow.json --processes 2");
  EXPECT_EQ(planned.exit_code, 0) << planned.output;
  EXPECT_NE(planned.output.find("\neach of 2 processes, with its actors "), std::string::npos)
      << planned.output;
  const auto many = shell("troupe simulate run.toml --profile p.json --set parallel.data=3");
  EXPECT_NE(many.output.find("note: of 3 replicas, the 2 that are shown stand for all\n"),
            std::string::npos)
      << many.output;
  expect_refused("troupe plan run.toml --profile p.json --processes 3",
                 "troupe: found 3 processes, expected 1 to 2, as many as the grid has actors\n");
  profile["between_processes"] = nullptr;
  write("alone.json", profile.dump());
  expect_refused("troupe simulate run.toml --profile alone.json --processes 2",
                 "troupe: the profile knows no links between processes: they could not be "
                 "measured; see `troupe doctor`, then measure another with `troupe profile`\n");
  expect_refused("troupe profile run.toml --interface nowhere9",
                 "troupe: --interface nowhere9: this machine has no network interface of that "
                 "name with an address; choose one of lo");
}

TEST_F(Command, StagesOfUnequalShardsAreProfiledPlannedAndSimulated) {
  const std::string uneven = "--set parallel.tensor=[2,1] ";
  const auto measured = shell("troupe profile run.toml " + uneven + "--seconds 0.1 --out p.json");
  ASSERT_EQ(measured.exit_code, 0) << measured.output;
  const auto parts = json_of(read("p.json")).at("parts");
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_EQ(parts.at(0).at("shards"), 1);
  EXPECT_EQ(parts.at(1).at("shards"), 2);
  const auto planned = shell("troupe plan run.toml " + uneven + "--profile p.json");
  ASSERT_EQ(planned.exit_code, 0) << planned.output;
  for (const auto* line : {"1 replica x [2, 1] shards x 2 pipeline ranks = 3 actors\n",
                           " in each of 2 shards of each ", " for a layer, ",
                           " for a layer of 2 shards, ", "predicted step: "}) {
    EXPECT_NE(planned.output.find(line), std::string::npos) << line << planned.output;
  }
  expect_refused(
      "troupe plan run.toml " + uneven + "--set train.sequence_parallel=true --profile p.json",
      "measured with train.sequence_parallel = false, the configuration has true");
  const auto simulated = shell("troupe simulate run.toml " + uneven + "--profile p.json");
  EXPECT_EQ(simulated.exit_code, 0) << simulated.output;
  // Two shards and one: with two processes the first has one shard.
  const std::string note =
      "shards of one stage are in different processes, and are simulated as if they were in one\n";
  for (const auto* command : {"simulate", "plan"}) {
    const auto told = [&](const char* processes) {
      return shell("troupe " + std::string{command} + " run.toml " + uneven
                   + "--profile p.json --processes " + processes)
                 .output.find(note)
             != std::string::npos;
    };
    EXPECT_FALSE(told("1")) << command;
    EXPECT_TRUE(told("2")) << command;
  }
  expect_refused("troupe simulate run.toml " + uneven + "--stages 3 --profile p.json",
                 "parallel.tensor: 2 numbers of shards are listed");
  expect_refused("troupe plan run.toml --set parallel.tensor=[2,1,1] --profile p.json",
                 "parallel.tensor: 3 numbers of shards are listed");
}

Profile any_profile() {
  return {.model = {.family = Family::llama,
                    .heads = 2,
                    .hidden = 8,
                    .sequence = 4,
                    .vocabulary = 256,
                    .kv_heads = 1,
                    .feed_forward = 24},
          .microbatch_size = 3,
          .threads_per_stage = 2,
          .stream_count = 4,
          .recompute = Recompute::selective,
          .sequence_parallel = true,
          .parts = {{.shard_count = 3,
                     .embedding = {1, 2, 3, 4},
                     .layer = {5, 6, 7, 8},
                     .recomputing_layer = {5, 9, 9, 8},
                     .head = {9, 10, 11, 12}},
                    {.shard_count = 1, .layer = {1, 1, 1, 1}}},
          .optimizer_ns_per_element = 0.25,
          .measuring_ns_per_element = 0.125,
          .dispatch_ns = 14,
          .director_ns = 15,
          .start_ns = 16,
          .reduction = {17, 1.5e9},
          .has_spare_cores = true,
          .between_processes = ProcessLinks{{18, 2.5e9}, {19, 3.5e9}},
          .unevenness = {.slowdowns = {{1.25, 0.75}, {0.75, 1.25}}, .pass_spread = 0.5}};
}

TEST(ProfileFile, ComesBackAsItWasWritten) {
  const auto text = to_json(any_profile());
  const auto read = parse_profile(text, "p");
  ASSERT_TRUE(read.has_value()) << read.error().context;
  EXPECT_EQ(to_json(*read), text);
  EXPECT_EQ(read->parts, any_profile().parts);
  EXPECT_TRUE(read->sequence_parallel);
  EXPECT_EQ(read->start_ns, 16);
  EXPECT_EQ(read->reduction, any_profile().reduction);
  EXPECT_TRUE(read->has_spare_cores);
  EXPECT_EQ(read->between_processes, any_profile().between_processes);
  auto alone = any_profile();
  alone.between_processes.reset();
  alone.reduction = {};  // No bytes take any time, which JSON has no number for.
  const auto read_alone = parse_profile(to_json(alone), "p");
  ASSERT_TRUE(read_alone.has_value()) << read_alone.error().context;
  EXPECT_EQ(read_alone->between_processes, std::nullopt);
  EXPECT_GE(read_alone->reduction.bytes_per_second, 1e15);
  EXPECT_EQ(read->unevenness, any_profile().unevenness);
}

TEST(ProfileFile, SaysWhichMemberIsNotWhatItMustBe) {
  const auto complaint = [](const char* old_text, const char* new_text) {
    auto text = to_json(any_profile());
    const auto at = text.find(old_text);
    EXPECT_NE(at, std::string::npos);
    text.replace(at, std::string{old_text}.size(), new_text);
    const auto read = parse_profile(text, "p.json");
    return read ? std::string{"read"} : read.error().context;
  };
  EXPECT_EQ(complaint("\"hidden\": 8", "\"hidden\": 0"),
            "p.json: hidden: found 0, expected a whole number from 1 to 4294967295; write a new "
            "one with `troupe profile`");
  EXPECT_EQ(complaint("\"W\": 8", "\"W\": -8"),
            "p.json: W: found -8, expected whole nanoseconds from 0 to a day; write a new one with "
            "`troupe profile`");
  EXPECT_EQ(complaint("\"sequence_parallel\": true", "\"sequence_parallel\": 1"),
            "p.json: sequence_parallel: found 1, expected true or false; write a new one with "
            "`troupe profile`");
  EXPECT_EQ(complaint("\"head\": {", "\"hat\": {"),
            "p.json: head: found nothing, expected an object with F, B, I and W; write a new one "
            "with `troupe profile`");
  EXPECT_EQ(complaint("1500000000.0", "0.5"),
            "p.json: bytes_per_second: found 0.5, expected a number from 1 to 1e15; write a new "
            "one with `troupe profile`");
  EXPECT_EQ(complaint("\"between_processes\": {", "\"between_processes\": 1, \"among\": {"),
            "p.json: between_processes: found 1, expected null, or an object with link and "
            "reduction; write a new one with `troupe profile`");
  EXPECT_EQ(
      complaint("\"parts\": [", "\"parts\": [1, "),
      "p.json: parts: found [1,{\"shards\":3,\"embedding\":{\"F\":1,\"B\":2,, expected a list "
      "of objects, one for each number of shards; write a new one with `troupe profile`");
  EXPECT_EQ(complaint("\"pass_spread\": 0.5", "\"pass_spread\": 4"),
            "p.json: pass_spread: found 4, expected a number from 0 to 3; write a new one with "
            "`troupe profile`");
  for (const auto* number : {"-1", "1001", "[]", "{}"}) {
    EXPECT_NE(complaint("1.25", number).find("expected a list of lists of numbers from 0 to 1000"),
              std::string::npos);
  }
  EXPECT_NE(complaint("\"slowdowns\": [", "\"slowdowns\": [[], ").find("list of lists"),
            std::string::npos);
  EXPECT_EQ(complaint("0.25", "1e400"), complaint("\"troupe_profile\": 1", "\"other\": 1"));
}

}  // namespace
}  // namespace troupe::cli
