#include "troupe/engine/config.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/nearest.hpp"

namespace troupe {
namespace {

constexpr std::string_view complete = R"([model]
family = "gpt2"
layers = 6
heads = 6
hidden = 384
sequence = 256
tie_embeddings = false
[parallel]
data = 2
tensor = 1
pipeline = 3
[schedule]
name = "interleaved-1f1b"
microbatches = 9
microbatch_size = 5
chunks = 2
split_backward = true
layers_per_stage = [1, 1, 1, 1, 1, 1]
[train]
steps = 301
seed = 7
optimizer = "sgd"
learning_rate = 1e-3
learning_rate_schedule = "inverse_sqrt"
warmup_steps = 21
clip_norm = 1
[data]
text = "kjv.txt"
tokenizer = "bytes"
validation_fraction = 0.05
fingerprint = "4 bytes"
[run]
device = "cpu"
threads_per_stage = 2
output = "runs/kjv"
link_delay_us = 250
)";

using Overrides = std::vector<std::string>;

Config parsed(std::string_view text, const Overrides& overrides = {}) {
  const auto config = parse_config(text, "run.toml", overrides);
  EXPECT_TRUE(config) << (config ? "" : config.error().context);
  return config ? *config : Config{};
}

std::string refusal(std::string_view text, const Overrides& overrides = {}) {
  const auto config = parse_config(text, "run.toml", overrides);
  if (config) return "accepted";
  EXPECT_EQ(config.error().code, Errc::invalid_config);
  EXPECT_EQ(config.error().context.find('\n'), std::string::npos) << "more than one line";
  return config.error().context;
}

std::string override_refusal(const std::string& assignment) {
  return refusal("", {assignment});
}

Config trainable() {
  Config config;
  config.data.text = "kjv.txt";
  return config;
}

std::string invalidity(const Config& config) {
  const auto valid = validate(config);
  if (valid) return "valid";
  EXPECT_EQ(valid.error().code, Errc::invalid_config);
  return valid.error().context;
}

TEST(Config, EveryKeyReachesItsField) {
  const auto config = parsed(complete);
  EXPECT_EQ(config.model,
            (ModelSpec{.layers = 6, .heads = 6, .hidden = 384, .tie_embeddings = false}));
  EXPECT_EQ(config.parallel, (GridExtent{.data = 2, .tensor = 1, .pipeline = 3}));
  EXPECT_EQ(config.schedule, (ScheduleConfig{.name = "interleaved-1f1b",
                                             .microbatches = 9,
                                             .microbatch_size = 5,
                                             .chunks = 2,
                                             .split_backward = true,
                                             .layers_per_stage = {1, 1, 1, 1, 1, 1}}));
  TrainConfig train{.steps = 301, .seed = 7, .optimizer = OptimizerKind::sgd};
  train.warmup_steps = 21;
  train.learning_rate_schedule = LearningRateSchedule::inverse_sqrt;
  EXPECT_EQ(config.train, train);
  EXPECT_EQ(config.data, (DataConfig{.text = "kjv.txt", .fingerprint = "4 bytes"}));
  EXPECT_EQ(config.run,
            (RunConfig{.threads_per_stage = 2, .output = "runs/kjv", .link_delay_us = 250}));
}

TEST(Config, ShardsAreANumberOrOneForEachRank) {
  EXPECT_EQ(parsed("[parallel]\ntensor = 2").parallel.tensor, ShardCounts{2});
  EXPECT_EQ(parsed("[parallel]\ntensor = [2]").parallel.tensor, ShardCounts{2});
  const auto listed = parsed("[parallel]\ntensor = [2, 1]\npipeline = 2");
  EXPECT_EQ(listed.parallel.tensor, (ShardCounts{2, 1}));
  EXPECT_EQ(parsed(to_toml(listed)), listed);
  EXPECT_EQ(refusal("[parallel]\ntensor = []"),
            "run.toml:2: parallel.tensor: expected at least one integer, found none");
  EXPECT_EQ(refusal("[parallel]\ntensor = [2, 0]"),
            "run.toml:2: parallel.tensor: expected an integer from 1 to 1024, found 0");
  EXPECT_EQ(refusal("[parallel]\ntensor = \"two\""),
            "run.toml:2: parallel.tensor: expected an integer or an array of integers, found the "
            "string \"two\"");
}

TEST(Config, NoKeysAreTheDefaults) {
  EXPECT_EQ(parsed(""), Config{});
}

TEST(Config, WrittenOutReadsBackEqual) {
  EXPECT_EQ(parsed(to_toml(Config{})), Config{});
  auto config = parsed(complete);
  config.model = {.layers = 7, .heads = 3, .hidden = 9, .sequence = 5, .vocabulary = 300};
  config.train = {.steps = 1,
                  .seed = (1ULL << 63U) - 1,
                  .optimizer = OptimizerKind::adamw,
                  .learning_rate = 0.1 + 0.2,
                  .min_learning_rate = std::numeric_limits<double>::denorm_min(),
                  .warmup_steps = 0,
                  .clip_norm = 3,
                  .weight_decay = 1.0 / 3,
                  .beta1 = 0,
                  .beta2 = 0.999'998,
                  .epsilon = 1e-30,
                  .momentum = 0.3,
                  .precision = Precision::fp16,
                  .loss_scale = 1024.0,
                  .loss_scale_interval = 7,
                  .gradient_wire = WireFormat::bf16,
                  .validation_interval = 0,
                  .validation_batches = 17};
  config.model.family = Family::bert;
  config.model.task = Task::classification;
  config.model.classes = 4;
  config.model.norm_epsilon = 1e-12;
  config.model.dropout = 0.1;
  config.model.attention_dropout = 1.0 / 7;
  config.data.text = "a \"quoted\" back\\slash \xc3\xa9\xf0\x9f\x8e\xad = # [x]";
  EXPECT_EQ(parsed(to_toml(config)), config);
}

TEST(Config, WrittenOutNamesEveryKeyOnce) {
  const auto text = to_toml(Config{});
  for (const auto* line : {"[model]\n", "family = \"gpt2\"\n", "learning_rate = 0.001\n",
                           "clip_norm = 1.0\n", "layers_per_stage = []\n", "seed = 1\n",
                           "tie_embeddings = true\n", "\n[run]\n", "output = \"runs/default\"\n"}) {
    const auto at = text.find(line);
    ASSERT_NE(at, std::string::npos) << line << "is missing in\n" << text;
    EXPECT_EQ(text.find(line, at + 1), std::string::npos) << line << "occurs twice";
  }
}

TEST(Config, UnknownKeysAreNamedWithLineAndNearestKey) {
  EXPECT_EQ(refusal("[train]\nsteps = 3\nlerning_rate = 1.0"),
            "run.toml:3: unknown key \"train.lerning_rate\"; the nearest known key is "
            "train.learning_rate");
  EXPECT_EQ(refusal("[train]\nmicrobatches = 3"),
            "run.toml:2: unknown key \"train.microbatches\"; the nearest known key is "
            "schedule.microbatches");
  EXPECT_EQ(refusal("[model]\nsteps = 3"),
            "run.toml:2: unknown key \"model.steps\"; the nearest known key is train.steps");
  EXPECT_EQ(refusal("\n[modle]\nlayers = 3"),
            "run.toml:2: unknown table \"modle\"; the nearest known one is [model]");
  EXPECT_EQ(refusal("layers = 3"),
            "run.toml:1: unknown key \"layers\"; the nearest known key is model.layers");
  EXPECT_EQ(refusal("[model]\n\"la\\nyers\" = 3"),
            "run.toml:2: unknown key \"model.la\\u000ayers\"; the nearest known key is "
            "model.layers");
}

TEST(Config, WrongTypesAreNamedWithWhatWasFound) {
  EXPECT_EQ(refusal("[model]\nlayers = \"six\""),
            "run.toml:2: model.layers: expected an integer, found the string \"six\"");
  EXPECT_EQ(refusal("[model]\nlayers = 6.0"),
            "run.toml:2: model.layers: expected an integer, found the number 6.0");
  EXPECT_EQ(refusal("[model]\ntie_embeddings = 1"),
            "run.toml:2: model.tie_embeddings: expected true or false, found the integer 1");
  EXPECT_EQ(refusal("[train]\nlearning_rate = true"),
            "run.toml:2: train.learning_rate: expected a number, found true");
  EXPECT_EQ(refusal("[data]\ntext = 2026-01-01"),
            "run.toml:2: data.text: expected a string, found a date or time");
  EXPECT_EQ(refusal("[schedule]\nlayers_per_stage = 3"),
            "run.toml:2: schedule.layers_per_stage: expected an array of integers, found the "
            "integer 3");
  EXPECT_EQ(refusal("[schedule]\nlayers_per_stage = [3,\n \"x\"]"),
            "run.toml:2: schedule.layers_per_stage: expected an integer, found the string \"x\"");
  EXPECT_EQ(refusal("model = 3"), "run.toml:1: model: expected a table, found the integer 3");
  EXPECT_EQ(refusal("[[train]]\nsteps = 3"), "run.toml:1: train: expected a table, found an array");
  EXPECT_EQ(refusal("[train]\nsteps = {}"),
            "run.toml:2: train.steps: expected an integer, found a table");
}

TEST(Config, NumbersOutOfRangeAreNamedWithTheRange) {
  EXPECT_EQ(refusal("[model]\nlayers = 0"),
            "run.toml:2: model.layers: expected an integer from 1 to 1024, found 0");
  EXPECT_EQ(refusal("[train]\nseed = -1"),
            "run.toml:2: train.seed: expected an integer from 0 to 9223372036854775807, found -1");
  EXPECT_EQ(refusal("[train]\nsteps = 4294967297"),
            "run.toml:2: train.steps: expected an integer from 1 to 1000000000, found 4294967297");
  EXPECT_EQ(refusal("[train]\nbeta1 = nan"),
            "run.toml:2: train.beta1: expected a number from 0.0 to 0.999999, found nan");
  EXPECT_EQ(refusal("[data]\nvalidation_fraction = 0.51"),
            "run.toml:2: data.validation_fraction: expected a number from 0.0 to 0.5, found 0.51");
  EXPECT_EQ(refusal("[schedule]\nlayers_per_stage = [3, 0]"),
            "run.toml:2: schedule.layers_per_stage: expected an integer from 1 to 1024, found 0");
  EXPECT_EQ(refusal("[data]\ntext = \"a\\u0000b\""),
            "run.toml:2: data.text: expected text without control characters, found \"a\\u0000b\"");
}

TEST(Config, UnknownNamesAreAnsweredWithTheNearest) {
  EXPECT_EQ(refusal("[train]\noptimizer = \"sdg\""),
            "run.toml:2: train.optimizer: unknown name \"sdg\"; the nearest known one is "
            "\"sgd\"");
  EXPECT_EQ(refusal("[model]\nfamily = \"gpt3\""),
            "run.toml:2: model.family: unknown name \"gpt3\"; the nearest known one is \"gpt2\"");
}

TEST(Config, BrokenTomlIsNamedWithItsLine) {
  EXPECT_EQ(refusal("[model]\nlayers = ").substr(0, 33), "run.toml:2: not valid TOML: Error");
  EXPECT_EQ(refusal("[model]\n\nlayers = 3\nlayers = 4").substr(0, 27),
            "run.toml:4: not valid TOML:");
  EXPECT_EQ(refusal("a = \"\xff\xfe\"").substr(0, 27), "run.toml:1: not valid TOML:");
  EXPECT_EQ(refusal("l\xc3\xa9 = 1").substr(0, 27), "run.toml:1: not valid TOML:");
  EXPECT_NE(refusal(std::string(100'000, '[')), "accepted");
}

TEST(Config, OverridesApplyInOrderOverTheText) {
  const auto config = parsed(complete, {"train.steps=10", "data.text = other.txt", "run.output=42",
                                        "train.steps=11", "schedule.layers_per_stage=[3, 2]",
                                        "train.optimizer=adamw", "model.tie_embeddings=true",
                                        "schedule.name=\"1f1b\"", "train.learning_rate=2e-4"});
  EXPECT_EQ(config.train.steps, 11U);
  EXPECT_EQ(config.data.text, "other.txt");
  EXPECT_EQ(config.run.output, "42");
  EXPECT_EQ(config.schedule.layers_per_stage, (std::vector<std::uint32_t>{3, 2}));
  EXPECT_EQ(config.train.optimizer, OptimizerKind::adamw);
  EXPECT_TRUE(config.model.tie_embeddings);
  EXPECT_EQ(config.schedule.name, "1f1b");
  EXPECT_EQ(config.train.learning_rate, 2e-4);
  EXPECT_EQ(parsed("", {"schedule.name=1f1b"}).schedule.name, "1f1b");
  EXPECT_EQ(parsed("", {"data.text=a=b"}).data.text, "a=b");
  EXPECT_EQ(parsed("", {"data.text="}).data.text, "");
}

TEST(Config, WrongOverridesAreNamed) {
  EXPECT_EQ(override_refusal("train.step=10"),
            "override \"train.step=10\": unknown key \"train.step\"; the nearest known key is "
            "train.steps");
  EXPECT_EQ(override_refusal("steps=10"),
            "override \"steps=10\": unknown key \"steps\"; the nearest known key is train.steps");
  EXPECT_EQ(override_refusal("train.steps=ten"),
            "override \"train.steps=ten\": train.steps: expected an integer, found the string "
            "\"ten\"");
  EXPECT_EQ(override_refusal("train.steps"),
            "override \"train.steps\": expected key=value, for example train.steps=10");
  EXPECT_EQ(override_refusal("train.steps=1\nother=2"),
            "override \"train.steps=1\\u000aother=2\": train.steps: expected an integer, found the "
            "string \"1\\u000aother=2\"");
  EXPECT_EQ(override_refusal("=").substr(0, 28), "override \"=\": unknown key \"\"");
  EXPECT_EQ(override_refusal("data.text=\xff"),
            "override \"data.text=\xff\": the value is not valid UTF-8");
}

TEST(Config, ValidAsGivenInTheExample) {
  EXPECT_EQ(invalidity(parsed(complete)), "valid");
  EXPECT_EQ(invalidity(trainable()), "valid");
}

TEST(Config, ValidateNamesEachBrokenRule) {
  const auto with = [](const auto& change) {
    auto config = trainable();
    change(config);
    return invalidity(config);
  };
  EXPECT_EQ(with([](Config& c) { c.model.heads = 5; }),
            "model.hidden: 384 is not a multiple of model.heads = 5; the nearest multiples are 380 "
            "and 385");
  EXPECT_EQ(with([](Config& c) { c.model.heads = 500; }),
            "model.hidden: 384 is not a multiple of model.heads = 500; the nearest multiples are "
            "500");
  EXPECT_EQ(with([](Config& c) { c.schedule.microbatches = 0; }),
            "schedule.microbatches: expected an integer from 1 to 4096, found 0");
  EXPECT_EQ(with([](Config& c) { c.parallel = {.data = 2, .tensor = 4, .pipeline = 3}; }),
            "parallel.tensor: 4 shards cannot share out model.heads = 6, kv_heads = 6, "
            "feed_forward = 1536 and a vocabulary of 256; the nearest grid that works is data = 2, "
            "tensor = 3, pipeline = 3");
  EXPECT_EQ(with([](Config& c) {
              c.model.heads = 2;
              c.parallel = {.data = 1, .tensor = 4, .pipeline = 3};
            }),
            "parallel.tensor: 4 shards cannot share out model.heads = 2, kv_heads = 2, "
            "feed_forward = 1536 and a vocabulary of 256; the nearest grid that works is data = 2, "
            "tensor = 2, pipeline = 3");
  EXPECT_EQ(with([](Config& c) {
              c.parallel = {.data = 1, .tensor = {3, 1}, .pipeline = 2};
            }),
            "valid");
  EXPECT_EQ(with([](Config& c) {
              c.parallel = {.data = 1, .tensor = {3, 4}, .pipeline = 2};
            }),
            "parallel.tensor: 4 shards of pipeline rank 1 cannot share out model.heads = 6, "
            "kv_heads = 6, feed_forward = 1536 and a vocabulary of 256; the nearest number that "
            "works is 3");
  EXPECT_EQ(
      with([](Config& c) {
        c.parallel = {.data = 1, .tensor = {3, 1}, .pipeline = 3};
      }),
      "parallel.tensor: 2 numbers of shards are listed, expected one for all, or one for each "
      "of the ranks of parallel.pipeline = 3");
  EXPECT_EQ(with([](Config& c) {
              c.parallel = {.data = 1, .tensor = {3, 0}, .pipeline = 2};
            }),
            "parallel.tensor: expected an integer from 1 to 1024, found 0");
  EXPECT_EQ(with([](Config& c) { c.parallel.tensor.by_rank.clear(); }),
            "parallel.tensor: expected at least one integer, found none");
  EXPECT_EQ(
      with([](Config& c) {
        c.parallel.tensor = 2;
        c.model.heads = 2;
        c.model.sequence = 3;
        c.schedule.microbatch_size = 1;
        c.train.sequence_parallel = true;
      }),
      "train.sequence_parallel: parallel.tensor = 2 shards cannot share out the 3 tokens of a "
      "microbatch, schedule.microbatch_size times model.sequence; make it a multiple");
  EXPECT_EQ(with([](Config& c) {
              c.parallel.tensor = 2;
              c.model.heads = 2;
              c.model.hidden = 18;
              c.model.sequence = 4;
              c.schedule.microbatch_size = 1;
              c.train.sequence_parallel = true;
            }),
            "train.sequence_parallel: the 2 tokens of a shard, model.hidden = 18 wide, do not fill "
            "whole cache lines of 16 numbers; make model.hidden a multiple of it");
  EXPECT_EQ(
      with([](Config& c) {
        c.train.optimizer = OptimizerKind::adafactor;
        c.train.optimizer_sharding = OptimizerSharding::zero1;
      }),
      "train.optimizer_sharding: the state of train.optimizer = \"adafactor\" consists of sums "
      "over whole rows and columns, which are small and are not divided; set \"none\"");
  EXPECT_EQ(with([](Config& c) {
              c.parallel.data = 1;
              c.train.synchronization = Synchronization::parameter_server;
            }),
            "train.synchronization: \"parameter_server\", but parallel.data = 1 replica has nobody "
            "to be synchronized with; set \"all_reduce\", or parallel.data to at least 2");
  EXPECT_EQ(
      with([](Config& c) {
        c.parallel.data = 2;
        c.train.synchronization = Synchronization::parameter_server;
        c.train.optimizer_sharding = OptimizerSharding::zero2;
      }),
      "train.optimizer_sharding: \"zero2\", but under train.synchronization = "
      "\"parameter_server\" the replicas keep no optimizer state to be divided; set \"none\"");
  EXPECT_EQ(
      with([](Config& c) { c.train.staleness = 3; }),
      "train.staleness: 3, but under train.synchronization = \"all_reduce\" no replica begins a "
      "step before all have ended the last; set 0, or \"parameter_server\"");
  EXPECT_EQ(
      with([](Config& c) {
        c.parallel.data = 2;
        c.train.synchronization = Synchronization::parameter_server;
        c.train.staleness = 1;
        c.train.precision = Precision::fp16;
      }),
      "train.staleness: 1, but in train.precision = \"fp16\" the loss scale of a step follows "
      "from the step before it; set 0, or \"bf16\" or \"fp32\"");
  EXPECT_EQ(with([](Config& c) { c.train.loss_scale = 1000.0; }),
            "train.loss_scale: 1000.0 is not a power of two; the nearest are 512.0 and 1024.0");
  EXPECT_EQ(with([](Config& c) { c.model.kv_heads = 3; }),
            "model.kv_heads: 3, but in model.family = \"gpt2\" every head has its own keys and "
            "values; leave it 0, or take model.family = \"llama\"");
  EXPECT_EQ(with([](Config& c) {
              c.model.family = Family::llama;
              c.model.kv_heads = 4;
            }),
            "model.kv_heads: 4 does not divide model.heads = 6; the next smaller number that does "
            "is 3");
  EXPECT_EQ(with([](Config& c) {
              c.model.family = Family::llama;
              c.model.hidden = 390;
            }),
            "model.hidden: 390 over model.heads = 6 gives heads of size 65, but rotary positions "
            "turn pairs of elements; the nearest values that work are 384 and 396");
  EXPECT_EQ(with([](Config& c) {
              c.model.family = Family::bert;
              c.model.kv_heads = 3;
            }),
            "model.kv_heads: 3, but in model.family = \"bert\" every head has its own keys and "
            "values; leave it 0, or take model.family = \"llama\"");
  EXPECT_EQ(with([](Config& c) { c.model.task = Task::classification; }),
            "model.task: \"classification\", but a model of model.family = \"gpt2\" tells the next "
            "token; leave it \"masked\", or take model.family = \"bert\"");
  EXPECT_EQ(
      with([](Config& c) { c.model.classes = 3; }),
      "model.classes: 3, but there is nothing to classify; leave it 0, or take model.family = "
      "\"bert\" and model.task = \"classification\"");
  const auto classifier = [&](std::uint32_t classes, bool tie) {
    return with([=](Config& c) {
      c.model.family = Family::bert;
      c.model.task = Task::classification;
      c.model.classes = classes;
      c.model.tie_embeddings = tie;
    });
  };
  EXPECT_EQ(classifier(1, false),
            "model.classes: 1, but model.task = \"classification\" needs at least 2");
  EXPECT_EQ(
      classifier(2, true),
      "model.tie_embeddings: true, but with model.task = \"classification\" no head multiplies "
      "by the embedding; set it to false");
  EXPECT_EQ(classifier(2, false), "valid");
  EXPECT_EQ(with([](Config& c) {
              c.model.family = Family::bert;
              c.parallel.tensor = 4;
            }),
            "parallel.tensor: 4 shards cannot share out model.heads = 6, kv_heads = 6, "
            "feed_forward = 1536 and a vocabulary of 256; the nearest grid that works is data = 1, "
            "tensor = 3, pipeline = 1");
  EXPECT_EQ(with([](Config& c) {
              c.parallel.pipeline = 4;
              c.schedule.chunks = 2;
            }),
            "model.layers: 6 layers cannot fill parallel.pipeline = 4 times schedule.chunks = 2, "
            "that is 8 virtual stages of at least one layer each; use fewer stages or at least 8 "
            "layers");
  EXPECT_EQ(with([](Config& c) {
              c.schedule.layers_per_stage = {3, 3};
            }),
            "schedule.layers_per_stage: 2 stages with a total of 6 layers are listed, expected 1 "
            "with a total of model.layers = 6");
  EXPECT_EQ(with([](Config& c) { c.data.tokenizer = "byte"; }),
            "data.tokenizer: unknown name \"byte\"; the nearest known one is \"bytes\"");
  EXPECT_EQ(with([](Config& c) { c.run.device = "gpu"; }),
            "run.device: unknown name \"gpu\"; the nearest known one is \"cpu\"");
  EXPECT_EQ(with([](Config& c) { c.schedule.name = "1b1f"; }),
            "schedule.name: unknown name \"1b1f\"; the nearest known one is \"1f1b\", or give the "
            "path of a .csv file");
  EXPECT_EQ(with([](Config& c) { c.schedule.name = "mine.csv"; }), "valid");
  EXPECT_EQ(with([](Config& c) { c.run.output = ""; }),
            "run.output: not set; give the path of the folder for the results");
  EXPECT_EQ(with([](Config& c) { c.model.vocabulary = 255; }),
            "model.vocabulary: 255 is too small for data.tokenizer = \"bytes\", which has 256 "
            "tokens");
  EXPECT_EQ(with([](Config& c) { c.train.min_learning_rate = 0.5; }),
            "train.min_learning_rate: 0.5 is above train.learning_rate = 0.001, from which the "
            "rate falls");
  EXPECT_EQ(with([](Config& c) { c.data.validation_fraction = -0.1; }),
            "data.validation_fraction: expected a number from 0.0 to 0.5, found -0.1");
  EXPECT_EQ(with([](Config& c) { c.run.threads_per_stage = 4'000'000'000; }),
            "run.threads_per_stage: expected an integer from 1 to 1024, found 4000000000");
  EXPECT_EQ(with([](Config& c) { c.train.seed = ~0ULL; }),
            "train.seed: expected an integer from 0 to 9223372036854775807, found "
            "18446744073709551615");
  EXPECT_EQ(with([](Config& c) { c.train.learning_rate = std::nan(""); }),
            "train.learning_rate: expected a number from 0.0 to 1000.0, found nan");
  EXPECT_EQ(with([](Config& c) {
              c.schedule.microbatch_size = 65'536;
              c.parallel.data = 1024;
            }),
            "schedule.microbatches: 8 microbatches of 65536 sequences of 256 tokens on 1024 "
            "replicas are 137438953472 tokens per step, expected at most 268435456");
  EXPECT_EQ(with([](Config& c) {
              c.schedule.microbatch_size = 4096;
              c.train.validation_batches = 1024;
            }),
            "train.validation_batches: 1024 batches of 8388608 tokens are 8589934592 per "
            "validation, expected at most 4294967296");
}

TEST(LearningRate, RisesLinearlyAndFallsAsACosine) {
  const TrainConfig train{
      .steps = 300, .learning_rate = 1e-3, .min_learning_rate = 1e-4, .warmup_steps = 20};
  EXPECT_EQ(learning_rate_at(train, 0), 0.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 1), 1e-3 / 20);
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 10), 1e-3 / 2);
  EXPECT_EQ(learning_rate_at(train, 20), 1e-3);
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 160), (1e-3 + 1e-4) / 2);
  EXPECT_NEAR(learning_rate_at(train, 90), 1e-4 + 9e-4 * (2 + std::sqrt(2.0)) / 4, 1e-15);
  EXPECT_EQ(learning_rate_at(train, 300), 1e-4);
  EXPECT_EQ(learning_rate_at({.steps = 20, .learning_rate = 1e-3, .warmup_steps = 20}, 20), 1e-3);
  for (std::uint32_t step = 20; step < 300; ++step) {
    EXPECT_GT(learning_rate_at(train, step), learning_rate_at(train, step + 1)) << step;
  }
}

TEST(LearningRate, FallsOnALineOrWithTheRootOfTheStepOrNot) {
  TrainConfig train{
      .steps = 300, .learning_rate = 1e-3, .min_learning_rate = 1e-4, .warmup_steps = 20};
  for (const auto schedule : {LearningRateSchedule::linear, LearningRateSchedule::constant,
                              LearningRateSchedule::inverse_sqrt}) {
    train.learning_rate_schedule = schedule;
    EXPECT_DOUBLE_EQ(learning_rate_at(train, 10), 1e-3 / 2);
    EXPECT_EQ(learning_rate_at(train, 20), 1e-3);
  }
  train.learning_rate_schedule = LearningRateSchedule::linear;
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 90), 1e-4 + 9e-4 * 0.75);
  EXPECT_EQ(learning_rate_at(train, 300), 1e-4);
  train.learning_rate_schedule = LearningRateSchedule::constant;
  EXPECT_EQ(learning_rate_at(train, 300), 1e-3);
  train.learning_rate_schedule = LearningRateSchedule::inverse_sqrt;
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 80), 1e-3 / 2);
  EXPECT_EQ(learning_rate_at(train, 20 * 101), 1e-4) << "not less than the minimum";
  train.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(learning_rate_at(train, 4), 1e-3 / 2);
}

TEST(LearningRate, IsFiniteForEveryStep) {
  constexpr auto last = std::numeric_limits<std::uint32_t>::max();
  for (const std::uint32_t steps : {0U, 1U, 20U, last}) {
    for (const std::uint32_t warmup : {0U, 1U, 19U, 20U, 21U, last}) {
      for (const std::uint32_t step : {0U, 1U, 19U, 20U, 21U, last - 1, last}) {
        TrainConfig train{.steps = steps, .warmup_steps = warmup};
        for (const auto schedule :
             {LearningRateSchedule::cosine, LearningRateSchedule::linear,
              LearningRateSchedule::constant, LearningRateSchedule::inverse_sqrt}) {
          train.learning_rate_schedule = schedule;
          const auto rate = learning_rate_at(train, step);
          EXPECT_TRUE(rate >= 0.0 && rate <= train.learning_rate)
              << rate << " at step " << step << " of " << steps << ", warm-up " << warmup;
        }
      }
    }
  }
}

TEST(Nearest, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(edit_distance("", ""), 0U);
  EXPECT_EQ(edit_distance("steps", "steps"), 0U);
  EXPECT_EQ(edit_distance("step", "steps"), 1U);
  EXPECT_EQ(edit_distance("stesp", "steps"), 1U);
  EXPECT_EQ(edit_distance("stops", "steps"), 1U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance(std::string(1000, 'a'), std::string(1000, 'b')), 64U);
}

TEST(Nearest, IsTheFirstAmongEquals) {
  const std::vector<std::string_view> words{"bb", "ab", "ac"};
  EXPECT_EQ(nearest("aa", words), "ab");
}

}  // namespace
}  // namespace troupe
