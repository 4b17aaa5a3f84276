#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string_view>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "troupe/stages/cpu_device.hpp"
#include "troupe/storage/mapped_file.hpp"

#include "classification_report.hpp"
#include "commands.hpp"
#include "corpus_batches.hpp"
#include "model_weights.hpp"
#include "text_classifier.hpp"

namespace troupe::cli {

namespace {

/// Told together; more are no faster.
constexpr std::size_t batch_size_max = 16;

/// What is to be classified, and where it came from.
class Texts {
public:
  /// @param path Empty: standard input.
  static Expected<Texts> read(const std::string& path) {
    Texts texts;
    if (path.empty()) {
      texts.name_ = "standard input";
      texts.content_.assign(std::istreambuf_iterator<char>{std::cin}, {});
    } else {
      const auto file = storage::MappedFile::open(path);
      if (!file) return file.error();
      texts.name_ = path;
      texts.content_.assign(reinterpret_cast<const char*>(file->bytes().data()),
                            file->bytes().size());
    }
    return texts;
  }

  /// A text on every line, which ends with LF or CRLF. Valid as long as this object.
  /// @returns `invalid_file` naming a line without a text; or that there is none.
  [[nodiscard]] Expected<std::vector<std::string_view>> lines() const {
    std::vector<std::string_view> lines;
    for (std::string_view rest{content_}; !rest.empty();) {
      const auto length = std::min(rest.find('\n'), rest.size());
      auto line = rest.substr(0, length);
      rest.remove_prefix(std::min(length + 1, rest.size()));
      if (line.ends_with('\r')) line.remove_suffix(1);
      lines.push_back(line);
      if (line.empty()) {
        return Error{
            Errc::invalid_file,
            fmt::format("{}:{}: there is no text on this line; take it out", name_, lines.size())};
      }
    }
    if (!lines.empty()) return lines;
    return Error{Errc::invalid_file, name_ + ": is empty; give it a text on every line"};
  }

private:
  Texts() = default;

  std::string name_;
  std::string content_;
};

Expected<ModelSpec> classifier_of(const storage::SafetensorsFile& file,
                                  const ClassifyArguments& arguments) {
  auto model = model_of(file, arguments.weights_path, arguments.heads);
  if (!model) return model;
  const auto invalid = [&](const std::string& what) {
    return Error{Errc::invalid_file, arguments.weights_path + ": " + what};
  };
  if (!model->classifies()) {
    return invalid(
        fmt::format("holds a model of the family \"{}\" that tells no classes; train one "
                    "with model.task = \"classification\"",
                    family_names[static_cast<std::size_t>(model->family)]));
  }
  if (model->vocabulary <= added_word) {
    return invalid(
        fmt::format("has {} words, but with the tokenizer \"bytes\" a model that "
                    "classifies has at least {}",
                    model->vocabulary, added_word + 1));
  }
  return model;
}

std::string to_json(std::string_view text, std::span<const std::string> names,
                    std::span<const double> probabilities) {
  using Json = nlohmann::ordered_json;
  const auto likeliest = std::ranges::max_element(probabilities) - probabilities.begin();
  auto of_classes = Json::object();
  for (std::size_t c = 0; c < names.size(); ++c) of_classes[names[c]] = probabilities[c];
  const Json json{{"label", names[static_cast<std::size_t>(likeliest)]},
                  {"probabilities", of_classes},
                  {"text", text}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string to_row(std::string_view text, std::span<const std::string> names,
                   std::span<const double> probabilities) {
  const auto likeliest = std::ranges::max_element(probabilities);
  const auto& name = names[static_cast<std::size_t>(likeliest - probabilities.begin())];
  return fmt::format("{}\t{:.4f}\t{}", without_controls(name), *likeliest, text);
}

}  // namespace

Expected<ExitCode> classify(const ClassifyArguments& arguments) {
  const auto file = storage::SafetensorsFile::open(arguments.weights_path);
  if (!file) return file.error();
  const auto model = classifier_of(*file, arguments);
  if (!model) return model.error();
  const auto names = class_names_of(*file, arguments.weights_path, model->classes);
  if (!names) return names.error();
  const auto texts = Texts::read(arguments.texts_path);
  if (!texts) return texts.error();
  const auto lines = texts->lines();
  if (!lines) return lines.error();
  const auto device = stages::make_cpu_device();
  const auto batch_size = std::min(batch_size_max, lines->size());
  auto classifier = TextClassifier::make(*device, *model, static_cast<std::uint32_t>(batch_size),
                                         std::max(1U, std::thread::hardware_concurrency()));
  if (!classifier) return classifier.error();
  if (auto loaded = load_weights(*file, arguments.weights_path, classifier->stage()); !loaded) {
    return loaded.error();
  }
  if (!arguments.json) fmt::print("label\tprobability\ttext\n");
  for (std::size_t first = 0; first < lines->size(); first += batch_size) {
    const auto batch =
        std::span{*lines}.subspan(first, std::min(batch_size, lines->size() - first));
    const auto probabilities = classifier->probabilities(batch);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const auto of_text = std::span{probabilities}.subspan(i * names->size(), names->size());
      fmt::print("{}\n", arguments.json ? to_json(batch[i], *names, of_text)
                                        : to_row(batch[i], *names, of_text));
    }
  }
  return exit_success;
}

}  // namespace troupe::cli
