// The command as a person meets it: what it prints, how it ends, what it leaves behind.

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <sstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "command_fixture.hpp"

namespace troupe::cli {
namespace {

// -- what it does ---------------------------------------------------------------------------------

TEST_F(Command, TrainLeavesWhatItPromises) {
  const auto outcome = shell("troupe train run.toml");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const auto* name : {"out/config.toml", "out/metrics.jsonl", "out/weights.safetensors",
                           "out/trace.json", "out/steps.jsonl", "out/timeline.svg"}) {
    EXPECT_TRUE(exists(name)) << name;
  }
  std::istringstream lines{read("out/metrics.jsonl")};
  std::string line;
  std::uint32_t step = 0;
  for (; std::getline(lines, line);) {
    const auto metrics = nlohmann::json::parse(line);
    EXPECT_EQ(metrics.at("step"), ++step);
    for (const auto* key : {"loss", "learning_rate", "grad_norm", "tokens_per_second",
                            "speed_of_light", "bubble_measured", "bubble_predicted"}) {
      EXPECT_TRUE(metrics.at(key).is_number()) << key;
    }
    EXPECT_EQ(metrics.contains("validation_loss"), step % 3 == 0) << "every third step";
  }
  EXPECT_EQ(step, 6U);
  const auto trace = nlohmann::json::parse(read("out/trace.json"));
  std::uint32_t pass_count = 0;
  for (const auto& event : trace.at("traceEvents")) {
    pass_count +=
        event.at("ph") == "X" && event.at("name").get<std::string>().size() == 3 ? 1U : 0U;
  }
  EXPECT_EQ(pass_count, 2U * 4U * 2U) << "F and B of 4 microbatches on 2 stages";
  EXPECT_NE(read("out/timeline.svg").find("</svg>"), std::string::npos);
}

TEST_F(Command, TrainSaysWhichStepsOverflowInHalfPrecision) {
  const std::string half =
      " run.toml --set train.precision=fp16 --set train.gradient_wire=bf16"
      " --set train.loss_scale=1073741824.0 --set train.steps=20"
      " --set parallel.data=2";
  const auto plan = shell("troupe plan" + half);
  ASSERT_EQ(plan.exit_code, 0) << plan.output;
  EXPECT_NE(plan.output.find("products  of fp16, added up in fp32; the loss is scaled by "
                             "1073741824 at first\n"),
            std::string::npos)
      << plan.output;
  EXPECT_NE(plan.output.find(" in bf16, summed over 2 holders\n"), std::string::npos)
      << plan.output;
  const auto outcome = shell("troupe train" + half);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("step 1: gradients overflow with the loss scaled by 1073741824; "
                                "the weights stay as they are, and the scale is halved\n"),
            std::string::npos)
      << outcome.output;
  std::istringstream lines{read("out/metrics.jsonl")};
  double scale = 1073741824.0;
  std::uint32_t skipped_count = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto metrics = nlohmann::json::parse(line);
    EXPECT_EQ(metrics.at("loss_scale"), scale);
    EXPECT_EQ(metrics.at("grad_norm").is_null(), metrics.at("skipped") == 1);
    if (metrics.at("skipped") == 0) continue;
    scale /= 2.0;
    ++skipped_count;
  }
  EXPECT_GT(skipped_count, 1U);
  EXPECT_LT(skipped_count, 20U);
  // The files that tell of skipped steps can be read.
  ASSERT_EQ(shell("troupe train" + half + " --set train.steps=1").exit_code, 0);
  const auto compared = shell("troupe compare out");
  EXPECT_EQ(compared.exit_code, 0) << compared.output;
}

/// Whatever its grid, it hides the same words.
TEST_F(Command, TrainsABertOnMaskedWords) {
  const std::string bert =
      "troupe train run.toml --set model.family=bert --set model.vocabulary=257 --set run.output=";
  const auto outcome = shell(bert + "a --set parallel.pipeline=1");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  ASSERT_EQ(shell(bert + "b --set parallel.pipeline=2 --processes 2").exit_code, 0);
  EXPECT_EQ(shell("cmp a/weights.safetensors b/weights.safetensors").exit_code, 0);
  EXPECT_NE(read("a/metrics.jsonl").find("validation_loss"), std::string::npos);
  const auto metrics = read("a/metrics.jsonl");
  const auto first = nlohmann::json::parse(metrics.substr(0, metrics.find('\n')));
  EXPECT_NEAR(first.at("loss"), std::log(257.0), 0.1) << "a uniform guess at first";
  expect_refused("troupe generate a/weights.safetensors --prompt In", "holds a BERT");
}

TEST_F(Command, EqualBitsMakeEqualWeightFilesWhateverTheGridWas) {
  ASSERT_EQ(shell("troupe train run.toml --set run.output=a --set parallel.pipeline=1").exit_code,
            0);
  ASSERT_EQ(shell("troupe train run.toml --set run.output=b --set parallel.pipeline=4 "
                  "--set schedule.name=gpipe --set schedule.split_backward=true")
                .exit_code,
            0);
  ASSERT_EQ(shell("troupe train run.toml --set run.output=c --set parallel.pipeline=2 "
                  "--set schedule.name=interleaved-1f1b --set schedule.chunks=2")
                .exit_code,
            0);
  EXPECT_EQ(shell("cmp a/weights.safetensors b/weights.safetensors").exit_code, 0);
  EXPECT_EQ(shell("cmp a/weights.safetensors c/weights.safetensors").exit_code, 0);
}

TEST_F(Command, TheConfigurationAsRunRunsAgain) {
  ASSERT_EQ(shell("troupe train run.toml --set run.output=a").exit_code, 0);
  ASSERT_EQ(shell("troupe train a/config.toml --set run.output=b").exit_code, 0);
  EXPECT_EQ(shell("cmp a/weights.safetensors b/weights.safetensors").exit_code, 0);
}

TEST_F(Command, AScheduleFileTrainsLikeTheScheduleItWasWrittenFrom) {
  ASSERT_EQ(shell("troupe schedule 1f1b --stages 2 --microbatches 4 --format csv >s.csv").exit_code,
            0);
  ASSERT_EQ(shell("troupe train run.toml --set run.output=a").exit_code, 0);
  ASSERT_EQ(shell("troupe train run.toml --set run.output=b --set schedule.name=s.csv").exit_code,
            0);
  EXPECT_EQ(shell("cmp a/weights.safetensors b/weights.safetensors").exit_code, 0);
}

TEST_F(Command, AScheduleFileWithSendsAndReceivesTrainsLikeOneWithout) {
  const std::string line = "troupe schedule 1f1b --stages 2 --microbatches 4 --format csv-comms";
  ASSERT_EQ(shell(line + " >s.csv").exit_code, 0);
  EXPECT_TRUE(read("s.csv").starts_with("0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,"))
      << read("s.csv");
  ASSERT_EQ(shell("troupe train run.toml --set run.output=a").exit_code, 0);
  ASSERT_EQ(shell("troupe train run.toml --set run.output=b --set schedule.name=s.csv").exit_code,
            0);
  EXPECT_EQ(shell("cmp a/weights.safetensors b/weights.safetensors").exit_code, 0);
  EXPECT_EQ(shell("troupe schedule s.csv --format csv-comms | cmp - s.csv").exit_code, 0);
  EXPECT_EQ(shell("troupe schedule s.csv --matching ordered --format csv >c.csv").exit_code, 0);
  EXPECT_EQ(shell("troupe schedule 1f1b --stages 2 --microbatches 4 --format csv | cmp - c.csv")
                .exit_code,
            0);
}

TEST_F(Command, WhatAProcessorCannotOffloadIsPlannedAndRefused) {
  const std::string sentence =
      "train.offload: \"activations\" moves them from the device to host memory, but run.device = "
      "\"cpu\" computes in host memory; set \"none\"";
  const std::string set =
      " run.toml --set train.offload=activations schedule.name=gpipe schedule.microbatches=4";
  expect_refused("troupe train" + set, sentence);
  expect_refused("troupe train" + set + " --processes 2", sentence);
  const auto planned = shell("troupe plan" + set);
  EXPECT_EQ(planned.exit_code, 2);
  for (const auto& part :
       {std::string{"offloaded slots"},
        std::string{"of it in page-locked host memory; a training step copies at most"},
        sentence}) {
    EXPECT_NE(planned.output.find(part), std::string::npos) << planned.output;
  }
  EXPECT_EQ(planned.output.find("predicted"), std::string::npos) << planned.output;
}

class CommandStoppedBy : public Command, public testing::WithParamInterface<int> {};

INSTANTIATE_TEST_SUITE_P(Signals, CommandStoppedBy, testing::Values(SIGINT, SIGTERM),
                         [](const auto& test) { return test.param == SIGINT ? "int" : "term"; });

TEST_P(CommandStoppedBy, FinishesTheStepAndWritesTheWeights) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const auto child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    if (chdir(folder_.c_str()) != 0) std::_Exit(127);
    execl(TROUPE_COMMAND, "troupe", "train", "run.toml", "--set", "train.steps=100000", nullptr);
    std::_Exit(127);
  }
  close(ends[1]);
  std::string output;
  bool was_interrupted = false;
  std::array<char, 4096> buffer;
  for (ssize_t count = 0; (count = ::read(ends[0], buffer.data(), buffer.size())) > 0;) {
    output.append(buffer.data(), static_cast<std::size_t>(count));
    if (!was_interrupted && output.find("\nstep ") != std::string::npos) {
      was_interrupted = true;
      kill(child, GetParam());
    }
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status)) << output;
  EXPECT_EQ(WEXITSTATUS(status), 128 + GetParam()) << output;
  EXPECT_NE(output.find("interrupted: step "), std::string::npos) << output;
  EXPECT_TRUE(exists("out/weights.safetensors"));
  EXPECT_TRUE(exists("out/timeline.svg"));
}

TEST_F(Command, CompareSetsEveryRecordedStepAgainstItsSimulation) {
  ASSERT_EQ(shell("troupe train run.toml --set train.steps=10 parallel.data=2").exit_code, 0);
  const auto outcome = shell("troupe compare out --svg c.svg --html c.html");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const auto* words :
       {"out: step 10 of 1f1b, 2 stages, 4 microbatches; simulated with each pass as long as its "
        "mean over 8 steps\n",
        "\nreplica 1 rank 1  ", "\ntime by cause in ms, measured (simulated)\n",
        "\nthe step took "}) {
    EXPECT_NE(outcome.output.find(words), std::string::npos) << words << "\n" << outcome.output;
  }
  EXPECT_NE(read("c.svg").find("measured, step 10"), std::string::npos);
  EXPECT_NE(read("c.html").find("\nthe step took "), std::string::npos);

  for (int step = 3; step <= 10; ++step) {
    const auto said = shell("troupe compare out --json --passes 5 --step " + std::to_string(step));
    ASSERT_EQ(said.exit_code, 0) << said.output;
    const auto json = nlohmann::json::parse(said.output);
    EXPECT_EQ(json.at("step"), step);
    EXPECT_EQ(json.at("passes").size(), 5U);
    EXPECT_EQ(json.at("ranks").size(), 4U);
    std::int64_t excess_ns = 0;
    for (const auto& delay : json.at("delays")) {
      excess_ns += delay.at("excess_ns").get<std::int64_t>();
    }
    EXPECT_EQ(excess_ns, json.at("measured_ns").get<std::int64_t>()
                             - json.at("simulated_ns").get<std::int64_t>());
  }
}

TEST_F(Command, GenerateContinuesThePromptTheSameWayForTheSameSeed) {
  ASSERT_EQ(shell("troupe train run.toml").exit_code, 0);
  const std::string line =
      "troupe generate out/weights.safetensors --prompt \"In the\" --tokens 40";
  const auto first = shell(line);
  EXPECT_EQ(first.exit_code, 0) << first.output;
  EXPECT_TRUE(first.output.starts_with("In the")) << first.output;
  EXPECT_EQ(shell(line).output, first.output);
  EXPECT_NE(shell(line + " --seed 2").output, first.output);
}

TEST_F(Command, PlanListsEveryHolderOfMemory) {
  const auto outcome = shell("troupe plan run.toml --set schedule.layers_per_stage=[2,2]");
  EXPECT_EQ(outcome.exit_code, 0);
  for (const auto* words :
       {"2 pipeline ranks", "embedding, layers 0-1", "layers 2-3, head", "parameters", "gradients",
        "optimizer state", "slots", "predicted step", "predicted bubble"}) {
    EXPECT_NE(outcome.output.find(words), std::string::npos) << words << "\n" << outcome.output;
  }
}

TEST_F(Command, PlanSpeaksOfOneThingInTheSingular) {
  const auto outcome = shell(
      "troupe plan run.toml --set parallel.pipeline=1 --set schedule.microbatches=1 "
      "--set schedule.microbatch_size=1");
  EXPECT_EQ(outcome.exit_code, 0);
  for (const auto* line :
       {"1 replica x 1 shard x 1 pipeline rank = 1 actor\n",
        ", 1 stage, 1 microbatch of 1 sequence; ", " for a layer, 1 actor at once"}) {
    EXPECT_NE(outcome.output.find(line), std::string::npos) << line << outcome.output;
  }
}

TEST_F(Command, ScheduleShowsItselfInFourForms) {
  EXPECT_NE(shell("troupe schedule 1f1b --stages 3 --microbatches 4").output.find("bubble 33.3%"),
            std::string::npos);
  EXPECT_TRUE(shell("troupe schedule gpipe --stages 2 --microbatches 1 --format csv")
                  .output.starts_with("0F0"));
  EXPECT_NE(
      shell("troupe schedule interleaved-1f1b --stages 2 --microbatches 4 --chunks 2 --format svg")
          .output.find("</svg>"),
      std::string::npos);
  const auto page = shell("troupe schedule 1f1b --stages 3 --microbatches 4 --format html").output;
  EXPECT_TRUE(page.starts_with("<!DOCTYPE html>")) << page;
  EXPECT_NE(page.find("bubble 33.3% of the time, 50.0% of the work"), std::string::npos) << page;
  EXPECT_NE(page.find("rank 2: idle 6 units, holds at most 1 set of activations"),
            std::string::npos)
      << page;
}

TEST_F(Command, HelpNamesEveryCommandAndTheExitCodes) {
  const auto help = shell("troupe --help");
  EXPECT_EQ(help.exit_code, 0);
  for (const auto* word : {"train", "plan", "schedule", "compare", "generate", "Exit codes"}) {
    EXPECT_NE(help.output.find(word), std::string::npos) << word;
  }
  for (const auto* command : {"train", "plan", "schedule", "compare", "generate"}) {
    EXPECT_EQ(shell(std::string{"troupe "} + command + " --help").exit_code, 0);
  }
}

TEST_F(Command, OverridesMayStandBeforeTheConfigurationOrBehindIt) {
  const auto before = shell("troupe plan --set model.layers=3 schedule.microbatches=5 run.toml");
  EXPECT_EQ(before.exit_code, 0) << before.output;
  EXPECT_NE(before.output.find("3 layers"), std::string::npos);
  EXPECT_NE(before.output.find("5 microbatches"), std::string::npos);
  const auto behind =
      shell("troupe plan run.toml --set model.layers=3 --set schedule.microbatches=5");
  EXPECT_NE(behind.output.find("3 layers"), std::string::npos);
  EXPECT_NE(behind.output.find("5 microbatches"), std::string::npos);
}

// -- what it refuses ------------------------------------------------------------------------------

TEST_F(Command, RefusesABadCommandLine) {
  expect_refused("troupe", "subcommand");
  expect_refused("troupe train", "CONFIG is required");
  expect_refused("troupe train run.toml --sett a=b", "--sett");
  expect_refused("troupe schedule 1f1b", "--stages and --microbatches");
  expect_refused("troupe schedule 2f2b --stages 2 --microbatches 2", "2f2b");
}

TEST_F(Command, RefusesABadConfiguration) {
  expect_refused("troupe train none.toml", "none.toml");
  write("broken.toml", "[model\nlayers = 4\n");
  expect_refused("troupe train broken.toml", "broken.toml:1");
  write("misspelt.toml", "[model]\nlayer = 4\n");
  expect_refused("troupe train misspelt.toml", "layers");
  write("typed.toml", "[model]\nlayers = \"six\"\n");
  expect_refused("troupe train typed.toml", "typed.toml:2");
  expect_refused("troupe train run.toml --set train.stepz=3", "train.steps");
  expect_refused("troupe train run.toml --set model.layers=1", "layers");
  expect_refused("troupe train run.toml --set model.heads=3", "heads");
  expect_refused("troupe train run.toml --set model.family=bert", "at least 257");
  expect_refused("troupe train run.toml --set model.family=custom", "a file cannot hold one");
  expect_refused("troupe train run.toml --set parallel.tensor=3", "tensor");
  expect_refused("troupe train run.toml --set parallel.tensor=[1,3]",
                 "3 shards of pipeline rank 1 cannot share out model.heads = 2");
  expect_refused(
      "troupe train run.toml --set schedule.name=dualpipe "
      "--set schedule.microbatches=5",
      "use 6, or dualpipev");
}

TEST_F(Command, RefusesAModelThatDoesNotFitIntoMemory) {
  const std::string vast = " --set model.hidden=32768 model.layers=64";
  expect_refused("troupe train run.toml" + vast, "the run needs ");
  expect_refused("troupe train run.toml" + vast, " of it for pipeline rank 0, and ");
  expect_refused("troupe train run.toml --processes 2" + vast, "nodes 0 and 1 need ");
}

TEST_F(Command, RefusesABadCorpus) {
  expect_refused("troupe train run.toml --set data.text=none.txt", "none.txt");
  write("empty.txt", "");
  expect_refused("troupe train run.toml --set data.text=empty.txt", "empty");
  write("short.txt", "In the beginning");
  expect_refused("troupe train run.toml --set data.text=short.txt", "short.txt");
  expect_refused("troupe train run.toml --set data.text=.", "data.text");
}

TEST_F(Command, RefusesABadScheduleFile) {
  const std::string line = "troupe train run.toml --set schedule.name=s.csv";
  const std::string first = "0F0,0F1,0B0,0F2,0B1,0F3,0B2,0B3\n";
  write("s.csv", first + "1F0,1B0,1F1,1B1,1F2,1B2,1F3\n");
  expect_refused(line, "s.csv: ");
  expect_refused(line, "rank 1 never runs 1B3");
  expect_refused("troupe schedule s.csv", "s.csv: ");
  write("s.csv", first + "1F0,1B0,1F1,1B1,1F2,1B2,1F3,1B3,1B3\n");
  expect_refused(line, ">1B3<");
  write("s.csv", "0F0,0B0,0F1,0F2,0B1,0F3,0B2,0B3\n1F0,1F1,1B0,1B1,1F2,1B2,1F3,1B3\n");
  expect_refused(line, ">0B0<");
  write("s.csv", "0F0,zero\n");
  expect_refused(line, "zero");
  expect_refused("troupe schedule none.csv", "none.csv");
}

TEST_F(Command, RefusesAScheduleFileWhoseSendsAndReceivesDoNotFit) {
  write("s.csv", "0F0,0SEND_F0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n");
  expect_refused("troupe schedule s.csv", ">0B0<");
  expect_refused("troupe train run.toml --set schedule.name=s.csv", "0RECV_B0");
  write("s.csv",
        "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
        "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n");
  EXPECT_EQ(shell("troupe schedule s.csv").exit_code, 0) << "tags tell the transfers apart";
  expect_refused("troupe schedule s.csv --matching ordered", ">0SEND_F1<");
}

TEST_F(Command, DrawsHowFarARefusedScheduleFileGets) {
  write("s.csv", "0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n");
  const std::string line = "troupe schedule s.csv --counterexample ";
  expect_refused(line + "stuck.txt", "stuck.txt shows how far it gets");
  EXPECT_EQ(read("stuck.txt"),
            "rank 0: 0F0 >0B0< waits for 1B0----\n"
            "rank 1: .   1F0 >1F1< waits for 0F1\n");
  expect_refused(line + "stuck.svg", "deadlock");
  EXPECT_NE(read("stuck.svg").find("&gt;1F1&lt; waits for 0F1"), std::string::npos);
  expect_refused(line + "none/stuck.svg", "none/stuck.svg");
  write("s.csv", "0F0,0B0,0B7\n");
  expect_refused(line + "other.svg", "too broken to be drawn");
  EXPECT_FALSE(exists("other.svg"));
}

TEST_F(Command, RefusesAScheduleThatNeedsMoreSlotsThanThereAre) {
  const std::string line = "troupe schedule gpipe --stages 2 --microbatches 4 --slots-max ";
  EXPECT_EQ(shell(line + "4").exit_code, 0);
  expect_refused(line + "3", "gpipe: memory: rank 0 runs 0F3");
}

TEST_F(Command, RefusesAnOutputFolderItCannotWrite) {
  write("file", "");
  expect_refused("troupe train run.toml --set run.output=file/out", "file/out");
}

TEST_F(Command, ARunThatDivergesKeepsTheWeightsOfTheStepBefore) {
  const auto outcome = shell(
      "troupe train run.toml --set train.learning_rate=1000 --set train.warmup_steps=0 "
      "--set train.clip_norm=0 --set train.optimizer=sgd --set train.steps=50");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_NE(outcome.output.find("lower train.learning_rate"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("the weights before it are in out/weights.safetensors"),
            std::string::npos)
      << outcome.output;
  EXPECT_TRUE(exists("out/weights.safetensors"));
}

TEST_F(Command, AFullDiskEndsTheRunWithASentenceAndNoPartOfAFile) {
  const auto outcome = shell("ulimit -f 16; troupe train run.toml");
  EXPECT_EQ(outcome.exit_code, 2) << outcome.output;
  EXPECT_NE(outcome.output.find("weights.safetensors"), std::string::npos) << outcome.output;
  std::size_t file_count = 0;
  for (const auto& entry : fs::directory_iterator{folder_ / "out"}) {
    const auto name = entry.path().filename().string();
    EXPECT_TRUE(name == "config.toml" || name == "metrics.jsonl") << name;
    ++file_count;
  }
  EXPECT_EQ(file_count, 2U);
}

TEST_F(Command, ARunThatFailsStandsBesideNoFileOfTheRunBefore) {
  ASSERT_EQ(shell("troupe train run.toml && cp -r out first").exit_code, 0);
  const auto failed = shell("ulimit -f 16; troupe train run.toml --set train.seed=2");
  EXPECT_EQ(failed.exit_code, 2) << failed.output;
  EXPECT_NE(failed.output.find("the earlier run in out is now in out/earlier-1\n"),
            std::string::npos)
      << failed.output;
  EXPECT_EQ(shell("ls out").output, "config.toml\nearlier-1\nmetrics.jsonl\n");
  EXPECT_EQ(shell("diff -r first out/earlier-1").output, "") << "nothing of the first is lost";
  EXPECT_NE(read("out/config.toml"), read("first/config.toml"));

  ASSERT_EQ(shell("cp -r out second && troupe train run.toml").exit_code, 0);
  EXPECT_EQ(shell("cmp first/weights.safetensors out/weights.safetensors").exit_code, 0);
  EXPECT_EQ(shell("diff -r first out/earlier-1").output, "");
  EXPECT_EQ(shell("cmp second/metrics.jsonl out/earlier-2/metrics.jsonl").exit_code, 0);
  EXPECT_EQ(shell("ls out/earlier-2").output, "config.toml\nmetrics.jsonl\n");
}

TEST_F(Command, ARefusedRunLeavesTheRunBeforeInItsPlace) {
  ASSERT_EQ(shell("troupe train run.toml && cp -r out first").exit_code, 0);
  EXPECT_EQ(shell("troupe train run.toml --set data.text=none.txt").exit_code, 2);
  EXPECT_EQ(shell("diff -r first out").output, "");
}

TEST_F(Command, RefusesToCompareWhatIsNoRun) {
  expect_refused("troupe compare", "RUN is required");
  expect_refused("troupe compare none", "none/steps.jsonl");
  fs::create_directories(folder_ / "run");
  write("run/steps.jsonl", "{\"schedule\":\"x\",\"csv\":\"0F0,0B0\"}\n{\"step\":\"one\"}\n");
  expect_refused("troupe compare run",
                 "run/steps.jsonl:2: step: found \"one\", expected a whole number from 1 to ");
  ASSERT_EQ(shell("troupe train run.toml --set run.output=trained").exit_code, 0);
  expect_refused("troupe compare trained --step 7",
                 "--step 7: trained/steps.jsonl has the steps 1 2 3 4 5 6");
  expect_refused("troupe compare trained --svg no/c.svg", "no/c.svg");
}

TEST_F(Command, RefusesWeightsThatAreNone) {
  write("w.safetensors", "not a tensor in sight");
  expect_refused("troupe generate w.safetensors --prompt a", "w.safetensors");
  expect_refused("troupe generate none.safetensors --prompt a", "none.safetensors");
}

}  // namespace
}  // namespace troupe::cli
