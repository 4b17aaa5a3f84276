// engine/src/config_keys.hpp -- every key of a configuration, once: its name, field and range.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "troupe/engine/config.hpp"

namespace troupe::config {

struct Switch {
  bool* place;
};

template <class Integer>
struct Whole {
  Integer* place;
  Integer least;
  Integer most;
};

struct Real {
  double* place;
  double least;
  double most;
};

struct Text {
  std::string* place;
};

/// A list of integers, each within the range.
struct Counts {
  std::vector<std::uint32_t>* place;
  std::uint32_t least;
  std::uint32_t most;
  std::uint32_t size_max;
  bool may_be_one = false;  ///< A number stands for a list of it; the list is not empty.
};

/// An enumeration whose values count up from zero; `names` are their spellings, in order.
template <class Enum>
struct Choice {
  Enum* place;
  std::span<const std::string_view> names;
};

using Value =
    std::variant<Switch, Whole<std::uint32_t>, Whole<std::uint64_t>, Real, Text, Counts,
                 Choice<Family>, Choice<Task>, Choice<OptimizerKind>, Choice<LearningRateSchedule>,
                 Choice<Recompute>, Choice<Policy>, Choice<OptimizerSharding>,
                 Choice<Synchronization>, Choice<Precision>, Choice<WireFormat>, Choice<Offload>>;

struct Key {
  std::string_view table;
  std::string_view name;
  Value value;

  [[nodiscard]] std::string path() const;
};

/// The keys of `config` in the order in which they are written. They point into `config`.
[[nodiscard]] std::vector<Key> keys_of(Config& config);

/// Says what is wrong with a field's present value by itself: "expected ..., found ...".
[[nodiscard]] std::optional<std::string> complaint_about(const Value& value);

/// "expected an integer from 1 to 8, found 0".
[[nodiscard]] std::string range_complaint(const Whole<std::uint32_t>& field,
                                          std::string_view found);
[[nodiscard]] std::string range_complaint(const Whole<std::uint64_t>& field,
                                          std::string_view found);
[[nodiscard]] std::string range_complaint(const Real& field, std::string_view found);

/// `unknown name "cpp"; the nearest known one is "cpu"`.
[[nodiscard]] std::string unknown_complaint(std::string_view found,
                                            std::span<const std::string_view> known);

/// The field's value as TOML writes it.
[[nodiscard]] std::string to_toml(const Value& value);

/// The shortest text that reads back as `number`, with a point or an exponent.
[[nodiscard]] std::string to_text(double number);

/// `text` as a TOML basic string, quotes included: one line, control characters escaped.
[[nodiscard]] std::string toml_string(std::string_view text);

/// `text` in one line: control characters escaped.
[[nodiscard]] std::string one_line(std::string_view text);

/// `text` as `toml_string` writes it, shortened for an error message: at most about 60 bytes.
[[nodiscard]] std::string excerpt(std::string_view text);

}  // namespace troupe::config
