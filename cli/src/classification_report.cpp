#include "classification_report.hpp"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace troupe::cli {

namespace {

constexpr std::string_view macro_name = "macro average";

/// Letters of a text in UTF-8.
std::size_t letter_count(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

}  // namespace

std::string without_controls(std::string name) {
  for (char& c : name) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
  }
  return name;
}

std::string to_table(const ClassificationReport& report) {
  const auto& counts = report.counts;
  std::vector<std::string> names;
  auto width = macro_name.size();
  for (const auto& name : report.class_names) {
    names.push_back(without_controls(name));
    width = std::max(width, letter_count(names.back()));
  }
  const auto row = [&](std::string_view name, double precision, double recall, double f1,
                       std::uint64_t support) {
    return fmt::format("{:<{}}  {:>9.4f}  {:>9.4f}  {:>9.4f}  {:>9}\n", name, width, precision,
                       recall, f1, support);
  };
  auto text = fmt::format("{:<{}}  {:>9}  {:>9}  {:>9}  {:>9}\n", "class", width, "precision",
                          "recall", "F1", "support");
  for (std::uint32_t c = 0; c < counts.class_count(); ++c) {
    text += row(names[c], counts.precision(c), counts.recall(c), counts.f1(c), counts.support(c));
  }
  text += row(macro_name, counts.macro_precision(), counts.macro_recall(), counts.macro_f1(),
              counts.total());
  return text + fmt::format("accuracy {:.4f}, loss {:.4f}\n", counts.accuracy(), report.loss);
}

std::string to_json(const ClassificationReport& report) {
  using Json = nlohmann::ordered_json;
  const auto& counts = report.counts;
  auto classes = Json::array();
  for (std::uint32_t c = 0; c < counts.class_count(); ++c) {
    classes.push_back({{"name", report.class_names[c]},
                       {"precision", counts.precision(c)},
                       {"recall", counts.recall(c)},
                       {"f1", counts.f1(c)},
                       {"support", counts.support(c)}});
  }
  const Json json{{"step", report.step},
                  {"texts", counts.total()},
                  {"loss", report.loss},
                  {"accuracy", counts.accuracy()},
                  {"macro_precision", counts.macro_precision()},
                  {"macro_recall", counts.macro_recall()},
                  {"macro_f1", counts.macro_f1()},
                  {"classes", classes}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';
}

}  // namespace troupe::cli
