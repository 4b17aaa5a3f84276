#include "troupe/storage/labelled_corpus.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "troupe/storage/sampler.hpp"

namespace troupe::storage {

namespace {

/// What is kept of a text until the classes are known.
struct Row {
  TokenView text;
  std::string_view label;
  std::size_t group = 0;  ///< In the order in which groups first occur.
};

struct Table {
  std::vector<Row> rows;
  std::size_t group_count = 0;
};

std::string quoted(std::string_view text) {
  constexpr std::size_t shown_max = 40;
  const bool is_long = text.size() > shown_max;
  return '"' + std::string{text.substr(0, shown_max)} + (is_long ? "...\"" : "\"");
}

/// `"a", "b" and "c"`, or the first few of them.
std::string listed(const std::vector<std::string>& names) {
  constexpr std::size_t shown_max = 8;
  std::string list;
  const auto count = std::min(names.size(), shown_max);
  for (std::size_t i = 0; i < count; ++i) {
    const bool is_end = i + 1 == names.size() && i > 0;
    list += (i == 0 ? "" : is_end ? " and " : ", ") + quoted(names[i]);
  }
  return list + (names.size() > count ? " and others" : "");
}

/// Reads a table line by line.
class TableReader {
public:
  TableReader(const DataConfig& data, const TokenFile& file)
      : path_{data.text},
        file_{file},
        rest_{reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()} {}

  [[nodiscard]] Expected<Table> read() && {
    constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";
    if (rest_.starts_with(byte_order_mark)) rest_.remove_prefix(byte_order_mark.size());
    next_line();
    if (auto read = read_header(); !read) return read.error();
    while (!rest_.empty()) {
      next_line();
      if (auto read = read_row(); !read) return read.error();
    }
    if (!table_.rows.empty()) return std::move(table_);
    return Error{Errc::invalid_file,
                 "data.text: " + path_ + " has a header, but no text under it"};
  }

private:
  [[nodiscard]] Error complaint(const std::string& sentence) const {
    return {Errc::invalid_file,
            "data.text: " + path_ + ':' + std::to_string(line_number_) + ": " + sentence};
  }

  void next_line() {
    const auto end = std::min(rest_.find('\n'), rest_.size());
    auto line = rest_.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    ++line_number_;
    fields_.clear();
    for (std::size_t tab = 0; (tab = line.find('\t')) != std::string_view::npos;) {
      fields_.push_back(line.substr(0, tab));
      line.remove_prefix(tab + 1);
    }
    fields_.push_back(line);
  }

  [[nodiscard]] std::optional<std::size_t> column(std::string_view name) const {
    const auto found = std::ranges::find(fields_, name);
    if (found == fields_.end()) return std::nullopt;
    return static_cast<std::size_t>(found - fields_.begin());
  }

  [[nodiscard]] Expected<Done> read_header() {
    column_count_ = fields_.size();
    const auto label = column("label");
    const auto text = column("text");
    group_ = column("group");
    if (!label || !text) {
      return complaint("the columns are " + listed({fields_.begin(), fields_.end()})
                       + ", expected \"label\" and \"text\" among them, with tabs between");
    }
    for (const auto name : {"label", "text", "group"}) {
      if (std::ranges::count(fields_, name) < 2) continue;
      return complaint("two columns have the name \"" + std::string{name} + '"');
    }
    label_ = *label;
    text_ = *text;
    return Done{};
  }

  [[nodiscard]] Expected<Done> read_row() {
    if (fields_.size() != column_count_) {
      return complaint(std::to_string(fields_.size())
                       + (fields_.size() == 1 ? " field" : " fields") + ", expected "
                       + std::to_string(column_count_)
                       + " with tabs between, as in the first line");
    }
    if (fields_[label_].empty()) return complaint("the label is empty");
    const auto text = fields_[text_];
    if (text.empty()) return complaint("the text is empty");
    const auto* const begin = reinterpret_cast<const char*>(file_.bytes().data());
    const auto first = static_cast<std::uint64_t>(text.data() - begin);
    table_.rows.push_back({.text = file_.tokens().part(first, first + text.size()),
                           .label = fields_[label_],
                           .group = group_of_row()});
    return Done{};
  }

  std::size_t group_of_row() {
    if (!group_) return table_.group_count++;
    const auto [found, is_new] = groups_.emplace(fields_[*group_], table_.group_count);
    if (is_new) ++table_.group_count;
    return found->second;
  }

  const std::string& path_;
  const TokenFile& file_;
  std::string_view rest_;  ///< Behind the current line.
  std::uint64_t line_number_ = 0;
  std::vector<std::string_view> fields_;  ///< Of the current line.
  std::size_t column_count_ = 0;
  std::size_t label_ = 0;
  std::size_t text_ = 0;
  std::optional<std::size_t> group_;
  std::unordered_map<std::string_view, std::size_t> groups_;
  Table table_;
};

/// The labels that occur, in order, and the number of each.
std::map<std::string_view, std::uint32_t> classes_of(const Table& table) {
  std::map<std::string_view, std::uint32_t> classes;
  for (const auto& row : table.rows) classes.emplace(row.label, 0);
  std::uint32_t number = 0;
  for (auto& [label, index] : classes) index = number++;
  return classes;
}

Expected<Done> check_classes(const Config& config, const std::vector<std::string>& names) {
  if (names.size() == 1) {
    return Error{Errc::invalid_file, "data.text: every text of " + config.data.text
                                         + " is of the class " + quoted(names.front())
                                         + ", expected at least 2 classes"};
  }
  if (names.size() == config.model.classes) return Done{};
  return Error{Errc::invalid_config,
               "model.classes: " + std::to_string(config.model.classes) + ", but "
                   + config.data.text + " has texts of " + std::to_string(names.size())
                   + " classes, " + listed(names)};
}

/// Which groups are held out.
std::vector<bool> held_out_groups(const Table& table, double fraction, std::uint64_t key) {
  std::vector<std::uint64_t> sizes(table.group_count);
  for (const auto& row : table.rows) ++sizes[row.group];
  const auto wanted = static_cast<std::uint64_t>(
      std::floor(static_cast<double>(table.rows.size()) * fraction));
  std::vector<bool> is_held_out(table.group_count);
  std::uint64_t count = 0;
  for (std::uint64_t i = 0; count < wanted; ++i) {
    const auto group = permuted(i, table.group_count, key);
    is_held_out[group] = true;
    count += sizes[group];
  }
  return is_held_out;
}

Expected<Done> check_parts(const Config& config, const LabelledCorpus& corpus) {
  const auto& data = config.data;
  if (data.validation_fraction > 0.0 && corpus.validation().empty()) {
    return Error{Errc::invalid_file,
                 "data.validation_fraction: of the " + std::to_string(corpus.training().size())
                     + " texts of " + data.text
                     + " it holds out none; make it larger, or 0 to validate nothing"};
  }
  const auto wanted = batch_shape_of(config).samples_per_step();
  if (corpus.training().size() < wanted) {
    return Error{Errc::invalid_file,
                 "data.text: " + data.text + " has " + std::to_string(corpus.training().size())
                     + " texts to train on and " + std::to_string(corpus.validation().size())
                     + " that are held out, but a step takes " + std::to_string(wanted)
                     + ", parallel.data times schedule.microbatches times "
                       "schedule.microbatch_size; give more texts, or make the step smaller"};
  }
  std::vector<bool> is_known(corpus.class_names().size());
  for (const auto& text : corpus.training()) is_known[text.label] = true;
  const auto unknown = std::ranges::find(is_known, false);
  if (unknown == is_known.end()) return Done{};
  const auto& name = corpus.class_names()[static_cast<std::size_t>(unknown - is_known.begin())];
  return Error{Errc::invalid_file, "data.text: all texts of the class " + quoted(name) + " in "
                                       + data.text
                                       + " are held out, and none is left to train on; give more "
                                         "of them, or another train.seed"};
}

}  // namespace

Expected<LabelledCorpus> LabelledCorpus::open(const Config& config) {
  auto file = TokenFile::open(config.data);
  if (!file) return file.error();
  const auto table = TableReader{config.data, *file}.read();
  if (!table) return table.error();
  const auto classes = classes_of(*table);
  LabelledCorpus corpus{std::move(*file)};
  for (const auto& [label, number] : classes) corpus.class_names_.emplace_back(label);
  if (auto good = check_classes(config, corpus.class_names_); !good) return good.error();

  constexpr std::uint64_t split = 0;
  constexpr std::uint64_t order = 1;
  const auto key = [&](std::uint64_t use) { return mixed(~config.train.seed, use); };
  const auto is_held_out =
      held_out_groups(*table, config.data.validation_fraction, key(split));
  std::vector<LabelledText> held_out;
  for (const auto& row : table->rows) {
    auto& part = is_held_out[row.group] ? held_out : corpus.training_;
    part.push_back({row.text, classes.at(row.label)});
  }
  for (std::uint64_t i = 0; i < held_out.size(); ++i) {
    corpus.validation_.push_back(held_out[permuted(i, held_out.size(), key(order))]);
  }
  if (auto good = check_parts(config, corpus); !good) return good.error();
  return corpus;
}

}  // namespace troupe::storage
