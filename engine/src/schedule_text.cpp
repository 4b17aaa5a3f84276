#include "troupe/engine/schedule_text.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>
#include <utility>

#include "instruction_words.hpp"
#include "pass_steps.hpp"

namespace troupe {

namespace {

constexpr std::size_t shown_size_max = 24;  ///< Of a cell in an error.
constexpr auto expected_action =
    " is not an action; expected stage, pass (F, B, I or W) and microbatch, as in 2F0";
constexpr auto expected_instruction =
    " is no instruction; expected stage, pass (F, B, I or W) and microbatch, as in 2F0, or "
    "communication, as in 1SEND_F0 and 0UNSHARD, or (0F1;1B0)OVERLAP_F_B";

/// `text` for an error: in quotes, cut, and without bytes that a terminal would act on.
std::string shown(std::string_view text) {
  std::string result = "\"";
  for (const char c : text.substr(0, shown_size_max)) result += c >= ' ' && c <= '~' ? c : '?';
  return result + (text.size() > shown_size_max ? "...\"" : "\"");
}

std::optional<Pass> pass_of(char letter) noexcept {
  for (const auto pass :
       {Pass::forward, Pass::backward, Pass::backward_input, Pass::backward_weight}) {
    if (to_letter(pass) == letter) return pass;
  }
  return std::nullopt;
}

/// Reads all of `text` as a decimal number below `bound`.
std::optional<std::uint32_t> number_below(std::uint32_t bound, std::string_view text) noexcept {
  std::uint32_t value = 0;
  const auto* const end = text.data() + text.size();
  const auto [stopped, failure] = std::from_chars(text.data(), end, value);
  if (text.empty() || failure != std::errc{} || stopped != end || value >= bound) {
    return std::nullopt;
  }
  return value;
}

/// Stage, word and microbatch, as far as `text` has them.
struct Parts {
  std::optional<std::uint32_t> stage;
  std::string_view word;
  std::optional<std::uint32_t> microbatch;
  bool ends_with_word = false;  ///< There is not even a wrong microbatch.
};

Parts parts_of(std::string_view text) noexcept {
  constexpr auto digits = "0123456789";
  const auto word_at = std::min(text.find_first_not_of(digits), text.size());
  const auto end_of_word = text.find_first_of(digits, word_at);
  Parts parts;
  parts.stage = number_below(ScheduleLimits::stage_count_max, text.substr(0, word_at));
  parts.word = text.substr(word_at, end_of_word - word_at);
  parts.ends_with_word = end_of_word == std::string_view::npos;
  if (!parts.ends_with_word) {
    parts.microbatch = number_below(ScheduleLimits::microbatch_count_max, text.substr(end_of_word));
  }
  return parts;
}

std::optional<Action> action_of(std::string_view text) noexcept {
  const auto parts = parts_of(text);
  const auto pass = parts.word.size() == 1 ? pass_of(parts.word.front()) : std::nullopt;
  if (!parts.stage || !pass || !parts.microbatch) return std::nullopt;
  return Action{StageIndex{*parts.stage}, *pass, MicrobatchIndex{*parts.microbatch}};
}

std::string_view without_spaces_around(std::string_view text) noexcept {
  const auto begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

/// Takes the text up to `separator` off the front of `rest`.
std::string_view take_until(char separator, std::string_view& rest) noexcept {
  const auto end = rest.find(separator);
  const auto taken = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return taken;
}

std::optional<Instruction> instruction_of(std::string_view text) {
  if (const auto action = action_of(text)) return *action;
  if (text.starts_with('(')) {
    auto rest = text.substr(1);
    const auto first = action_of(without_spaces_around(take_until(';', rest)));
    const auto second = action_of(without_spaces_around(take_until(')', rest)));
    if (!first || !second || rest != overlap_word) return std::nullopt;
    return OverlappedPasses{{*first, *second}};
  }
  const auto parts = parts_of(text);
  if (!parts.stage) return std::nullopt;
  const StageIndex stage{*parts.stage};
  for (const auto& word : transfer_words) {
    if (word.text != parts.word || !parts.microbatch) continue;
    return Transfer{stage, word.step, word.cargo, MicrobatchIndex{*parts.microbatch}};
  }
  for (const auto& word : weight_words) {
    if (word.text == parts.word && parts.ends_with_word) return WeightExchange{stage, word.step};
  }
  return std::nullopt;
}

/// Collects the rows of a CSV. Where things went wrong is `row_` and `column_`.
class CsvReader {
public:
  explicit CsvReader(std::string_view source_name) : source_name_{source_name} {
    schedule_.name = source_name;
    schedule_.kind = StepKind::evaluation;
    schedule_.microbatch_count = 0;
  }

  Expected<CommunicationSchedule> read(std::string_view text) {
    const auto end = text.find_last_not_of("\r\n");
    text = text.substr(0, end == std::string_view::npos ? 0 : end + 1);
    for (row_ = 0; !text.empty(); ++row_) {
      if (auto ok = read_row(take_until('\n', text)); !ok) return ok.error();
    }
    if (schedule_.ranks.empty()) {
      return Error{Errc::invalid_file, source_name_ + ": holds no schedule; expected one row per "
                                           "rank with cells like 2F0"};
    }
    return with_stage_map();
  }

private:
  Expected<Done> read_row(std::string_view row) {
    if (row.ends_with('\r')) row.remove_suffix(1);
    if (row_ == ScheduleLimits::rank_count_max) {
      return failed("more than " + std::to_string(ScheduleLimits::rank_count_max) + " ranks");
    }
    schedule_.ranks.emplace_back();
    has_passes_ = false;
    for (column_ = 1; !row.empty(); ++column_) {
      if (auto ok = read_cell(take_until(',', row)); !ok) return ok;
    }
    if (!has_passes_) {
      return failed("this rank runs nothing; leave the row out");
    }
    return Done{};
  }

  Expected<Done> read_cell(std::string_view cell) {
    const auto text = without_spaces_around(cell);
    auto inner = text;
    if (text.starts_with('"')) {
      if (text.size() < 2 || !text.ends_with('"')) {
        return failed_at(text, " opens a quote that it does not close");
      }
      inner = without_spaces_around(text.substr(1, text.size() - 2));
    }
    if (inner.empty()) return Done{};
    const auto instruction = instruction_of(inner);
    if (!instruction) return failed_at(text, expected_instruction);
    for (const auto& action : passes_of(*instruction)) {
      if (auto ok = add(action, text); !ok) return ok;
    }
    schedule_.ranks.back().push_back(*instruction);
    return Done{};
  }

  /// Learns from a pass which rank holds its stage, and how many microbatches there are.

  Expected<Done> add(const Action& action, std::string_view cell) {
    const auto stage = action.stage.value();
    if (stage >= rank_of_stage_.size()) rank_of_stage_.resize(std::size_t{stage} + 1, nowhere);
    auto& rank = rank_of_stage_[stage];
    if (rank != nowhere && rank != row_) {
      return failed_at(cell, " runs stage " + std::to_string(stage) + ", which row "
                                 + std::to_string(rank + 1) + " runs; a stage is on one rank");
    }
    rank = row_;
    if (action.pass != Pass::forward) schedule_.kind = StepKind::training;
    schedule_.microbatch_count =
        std::max(schedule_.microbatch_count, action.microbatch.value() + 1);
    has_passes_ = true;
    return Done{};
  }

  Expected<CommunicationSchedule> with_stage_map() {
    const auto gap = std::find(rank_of_stage_.begin(), rank_of_stage_.end(), nowhere);
    if (gap != rank_of_stage_.end()) {
      return Error{Errc::invalid_file, source_name_ + ": no row runs stage "
                                           + std::to_string(gap - rank_of_stage_.begin())
                                           + ", but there are stages up to "
                                           + std::to_string(rank_of_stage_.size() - 1)
                                           + "; number them from 0"};
    }
    schedule_.rank_of_stage = std::vector<RankIndex>(rank_of_stage_.begin(), rank_of_stage_.end());
    schedule_.copy_count = has_two_halves() ? 2 : 1;
    return std::move(schedule_);
  }

  /// Whether the first half of the stages has the first half of the microbatches to itself.
  [[nodiscard]] bool has_two_halves() const {
    const auto stages = schedule_.rank_of_stage.size();
    const auto microbatches = schedule_.microbatch_count;
    if (stages % 2 != 0 || microbatches % 2 != 0) return false;
    const auto is_in_its_half = [=](const Action& action) {
      return (action.stage.value() < stages / 2) == (action.microbatch.value() < microbatches / 2);
    };
    return std::ranges::all_of(schedule_.ranks, [=](const auto& row) {
      return std::ranges::all_of(row, [=](const Instruction& instruction) {
        return std::ranges::all_of(passes_of(instruction), is_in_its_half);
      });
    });
  }

  [[nodiscard]] Error failed(const std::string& what) const {
    return {Errc::invalid_file, source_name_ + ": row " + std::to_string(row_ + 1) + ": " + what};
  }
  [[nodiscard]] Error failed_at(std::string_view cell, const std::string& what) const {
    return {Errc::invalid_file, source_name_ + ": row " + std::to_string(row_ + 1) + ", column "
                                    + std::to_string(column_) + ": " + shown(cell) + what};
  }

  static constexpr auto nowhere = std::numeric_limits<std::uint32_t>::max();

  std::string source_name_;
  CommunicationSchedule schedule_;
  std::vector<std::uint32_t> rank_of_stage_;
  std::uint32_t row_ = 0;
  std::size_t column_ = 1;
  bool has_passes_ = false;  ///< The row that is being read.
};

}  // namespace

Expected<Action> parse_action(std::string_view text) {
  if (const auto action = action_of(text)) return *action;
  return Error{Errc::invalid_file, shown(text) + expected_action};
}

Expected<Instruction> parse_instruction(std::string_view text) {
  if (auto instruction = instruction_of(text)) return *instruction;
  return Error{Errc::invalid_file, shown(text) + expected_instruction};
}

std::string to_text(const Schedule& schedule) {
  std::vector<std::size_t> widths;
  for (const auto& row : schedule.ranks) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], to_string(row[i]).size());
    }
  }
  const auto label_size = std::to_string(schedule.rank_count() - 1).size();
  std::string text;
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    const auto label = std::to_string(r);
    text += "rank " + std::string(label_size - label.size(), ' ') + label + ":";
    std::size_t padding = 1;
    for (std::size_t i = 0; i < schedule.ranks[r].size(); ++i) {
      const auto cell = to_string(schedule.ranks[r][i]);
      text.append(padding, ' ') += cell;
      padding = widths[i] - cell.size() + 1;
    }
    text += '\n';
  }
  return text;
}

std::string to_csv(const Schedule& schedule) {
  const auto steps = steps_of(schedule);
  std::string text;
  for (std::uint32_t r = 0; r < schedule.rank_count(); ++r) {
    std::size_t commas = 0;  // Of this row so far.
    for (std::size_t at = 0; at < steps[r].size(); ++at) {
      text.append(steps[r][at] - commas, ',') += to_string(schedule.ranks[r][at]);
      commas = steps[r][at];
    }
    text += "\r\n";
  }
  return text;
}

std::string to_csv(const CommunicationSchedule& schedule) {
  std::string text;
  for (const auto& row : schedule.ranks) {
    const auto begin = text.size();
    for (const auto& instruction : row) {
      text += (text.size() == begin ? "" : ",") + to_string(instruction);
    }
    text += "\r\n";
  }
  return text;
}

Expected<CommunicationSchedule> communication_from_csv(std::string_view text,
                                                       std::string_view source_name) {
  return CsvReader{source_name}.read(text);
}

Expected<Schedule> from_csv(std::string_view text, std::string_view source_name) {
  const auto schedule = communication_from_csv(text, source_name);
  if (!schedule) return schedule.error();
  return without_communication(*schedule);
}

}  // namespace troupe
