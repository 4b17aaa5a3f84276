#include "troupe/storage/labelled_corpus.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/storage/labelled_sampler.hpp"

#include "temporary_folder.hpp"

namespace troupe::storage {
namespace {

std::string text_of(const LabelledText& labelled) {
  std::vector<std::int32_t> tokens(labelled.text.token_count());
  labelled.text.copy(0, tokens);
  return {tokens.begin(), tokens.end()};
}

std::multiset<std::string> texts_of(std::span<const LabelledText> part) {
  std::multiset<std::string> texts;
  for (const auto& text : part) texts.insert(text_of(text));
  return texts;
}

/// `count` texts of the classes a, b and c in turns: "text 0" and so on.
std::string table_of(std::uint32_t count) {
  std::string table = "label\ttext\n";
  for (std::uint32_t i = 0; i < count; ++i) {
    table += std::string{"abc"[i % 3]} + "\ttext " + std::to_string(i) + '\n';
  }
  return table;
}

class LabelledCorpusFile : public testing::Test {
protected:
  Config config() const {
    Config config;
    config.model.family = Family::bert;
    config.model.task = Task::classification;
    config.model.classes = 3;
    config.schedule.microbatches = 2;
    config.schedule.microbatch_size = 2;
    config.data.text = path_;
    config.data.validation_fraction = 0.25;
    return config;
  }
  LabelledCorpus open(const std::string& table, const Config& config) const {
    write_file(path_, table);
    auto corpus = LabelledCorpus::open(config);
    EXPECT_TRUE(corpus) << corpus.error().context;
    return std::move(*corpus);
  }
  LabelledCorpus open(const std::string& table) const { return open(table, config()); }
  std::string refusal(const std::string& table, const Config& config,
                      Errc code = Errc::invalid_file) const {
    write_file(path_, table);
    const auto corpus = LabelledCorpus::open(config);
    if (corpus) return "opened";
    EXPECT_EQ(corpus.error().code, code);
    return corpus.error().context;
  }
  std::string refusal(const std::string& table) const { return refusal(table, config()); }

  const TemporaryFolder folder_;
  const std::string path_ = folder_ / "table.tsv";
};

TEST_F(LabelledCorpusFile, NumbersTheClassesInTheOrderOfTheirNames) {
  auto one = config();
  one.schedule.microbatches = 1;
  one.data.validation_fraction = 0.0;
  const auto corpus =
      open("label\ttext\nPsalms\tsing\nLaw\tdo not\nGospels\tgo\nLaw\tremember\n", one);
  EXPECT_EQ(corpus.class_names(), (std::vector<std::string>{"Gospels", "Law", "Psalms"}));
  ASSERT_EQ(corpus.training().size(), 4U);
  EXPECT_TRUE(corpus.validation().empty());
  const std::vector<std::pair<std::string, std::uint32_t>> expected{
      {"sing", 2}, {"do not", 1}, {"go", 0}, {"remember", 1}};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(text_of(corpus.training()[i]), expected[i].first);
    EXPECT_EQ(corpus.training()[i].label, expected[i].second);
  }
}

TEST_F(LabelledCorpusFile, HasItsColumnsAnywhereAndIgnoresOthers) {
  auto one = config();
  one.schedule.microbatches = 1;
  one.model.classes = 2;
  one.data.validation_fraction = 0.0;
  const auto corpus = open(
      "\xef\xbb\xbfid\ttext\tlabel\tnote\r\n1\t\"a\" \\t b\tx\t\r\n2\tc \xc3\xa9\ty\tz", one);
  ASSERT_EQ(corpus.training().size(), 2U);
  EXPECT_EQ(text_of(corpus.training()[0]), "\"a\" \\t b") << "nothing is quoted or escaped";
  EXPECT_EQ(text_of(corpus.training()[1]), "c \xc3\xa9") << "a last line without an end";
  EXPECT_EQ(corpus.class_names(), (std::vector<std::string>{"x", "y"}));
}

TEST_F(LabelledCorpusFile, HoldsOutTheFractionAndNothingTwice) {
  const auto corpus = open(table_of(101));
  EXPECT_EQ(corpus.validation().size(), 25U) << "floor(101 / 4)";
  EXPECT_EQ(corpus.training().size(), 76U);
  auto all = texts_of(corpus.training());
  all.merge(texts_of(corpus.validation()));
  EXPECT_EQ(all.size(), 101U);
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 101U);
  for (const auto& part : {corpus.training(), corpus.validation()}) {
    for (const auto& text : part) {
      EXPECT_EQ(text.label, std::stoul(text_of(text).substr(5)) % 3) << "its own label";
    }
  }
}

TEST_F(LabelledCorpusFile, IsDividedByTheSeedAlone) {
  const auto held_out = [&](std::uint64_t seed) {
    auto seeded = config();
    seeded.train.seed = seed;
    const auto corpus = open(table_of(100), seeded);
    std::vector<std::string> texts;
    for (const auto& text : corpus.validation()) texts.push_back(text_of(text));
    return texts;
  };
  const auto first = held_out(1);
  EXPECT_EQ(held_out(1), first);
  const auto second = held_out(2);
  EXPECT_NE(std::set(first.begin(), first.end()), std::set(second.begin(), second.end()));
  EXPECT_FALSE(std::ranges::is_sorted(first)) << "in a drawn order";
}

TEST_F(LabelledCorpusFile, NeverDividesAGroup) {
  std::string table = "group\tlabel\ttext\n";
  for (int i = 0; i < 200; ++i) {
    table += "chapter " + std::to_string(i % 40 / 2) + '\t' + "abc"[i % 3] + "\ttext "
             + std::to_string(i) + '\n';
  }
  const auto corpus = open(table);
  const auto groups_of = [](std::span<const LabelledText> part) {
    std::map<unsigned long, std::size_t> groups;
    for (const auto& text : part) ++groups[std::stoul(text_of(text).substr(5)) % 40 / 2];
    return groups;
  };
  const auto training = groups_of(corpus.training());
  const auto validation = groups_of(corpus.validation());
  EXPECT_EQ(validation.size(), 5U) << "a quarter of 20 groups of 10 texts";
  EXPECT_EQ(training.size(), 15U);
  for (const auto& [group, count] : validation) {
    EXPECT_FALSE(training.contains(group)) << group;
    EXPECT_EQ(count, 10U);
  }
}

TEST_F(LabelledCorpusFile, SaysWhereItIsNotATable) {
  const auto at = [&](const std::string& line) { return "data.text: " + path_ + ':' + line; };
  EXPECT_EQ(refusal("a\tb\n"),
            at("1: the columns are \"a\" and \"b\", expected \"label\" and \"text\" among them, "
               "with tabs between"));
  EXPECT_EQ(refusal("label,text\nx,y\n"),
            at("1: the columns are \"label,text\", expected \"label\" and \"text\" among them, "
               "with tabs between"));
  EXPECT_EQ(refusal("text\tlabel\ttext\n"), at("1: two columns have the name \"text\""));
  EXPECT_EQ(refusal("label\ttext\na\tb\nc\n"),
            at("3: 1 field, expected 2 with tabs between, as in the first line"));
  EXPECT_EQ(refusal("label\ttext\na\tb\tc\n"),
            at("2: 3 fields, expected 2 with tabs between, as in the first line"));
  EXPECT_EQ(refusal("label\ttext\na\tb\n\n"),
            at("3: 1 field, expected 2 with tabs between, as in the first line"));
  EXPECT_EQ(refusal("label\ttext\na\tb\n\tc\n"), at("3: the label is empty"));
  EXPECT_EQ(refusal("label\ttext\r\na\t\r\n"), at("2: the text is empty"));
  EXPECT_EQ(refusal("label\ttext\n"),
            "data.text: " + path_ + " has a header, but no text under it");
  EXPECT_EQ(refusal(""), "data.text: " + path_ + " is empty, expected a text to train on");
}

/// Whatever the bytes are, it opens, or says in which line it cannot.
TEST_F(LabelledCorpusFile, ReadsAnyBytesOrSaysWhereItCannot) {
  Random random{11};
  std::set<bool> outcomes;
  for (int file = 0; file < 2000; ++file) {
    auto table = table_of(12);
    for (auto changes = random.below(3); changes > 0; --changes) {
      const auto at = random.below(table.size());
      constexpr std::string_view letters{"\t\n\r\0a\xff\"", 7};
      table[at] = letters[random.below(letters.size())];
    }
    table.resize(table.size() - random.below(file % 4 == 0 ? table.size() : 2));
    write_file(path_, table);
    const auto corpus = LabelledCorpus::open(config());
    outcomes.insert(corpus.has_value());
    if (!corpus) EXPECT_NE(corpus.error().context.find(path_), std::string::npos) << table;
  }
  EXPECT_EQ(outcomes.size(), 2U);
}

TEST_F(LabelledCorpusFile, SaysWhichClassesItHas) {
  EXPECT_EQ(refusal("label\ttext\nLaw\ta\nLaw\tb\n"),
            "data.text: every text of " + path_
                + " is of the class \"Law\", expected at least 2 classes");
  auto two = config();
  two.model.classes = 2;
  EXPECT_EQ(refusal(table_of(9), two, Errc::invalid_config),
            "model.classes: 2, but " + path_
                + " has texts of 3 classes, \"a\", \"b\" and \"c\"");
  std::string many = "label\ttext\n";
  for (int i = 10; i < 30; ++i) many += std::string(50, 'x') + std::to_string(i) + "\ttext\n";
  const auto said = refusal(many, two, Errc::invalid_config);
  EXPECT_NE(said.find("texts of 20 classes, \"" + std::string(40, 'x') + "...\", "),
            std::string::npos);
  EXPECT_TRUE(said.ends_with(" and others")) << said;
}

TEST_F(LabelledCorpusFile, SaysWhenAPartIsTooSmall) {
  EXPECT_EQ(refusal(table_of(3)),
            "data.validation_fraction: of the 3 texts of " + path_
                + " it holds out none; make it larger, or 0 to validate nothing");
  EXPECT_EQ(refusal(table_of(4)),
            "data.text: " + path_
                + " has 3 texts to train on and 1 that are held out, but a step takes 4, "
                  "parallel.data times schedule.microbatches times schedule.microbatch_size; give "
                  "more texts, or make the step smaller");
  std::string one_group = "label\ttext\tgroup\n";
  for (int i = 0; i < 9; ++i) one_group += std::string{"abc"[i % 3]} + "\ttext\tthe same\n";
  EXPECT_NE(refusal(one_group).find("has 0 texts to train on and 9 that are held out"),
            std::string::npos);
  // Whichever is held out, a class with one text may lose it.
  std::string rare = "label\ttext\n";
  for (int i = 0; i < 20; ++i) rare += std::string{"ab"[i % 2]} + "\ttext\n";
  rare += "c\tthe only one\n";
  std::set<std::string> outcomes;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    auto seeded = config();
    seeded.train.seed = seed;
    outcomes.insert(refusal(rare, seeded));
  }
  EXPECT_EQ(outcomes,
            (std::set<std::string>{
                "opened", "data.text: all texts of the class \"c\" in " + path_
                              + " are held out, and none is left to train on; give more of them, "
                                "or another train.seed"}));
}

TEST_F(LabelledCorpusFile, IsTheOneThatItsFingerprintAsksFor) {
  auto asking = config();
  asking.data.fingerprint = open(table_of(30)).fingerprint();
  EXPECT_EQ(open(table_of(30), asking).fingerprint(), asking.data.fingerprint);
  EXPECT_NE(refusal(table_of(31), asking).find("copy that one here"), std::string::npos);
}

// -- samples --------------------------------------------------------------------------------------

/// What `fill` writes, in arrays that were full of something else.
struct Rows {
  Rows(const BatchShape& shape)
      : tokens(shape.samples_per_replica() * shape.sequence, 77),
        lengths(shape.samples_per_replica(), 77),
        labels(shape.samples_per_replica(), 77) {}
  [[nodiscard]] LabelledRows view() { return {tokens, lengths, labels}; }

  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> lengths;
  std::vector<std::int32_t> labels;
};

class LabelledSamples : public LabelledCorpusFile {
protected:
  const LabelledCorpus corpus_ = open(table_of(30));  // 23 to train on, 7 held out.
};

TEST_F(LabelledSamples, AreAFirstTokenThenTheTextThenZeros) {
  const auto corpus = open("label\ttext\na\thi\nb\tlonger\nc\tx\nc\tfour\n", [&] {
    auto all = config();
    all.data.validation_fraction = 0.0;
    return all;
  }());
  const BatchShape shape{.microbatches = 4, .sequence = 5};
  const LabelledTrainingSampler sampler{corpus.training(), shape, 3, 256};
  Rows rows{shape};
  sampler.fill(1, 0, rows.view());
  const std::map<std::int32_t, std::vector<std::vector<std::int32_t>>> expected{
      {0, {{256, 'h', 'i', 0, 0}}},
      {1, {{256, 'l', 'o', 'n', 'g'}}},
      {2, {{256, 'x', 0, 0, 0}, {256, 'f', 'o', 'u', 'r'}}}};
  const std::map<std::int32_t, std::int32_t> length_of_third{{'h', 3}, {'l', 5}, {'x', 2}, {'f', 5}};
  for (std::size_t row = 0; row < 4; ++row) {
    const auto begin = rows.tokens.begin() + static_cast<std::ptrdiff_t>(row * 5);
    const std::vector<std::int32_t> tokens{begin, begin + 5};
    EXPECT_EQ(std::ranges::count(expected.at(rows.labels[row]), tokens), 1) << row;
    EXPECT_EQ(rows.lengths[row], length_of_third.at(tokens[1])) << row;
  }
}

TEST_F(LabelledSamples, TakeEachTextOnceAnEpochInAnotherOrder) {
  const LabelledTrainingSampler sampler{corpus_.training(), {.sequence = 16}, 5, 256};
  std::vector<std::vector<std::uint64_t>> epochs;
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    auto& order = epochs.emplace_back();
    for (std::uint64_t i = 0; i < 23; ++i) order.push_back(sampler.index_of(epoch * 23 + i));
    EXPECT_EQ(std::set<std::uint64_t>(order.begin(), order.end()).size(), 23U);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  const LabelledTrainingSampler other{corpus_.training(), {.sequence = 16}, 6, 256};
  std::vector<std::uint64_t> order;
  for (std::uint64_t i = 0; i < 23; ++i) order.push_back(other.index_of(i));
  EXPECT_NE(order, epochs[0]) << "of another seed";
}

TEST_F(LabelledSamples, DoNotDependOnHowAStepIsDivided) {
  const auto samples_of = [&](const BatchShape& shape, bool trains) {
    std::vector<std::int32_t> all;
    const LabelledTrainingSampler training{corpus_.training(), shape, 5, 256};
    const LabelledValidationSampler validation{corpus_.validation(), shape, 256};
    for (std::uint32_t step = 1; step <= 2; ++step) {
      for (std::uint32_t replica = 0; replica < shape.replicas; ++replica) {
        Rows rows{shape};
        trains ? training.fill(step, replica, rows.view())
               : validation.fill(step, replica, rows.view());
        for (std::size_t row = 0; row < rows.labels.size(); ++row) {
          const auto tokens = std::span{rows.tokens}.subspan(row * shape.sequence, shape.sequence);
          all.insert(all.end(), tokens.begin(), tokens.end());
          all.push_back(rows.labels[row]);
          all.push_back(rows.lengths[row]);
        }
      }
    }
    return all;
  };
  for (const bool trains : {true, false}) {
    const auto expected =
        samples_of({.replicas = 1, .microbatches = 2, .microbatch_size = 2, .sequence = 9}, trains);
    for (const auto& shape :
         {BatchShape{.replicas = 2, .microbatches = 1, .microbatch_size = 2, .sequence = 9},
          BatchShape{.replicas = 4, .microbatches = 1, .microbatch_size = 1, .sequence = 9},
          BatchShape{.replicas = 1, .microbatches = 1, .microbatch_size = 4, .sequence = 9}}) {
      EXPECT_EQ(samples_of(shape, trains), expected);
    }
  }
}

TEST_F(LabelledSamples, OfAValidationAreEachHeldOutTextOnceThenNothing) {
  const BatchShape shape{.replicas = 2, .microbatches = 1, .microbatch_size = 2, .sequence = 12};
  const LabelledValidationSampler sampler{corpus_.validation(), shape, 256};
  ASSERT_EQ(sampler.batch_count(), 2U);
  EXPECT_EQ(sampler.texts_of(1).size(), 4U);
  EXPECT_EQ(sampler.texts_of(2).size(), 3U);
  std::multiset<std::string> seen;
  for (std::uint32_t batch = 1; batch <= 2; ++batch) {
    for (std::uint32_t replica = 0; replica < 2; ++replica) {
      Rows rows{shape};
      sampler.fill(batch, replica, rows.view());
      for (std::size_t row = 0; row < 2; ++row) {
        const auto sample = replica * 2 + row;
        const auto tokens = std::span{rows.tokens}.subspan(row * 12, 12);
        EXPECT_EQ(tokens[0], 256);
        if (sample >= sampler.texts_of(batch).size()) {
          EXPECT_EQ(rows.labels[row], -1);
          EXPECT_EQ(rows.lengths[row], 1);
          EXPECT_EQ(std::accumulate(tokens.begin(), tokens.end(), 0), 256);
          continue;
        }
        const auto& text = sampler.texts_of(batch)[sample];
        EXPECT_EQ(rows.labels[row], static_cast<std::int32_t>(text.label));
        const auto count = static_cast<std::size_t>(rows.lengths[row] - 1);
        const auto bytes = tokens.subspan(1, count);
        EXPECT_EQ((std::string{bytes.begin(), bytes.end()}), text_of(text));
        seen.insert(text_of(text));
      }
    }
  }
  EXPECT_EQ(seen, texts_of(corpus_.validation()));
}

}  // namespace
}  // namespace troupe::storage
