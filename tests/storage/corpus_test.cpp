#include "troupe/storage/corpus.hpp"

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/storage/sampler.hpp"

#include "temporary_folder.hpp"

namespace troupe::storage {
namespace {

std::vector<std::byte> random_tokens(std::size_t count) {
  std::vector<std::byte> tokens(count);
  Random random{42};
  for (auto& token : tokens) token = static_cast<std::byte>(random.below(256));
  return tokens;
}

std::string refusal(const DataConfig& data, std::uint32_t sequence) {
  const auto corpus = Corpus::open(data, sequence);
  return corpus ? "opened" : corpus.error().context;
}

TEST(TokenFile, GivesEachByteAsItsToken) {
  const TemporaryFolder folder;
  write_file(folder / "text", "A\xff\x01z");
  const auto file = TokenFile::open(folder / "text", "bytes");
  ASSERT_TRUE(file);
  ASSERT_EQ(file->tokens().token_count(), 4U);
  std::vector<std::int32_t> tokens(4);
  file->tokens().copy(0, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{65, 255, 1, 122}));
  tokens.resize(2);
  file->tokens().part(1, 4).copy(1, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{1, 122}));
}

TEST(Corpus, HoldsOutItsTail) {
  const TemporaryFolder folder;
  std::string text(100, 't');
  text.replace(90, 10, "validation");
  write_file(folder / "text", text);
  auto opened = Corpus::open({.text = folder / "text", .validation_fraction = 0.1}, 9);
  ASSERT_TRUE(opened) << opened.error().context;
  const Corpus corpus = std::move(*opened);
  EXPECT_EQ(corpus.training().token_count(), 90U);
  ASSERT_EQ(corpus.validation().token_count(), 10U);
  std::vector<std::int32_t> tokens(10);
  corpus.validation().copy(0, tokens);
  EXPECT_EQ((std::string{tokens.begin(), tokens.end()}), "validation");
  corpus.training().copy(80, tokens);
  EXPECT_EQ((std::string{tokens.begin(), tokens.end()}), "tttttttttt");
}

TEST(Corpus, WithoutAFractionHoldsNothingOut) {
  const TemporaryFolder folder;
  write_file(folder / "text", "0123456789");
  const auto corpus = Corpus::open({.text = folder / "text", .validation_fraction = 0}, 9);
  ASSERT_TRUE(corpus) << corpus.error().context;
  EXPECT_EQ(corpus->training().token_count(), 10U);
  EXPECT_EQ(corpus->validation().token_count(), 0U);
}

TEST(Corpus, SaysWhyItCannotBeOpened) {
  const TemporaryFolder folder;
  EXPECT_EQ(refusal({}, 8), "data.text: not set; give the path of the text to train on");
  EXPECT_EQ(refusal({.text = folder / "none"}, 8),
            "data.text: cannot open " + folder / "none" + ": No such file or directory");
  EXPECT_EQ(refusal({.text = folder.path()}, 8),
            "data.text: cannot read " + folder.path() + ": it is a folder, expected a file");
  write_file(folder / "empty", "");
  EXPECT_EQ(refusal({.text = folder / "empty"}, 8),
            "data.text: " + folder / "empty" + " is empty, expected a text to train on");
  EXPECT_EQ(refusal({.text = folder / "empty", .tokenizer = "bpe"}, 8),
            "data.text: unknown tokenizer \"bpe\", expected \"bytes\"");
}

TEST(Corpus, IsTheOneThatItsFingerprintAsksFor) {
  const TemporaryFolder folder;
  write_file(folder / "text", "abc");
  write_file(folder / "other", "abd");
  const std::string abc =  // FIPS 180-2, appendix B.1
      "3 bytes, SHA-256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  const DataConfig data{.text = folder / "text", .validation_fraction = 0, .fingerprint = abc};
  const auto corpus = Corpus::open(data, 2);
  ASSERT_TRUE(corpus) << corpus.error().context;
  EXPECT_EQ(corpus->fingerprint(), abc);

  auto other = data;
  other.text = folder / "other";
  const auto found = Corpus::open({.text = other.text, .validation_fraction = 0}, 2)->fingerprint();
  EXPECT_EQ(refusal(other, 2), "data.text: " + other.text + " has " + found
                                   + ", but the run trains on a text that has " + abc
                                   + "; copy that one here");
}

TEST(Corpus, TooShortSaysHowManyTokensAreNeeded) {
  const TemporaryFolder folder;
  write_file(folder / "text", std::string(100, 't'));
  EXPECT_EQ(refusal({.text = folder / "text", .validation_fraction = 0}, 100),
            "data.text: " + folder / "text"
                + " has 100 tokens, and a sample takes model.sequence + 1 = 101; give a text of at "
                  "least 101 tokens or a shorter model.sequence");
  EXPECT_EQ(refusal({.text = folder / "text", .validation_fraction = 0.05}, 8),
            "data.text: " + folder / "text"
                + " has 100 tokens, and a sample takes model.sequence + 1 = 9, but "
                  "data.validation_fraction leaves 95 to train on and holds out 5; give a text of "
                  "at least 180 tokens or a shorter model.sequence, or set "
                  "data.validation_fraction to 0");
  for (const double fraction : {0.5, 0.3, 0.07, 0.001}) {
    const auto context = refusal({.text = folder / "text", .validation_fraction = fraction}, 120);
    const auto at = context.find("at least ") + 9;
    const auto least = std::stoul(context.substr(at));
    for (const auto& [count, expected] : {std::pair{least, true}, std::pair{least - 1, false}}) {
      write_file(folder / "other", std::string(count, 't'));
      const DataConfig data{.text = folder / "other", .validation_fraction = fraction};
      EXPECT_EQ(refusal(data, 120) == "opened", expected) << count << " tokens, " << fraction;
    }
  }
}

TEST(Permutation, VisitsEachIndexOnceForEveryCountAndKey) {
  for (std::uint64_t count = 1; count <= 300; ++count) {
    for (const std::uint64_t key : {0ULL, 1ULL, 0xfeed'beef'0123'4567ULL}) {
      std::vector<bool> seen(count, false);
      for (std::uint64_t i = 0; i < count; ++i) {
        const auto at = permuted(i, count, key);
        ASSERT_LT(at, count);
        ASSERT_FALSE(seen[at]) << i << " of " << count << ", key " << key;
        seen[at] = true;
      }
    }
  }
}

TEST(Permutation, DependsOnItsKeyAndMixes) {
  constexpr std::uint64_t count = 1000;
  std::uint32_t kept = 0;
  std::uint32_t neighbours = 0;
  for (std::uint64_t i = 0; i + 1 < count; ++i) {
    kept += permuted(i, count, 1) == permuted(i, count, 2) ? 1U : 0U;
    neighbours += permuted(i, count, 1) + 1 == permuted(i + 1, count, 1) ? 1U : 0U;
  }
  EXPECT_LT(kept, 10U);
  EXPECT_LT(neighbours, 10U);
}

TEST(TrainingSampler, VisitsEachWindowOncePerEpoch) {
  for (const std::uint32_t sequence : {1U, 2U, 7U, 16U}) {
    for (const std::size_t count : {std::size_t{sequence} + 1, std::size_t{2} * sequence,
                                    std::size_t{2} * sequence + 1, std::size_t{1000}}) {
      const auto tokens = random_tokens(count);
      const TrainingSampler sampler{TokenView{tokens}, {.sequence = sequence}, 3};
      const auto windows = sampler.windows_per_epoch();
      ASSERT_GE(windows, 1U);
      ASSERT_LE(windows * sequence, count - 1);
      ASSERT_GT((windows + 2) * sequence, count - 1) << "more than two windows are left out";
      for (std::uint64_t epoch = 0; epoch < 20; ++epoch) {
        std::set<std::uint64_t> starts;
        for (std::uint64_t i = 0; i < windows; ++i) {
          starts.insert(sampler.start_of(epoch * windows + i));
        }
        ASSERT_EQ(starts.size(), windows);
        ASSERT_EQ(*starts.rbegin() - *starts.begin(), (windows - 1) * sequence);
        ASSERT_LT(*starts.rbegin() + sequence, count);
      }
    }
  }
}

TEST(TrainingSampler, DrawsAnotherOrderAndOffsetEachEpochAndSeed) {
  const auto tokens = random_tokens(10'000);
  const TrainingSampler sampler{TokenView{tokens}, {.sequence = 64}, 3};
  const TrainingSampler other{TokenView{tokens}, {.sequence = 64}, 4};
  const auto windows = sampler.windows_per_epoch();
  std::uint32_t equal = 0;
  std::set<std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < windows; ++i) {
    equal += sampler.start_of(i) == sampler.start_of(windows + i) ? 1U : 0U;
    equal += sampler.start_of(i) == other.start_of(i) ? 1U : 0U;
  }
  for (std::uint64_t epoch = 0; epoch < 200; ++epoch) {
    offsets.insert(sampler.start_of(epoch * windows) % 64);
  }
  EXPECT_LT(equal, 10U);
  EXPECT_GT(offsets.size(), 50U);
}

// All tokens of a step, then all targets, in the order of the samples' numbers.
std::vector<std::int32_t> step_of(const TrainingSampler& sampler, const BatchShape& shape,
                                  std::uint32_t step) {
  const auto size = shape.samples_per_replica() * shape.sequence;
  std::vector<std::int32_t> all(2 * shape.replicas * size);
  const std::span whole{all};
  for (std::uint32_t replica = 0; replica < shape.replicas; ++replica) {
    sampler.fill(step, replica, whole.subspan(replica * size, size),
                 whole.subspan((shape.replicas + replica) * size, size));
  }
  return all;
}

TEST(TrainingSampler, DrawsTheSameSamplesOnEveryGrid) {
  const auto tokens = random_tokens(5000);
  const BatchShape serial{.replicas = 1, .microbatches = 1, .microbatch_size = 24, .sequence = 16};
  const TrainingSampler reference{TokenView{tokens}, serial, 9};
  for (const auto& [replicas, microbatches, rows] :
       {std::tuple{1U, 24U, 1U}, std::tuple{2U, 3U, 4U}, std::tuple{4U, 6U, 1U}}) {
    const BatchShape shape{replicas, microbatches, rows, 16};
    const TrainingSampler sampler{TokenView{tokens}, shape, 9};
    for (const std::uint32_t step : {1U, 2U, 100U}) {
      EXPECT_EQ(step_of(sampler, shape, step), step_of(reference, serial, step));
    }
  }
}

TEST(TrainingSampler, PutsSampleGIntoItsReplicaMicrobatchAndRow) {
  const auto tokens = random_tokens(5000);
  const BatchShape shape{.replicas = 3, .microbatches = 4, .microbatch_size = 2, .sequence = 16};
  const TrainingSampler sampler{TokenView{tokens}, shape, 11};
  std::vector<std::int32_t> inputs(shape.samples_per_replica() * 16);
  auto targets = inputs;
  for (const std::uint32_t step : {1U, 7U}) {
    for (std::uint32_t replica = 0; replica < 3; ++replica) {
      sampler.fill(step, replica, inputs, targets);
      for (std::uint32_t microbatch = 0; microbatch < 4; ++microbatch) {
        for (std::uint32_t row = 0; row < 2; ++row) {
          const std::uint64_t g = (replica * 4 + microbatch) * 2 + row;
          const auto start = sampler.start_of((step - 1) * shape.samples_per_step() + g);
          for (std::uint32_t t = 0; t < 16; ++t) {
            const auto at = (microbatch * 2 + row) * 16 + t;
            ASSERT_EQ(inputs[at], std::to_integer<std::int32_t>(tokens[start + t]));
            ASSERT_EQ(targets[at], std::to_integer<std::int32_t>(tokens[start + t + 1]));
          }
        }
      }
    }
  }
}

TEST(ValidationSampler, SpreadsEvenlyFromTheFirstTokenToTheLast) {
  const auto tokens = random_tokens(10'001);
  const BatchShape shape{.replicas = 2, .microbatches = 5, .microbatch_size = 2, .sequence = 100};
  const ValidationSampler sampler{TokenView{tokens}, shape, 4};
  EXPECT_EQ(sampler.start_of(0), 0U);
  EXPECT_EQ(sampler.start_of(79), 9900U);
  for (std::uint64_t i = 0; i < 79; ++i) {
    const auto distance = sampler.start_of(i + 1) - sampler.start_of(i);
    EXPECT_TRUE(distance == 125 || distance == 126) << i;
  }
}

TEST(ValidationSampler, StaysWithinACorpusTooShortForItsSamples) {
  const auto tokens = random_tokens(33);
  for (const std::uint32_t sequence : {1U, 20U, 32U}) {
    for (const std::uint32_t batches : {1U, 3U, 40U}) {
      const BatchShape shape{.microbatch_size = 3, .sequence = sequence};
      const ValidationSampler sampler{TokenView{tokens}, shape, batches};
      std::vector<std::int32_t> inputs(std::size_t{3} * sequence);
      auto targets = inputs;
      for (std::uint32_t batch = 1; batch <= batches; ++batch) {
        sampler.fill(batch, 0, inputs, targets);
        const auto start = sampler.start_of((batch - 1) * 3);
        EXPECT_EQ(inputs[0], std::to_integer<std::int32_t>(tokens[start]));
        EXPECT_EQ(targets[0], std::to_integer<std::int32_t>(tokens[start + 1]));
      }
      EXPECT_EQ(sampler.start_of(batches * 3 - 1), 32 - sequence);
    }
  }
}

TEST(ValidationSampler, DoesNotOverflowOnHugeCounts) {
  static const std::byte none{};
  // Only the count matters here: start_of reads no token.
  const TokenView tokens{std::span{&none, std::size_t{1} << 60U}};
  const BatchShape shape{.replicas = 1U << 15U, .microbatches = 1U << 15U, .sequence = 1};
  const ValidationSampler sampler{tokens, shape, 3};
  const auto last = (1ULL << 60U) - 2;
  EXPECT_EQ(sampler.start_of((3ULL << 30U) - 1), last);
}

TEST(BatchShape, ComesFromTheConfiguration) {
  Config config;
  config.parallel.data = 2;
  config.schedule.microbatches = 8;
  config.schedule.microbatch_size = 4;
  config.model.sequence = 256;
  const auto shape = batch_shape_of(config);
  EXPECT_EQ(shape.samples_per_step(), 64U);
  EXPECT_EQ(shape.samples_per_replica(), 32U);
  EXPECT_EQ(shape.sequence, 256U);
}

}  // namespace
}  // namespace troupe::storage
