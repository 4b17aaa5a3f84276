// Classification as a person meets it: from a table of labelled texts to the report.

#include <cmath>
#include <sstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "troupe/storage/labelled_corpus.hpp"

#include "classification_report.hpp"
#include "command_fixture.hpp"

namespace troupe::cli {
namespace {

/// Texts that show their class by their letters.
class Classes : public Command {
protected:
  void SetUp() override {
    Command::SetUp();
    std::string table = "label\ttext\n";
    for (int i = 0; i < 90; ++i) {
      table += std::string{i % 3 == 0 ? "hum\t" : i % 3 == 1 ? "buzz \"é\"\t" : "hiss\t"};
      table += std::string(static_cast<std::size_t>(4 + i % 7), "mzs"[i % 3]) + '\n';
    }
    write("table.tsv", table);
    write("classes.toml",
          "[model]\n"
          "family = \"bert\"\ntask = \"classification\"\nclasses = 3\nvocabulary = 257\n"
          "tie_embeddings = false\nlayers = 2\nheads = 2\nhidden = 32\nsequence = 9\n"
          "[schedule]\n"
          "microbatches = 4\nmicrobatch_size = 2\n"
          "[train]\n"
          "steps = 60\nwarmup_steps = 5\nlearning_rate = 3e-3\nvalidation_interval = 30\n"
          "validation_batches = 2\n"
          "[data]\n"
          "text = \"table.tsv\"\nvalidation_fraction = 0.25\n"
          "[run]\n"
          "output = \"out\"\n");
  }
};

TEST_F(Classes, TrainingEndsWithAReportOnWhatIsHeldOut) {
  const auto outcome = shell("troupe train classes.toml");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const auto* words :
       {"68 texts of 3 classes to train on, 22 held out; 25 are cut to the 8 bytes that "
        "model.sequence has room for\n",
        "step 30: validation loss ", "step 60: validation loss ", ", accuracy 1.0000\n",
        "\nclass          precision     recall         F1    support\n",
        "\nmacro average     1.0000     1.0000     1.0000         22\naccuracy 1.0000, loss ",
        "classes   out/classes.json"}) {
    EXPECT_NE(outcome.output.find(words), std::string::npos) << words << '\n' << outcome.output;
  }
  const auto report = nlohmann::json::parse(read("out/classes.json"));
  EXPECT_EQ(report.at("step"), 60);
  EXPECT_EQ(report.at("texts"), 22) << "each that is held out once, in batches of 8";
  EXPECT_EQ(report.at("accuracy"), 1.0);
  std::uint64_t support = 0;
  std::string names;
  for (const auto& of_class : report.at("classes")) {
    names += of_class.at("name").get<std::string>() + ',';
    support += of_class.at("support").get<std::uint64_t>();
    for (const auto* key : {"precision", "recall", "f1"}) EXPECT_EQ(of_class.at(key), 1.0) << key;
  }
  EXPECT_EQ(names, "buzz \"é\",hiss,hum,");
  EXPECT_EQ(support, 22U);

  std::istringstream lines{read("out/metrics.jsonl")};
  std::string line;
  nlohmann::json metrics;
  while (std::getline(lines, line)) {
    metrics = nlohmann::json::parse(line);
    const bool validates = metrics.at("step").get<int>() % 30 == 0;
    for (const auto* key : {"validation_loss", "validation_accuracy", "validation_macro_precision",
                            "validation_macro_recall", "validation_macro_f1"}) {
      EXPECT_EQ(metrics.contains(key), validates) << key;
    }
    EXPECT_FALSE(metrics.contains("validation_perplexity"));
  }
  EXPECT_EQ(metrics.at("validation_loss"), report.at("loss"));
  EXPECT_EQ(metrics.at("validation_accuracy"), report.at("accuracy"));
  EXPECT_EQ(metrics.at("validation_macro_f1"), report.at("macro_f1"));
}

/// A training that has not got far, so that there are mistakes to agree on.
TEST_F(Classes, TheReportIsTheSameOnAnyGridAndInAnyProcess) {
  const auto report_of = [&](const std::string& options) {
    const auto outcome = shell(
        "troupe train classes.toml --set train.steps=8 train.optimizer=sgd "
        "train.learning_rate=0.3 --set "
        + options);
    EXPECT_EQ(outcome.exit_code, 0) << options << '\n' << outcome.output;
    return nlohmann::json::parse(read("out/classes.json"));
  };
  const auto expected = report_of("run.output=out");
  const double accuracy = expected.at("accuracy");
  EXPECT_GT(accuracy, 0.0);
  EXPECT_LT(accuracy, 1.0) << "else no mistake is compared";
  for (const auto* options :
       {"parallel.pipeline=2", "parallel.pipeline=2 --processes 2",
        "parallel.data=2 schedule.microbatches=2", "parallel.tensor=2 train.sequence_parallel=true",
        "parallel.data=2 parallel.tensor=2 parallel.pipeline=2 schedule.microbatches=2 "
        "--processes 4"}) {
    auto found = report_of(options);
    EXPECT_NEAR(found.at("loss"), expected.at("loss"), 1e-4) << options;
    found["loss"] = expected.at("loss");
    EXPECT_EQ(found, expected) << options;
  }
  ASSERT_EQ(shell("troupe train classes.toml --set parallel.pipeline=1 run.output=a; troupe train "
                  "classes.toml --set parallel.pipeline=2 run.output=b --processes 2")
                .exit_code,
            0);
  EXPECT_EQ(
      shell("cmp a/weights.safetensors b/weights.safetensors; cmp a/classes.json b/classes.json")
          .output,
      "");
}

/// Of a training that has not got far, so that there are mistakes to agree on.
TEST_F(Classes, ATrainedModelTellsClassesAsItsReportSays) {
  ASSERT_EQ(shell("troupe train classes.toml --set train.steps=8 train.optimizer=sgd "
                  "train.learning_rate=0.3")
                .exit_code,
            0);
  Config config;
  config.model.family = Family::bert;
  config.model.task = Task::classification;
  config.model.classes = 3;
  config.data.text = (folder_ / "table.tsv").string();
  config.data.validation_fraction = 0.25;
  const auto corpus = storage::LabelledCorpus::open(config);
  ASSERT_TRUE(corpus) << corpus.error().context;
  const auto held_out = corpus->validation();
  std::string texts;
  for (const auto& text : held_out) {
    std::vector<std::int32_t> tokens(text.text.token_count());
    text.text.copy(0, tokens);
    texts.append(tokens.begin(), tokens.end());
    texts += '\n';
  }
  write("texts.txt", texts);

  const auto table = shell("troupe classify out/weights.safetensors texts.txt");
  ASSERT_EQ(table.exit_code, 0) << table.output;
  EXPECT_EQ(shell("troupe classify out/weights.safetensors < texts.txt").output, table.output);
  EXPECT_EQ(shell("troupe classify out/weights.safetensors texts.txt | tail -n +2 | cut -f3 | "
                  "cmp - texts.txt")
                .output,
            "");
  const auto objects = shell("troupe classify --json out/weights.safetensors texts.txt");
  std::istringstream rows{table.output};
  std::istringstream lines{objects.output};
  std::string row;
  std::string line;
  std::getline(rows, row);
  EXPECT_EQ(row, "label\tprobability\ttext");
  std::uint32_t right = 0;
  double loss = 0.0;
  for (const auto& text : held_out) {
    ASSERT_TRUE(std::getline(rows, row) && std::getline(lines, line));
    const auto json = nlohmann::json::parse(line);
    const auto name = corpus->class_names()[text.label];
    const auto label = json.at("label").get<std::string>();
    const auto& probabilities = json.at("probabilities");
    double sum = 0.0;
    for (const auto& [of, probability] : probabilities.items()) {
      sum += probability.get<double>();
      EXPECT_LE(probability, probabilities.at(label)) << line;
    }
    EXPECT_NEAR(sum, 1.0, 1e-12);
    EXPECT_EQ(row.substr(0, row.find('\t')), label);
    if (label == name) ++right;
    loss -= std::log(probabilities.at(name).get<double>());
  }
  EXPECT_FALSE(std::getline(lines, line));
  const auto report = nlohmann::json::parse(read("out/classes.json"));
  const auto count = static_cast<double>(held_out.size());
  EXPECT_EQ(right / count, report.at("accuracy").get<double>());
  EXPECT_LT(right, held_out.size()) << "else no mistake is compared";
  EXPECT_NEAR(loss / count, report.at("loss").get<double>(), 1e-5);
}

TEST_F(Classes, WhatIsToBeClassifiedIsToldInASentence) {
  ASSERT_EQ(
      shell("troupe train classes.toml --set train.steps=1 model.norm_epsilon=1e-12 "
            "run.output=trained; "
            "troupe train classes.toml --set train.steps=1 model.task=masked model.classes=0 "
            "train.validation_interval=0 data.text=corpus.txt run.output=masked; "
            "cp trained/weights.safetensors w; cp masked/weights.safetensors masked.safetensors")
          .exit_code,
      0);
  const std::string line = "troupe classify w ";
  EXPECT_EQ(shell("printf 'mmmm\\r\\nzzzzzzzzzzzzzzzzzz' | " + line + "| wc -l").output, "3\n");
  EXPECT_EQ(shell("printf 'mmmm\\r\\n' | " + line).output, shell("echo mmmm | " + line).output);
  write("texts.txt", "mmm\n\nzzz\n");
  expect_refused(line + "texts.txt", "texts.txt:2: there is no text on this line");
  write("texts.txt", "");
  expect_refused(line + "texts.txt", "texts.txt: is empty; give it a text on every line");
  expect_refused(line + "none.txt", "none.txt");
  expect_refused("troupe generate w --prompt a",
                 "holds a BERT, which continues no texts; `troupe classify` tells their classes");
  write("texts.txt", "mmm\n");
  expect_refused("troupe classify masked.safetensors texts.txt",
                 "holds a model of the family \"bert\" that tells no classes");
  // What is as long leaves the file as it must be.
  ASSERT_EQ(shell("sed 's/hiss\\\\\",\\\\\"hum/hm\\\\\",   \\\\\"hm/' w > twice; "
                  "sed 's/troupe.classes\":\"\\[/troupe.classes\":\"{/' w > odd; "
                  "sed 's/troupe.classes/troupe.closses/' w > unnamed")
                .exit_code,
            0);
  expect_refused("troupe classify twice texts.txt",
                 "has 2 different names, but it tells 3 classes");
  expect_refused("troupe classify odd texts.txt", "its troupe.classes is no array of names");
  EXPECT_EQ(shell("sed 's/troupe.norm_epsilon/troupe.norm_apsilon/' w > bare; troupe classify "
                  "--json bare texts.txt > a; troupe classify --json w texts.txt | cmp - a")
                .output,
            "")
      << "else a BERT of others is not what it was";
  const auto unnamed = shell("troupe classify unnamed texts.txt");
  EXPECT_EQ(unnamed.exit_code, 0) << unnamed.output;
  EXPECT_NE(unnamed.output.find("\nclass "), std::string::npos) << unnamed.output;
}

TEST_F(Classes, ARunThatValidatesNothingReportsNothing) {
  for (const auto* option : {"train.validation_interval=0", "data.validation_fraction=0.0"}) {
    const auto outcome =
        shell("rm -rf out; troupe train classes.toml --set train.steps=2 " + std::string{option});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_FALSE(exists("out/classes.json"));
    EXPECT_EQ(outcome.output.find("accuracy"), std::string::npos) << outcome.output;
  }
}

TEST_F(Classes, RefusesWhatCannotBeClassified) {
  const std::string line = "troupe train classes.toml --set ";
  expect_refused(line + "model.classes=4",
                 "model.classes: 4, but table.tsv has texts of 3 classes, \"buzz \"é\"\", \"hiss\" "
                 "and \"hum\"");
  expect_refused(line + "model.vocabulary=256", "leaves no word to stand before each text");
  expect_refused(line + "model.sequence=1", "leaves no room for a text");
  expect_refused(line + "schedule.microbatches=40", "a step takes 80");
  expect_refused(line + "data.text=corpus.txt", "corpus.txt:1: the columns are ");
  expect_refused(line + "data.text=none.tsv", "cannot open none.tsv");
  write("table.tsv", "label\ttext\nhum\tmm\nhiss\t\n");
  expect_refused("troupe train classes.toml", "data.text: table.tsv:3: the text is empty");
  write("table.tsv", "label\ttext\nhum\tmm\nhum\tm\n");
  expect_refused("troupe train classes.toml",
                 "is of the class \"hum\", expected at least 2 classes");
}

// -- the report -----------------------------------------------------------------------------------

ClassificationReport report() {
  ClassificationReport report{7, 0.25, {"Law", "Gö\n"}, ClassCounts{2}};
  for (int i = 0; i < 3; ++i) report.counts.add(0, 0);
  report.counts.add(0, 1);
  report.counts.add(1, 1);
  return report;
}

TEST(ClassificationReport, IsATable) {
  EXPECT_EQ(to_table(report()),
            "class          precision     recall         F1    support\n"
            "Law               1.0000     0.7500     0.8571          4\n"
            "Gö?               0.5000     1.0000     0.6667          1\n"
            "macro average     0.7500     0.8750     0.7619          5\n"
            "accuracy 0.8000, loss 0.2500\n");
}

TEST(ClassificationReport, IsJson) {
  const auto json = to_json(report());
  EXPECT_TRUE(json.starts_with(R"({"step":7,"texts":5,"loss":0.25,"accuracy":0.8,)")) << json;
  EXPECT_TRUE(json.ends_with("}\n")) << json;
  const auto parsed = nlohmann::json::parse(json);
  EXPECT_EQ(parsed.at("macro_recall"), 0.875);
  EXPECT_EQ(parsed.at("classes")[1].at("name"), "Gö\n");
  EXPECT_EQ(parsed.at("classes")[1].at("support"), 1);
  EXPECT_EQ(parsed.at("classes")[0].at("recall"), 0.75);
  auto broken = report();
  broken.class_names[0] = "\xff";
  EXPECT_EQ(nlohmann::json::parse(to_json(broken)).at("classes")[0].at("name"), "\uFFFD");
}

}  // namespace
}  // namespace troupe::cli
