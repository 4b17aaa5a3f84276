#include <algorithm>
#include <concepts>
#include <cstddef>
#include <optional>
#include <utility>

#include "troupe/engine/nearest.hpp"

#include "config_keys.hpp"
#include "toml.hpp"

namespace troupe {

namespace {

using Complaint = std::optional<std::string>;

Error invalid(const std::string& where, const std::string& what) {
  return {Errc::invalid_config, where + ": " + what};
}

std::string described(const toml::node& node) {
  if (const auto* text = node.as_string()) return "the string " + config::excerpt(text->get());
  if (const auto* whole = node.as_integer()) return "the integer " + std::to_string(whole->get());
  if (const auto* real = node.as_floating_point()) {
    return "the number " + config::to_text(real->get());
  }
  if (const auto* truth = node.as_boolean()) return truth->get() ? "true" : "false";
  if (node.is_table()) return "a table";
  return node.is_array() ? "an array" : "a date or time";
}

Complaint mismatch(std::string_view expected, const toml::node& found) {
  return "expected " + std::string{expected} + ", found " + described(found);
}

// Each `assign` stores the value of `node` if it has the field's type and range.

Complaint assign(const config::Switch& field, const toml::node& node) {
  const auto* found = node.as_boolean();
  if (found == nullptr) return mismatch("true or false", node);
  *field.place = found->get();
  return {};
}

template <class Integer>
Complaint assign(const config::Whole<Integer>& field, const toml::node& node) {
  const auto* found = node.as_integer();
  if (found == nullptr) return mismatch("an integer", node);
  const auto number = found->get();
  if (std::cmp_less(number, field.least) || std::cmp_greater(number, field.most)) {
    return config::range_complaint(field, std::to_string(number));
  }
  *field.place = static_cast<Integer>(number);
  return {};
}

Complaint assign(const config::Real& field, const toml::node& node) {
  const auto found = node.is_number() ? node.value<double>() : std::nullopt;
  if (!found) return mismatch("a number", node);
  *field.place = *found;
  return config::complaint_about(field);
}

Complaint assign(const config::Text& field, const toml::node& node) {
  const auto* found = node.as_string();
  if (found == nullptr) return mismatch("a string", node);
  *field.place = found->get();
  return config::complaint_about(field);
}

Complaint assign(const config::Counts& field, const toml::node& node) {
  std::uint32_t count = 0;
  const config::Whole<std::uint32_t> each{&count, field.least, field.most};
  if (field.may_be_one && node.is_integer()) {
    if (auto complaint = assign(each, node)) return complaint;
    *field.place = {count};
    return {};
  }
  const auto* found = node.as_array();
  if (found == nullptr) {
    return mismatch(
        field.may_be_one ? "an integer or an array of integers" : "an array of integers", node);
  }
  field.place->clear();
  for (const auto& element : *found) {
    if (auto complaint = assign(each, element)) return complaint;
    field.place->push_back(count);
  }
  return config::complaint_about(field);
}

template <class Enum>
Complaint assign(const config::Choice<Enum>& field, const toml::node& node) {
  const auto* found = node.as_string();
  if (found == nullptr) return mismatch("a string", node);
  const auto name = std::find(field.names.begin(), field.names.end(), found->get());
  if (name == field.names.end()) return config::unknown_complaint(found->get(), field.names);
  *field.place = static_cast<Enum>(name - field.names.begin());
  return {};
}

/// Fills one configuration from a text and its overrides.
class Reader {
public:
  explicit Reader(std::string_view source_name) : source_name_{source_name} {}
  Reader(const Reader&) = delete;  // The keys point into the configuration.
  Reader& operator=(const Reader&) = delete;

  Expected<Done> read(std::string_view text);
  Expected<Done> override_with(std::string_view assignment);
  [[nodiscard]] const Config& config() const noexcept { return config_; }

private:
  Expected<Done> read_table(std::string_view table, const toml::table& content);
  Expected<Done> set(const std::string& where, std::string_view table, std::string_view name,
                     const toml::node& node);
  [[nodiscard]] const config::Key* find(std::string_view table, std::string_view name) const;
  [[nodiscard]] std::string suggestion(std::string_view table, std::string_view name) const;
  [[nodiscard]] std::string place_of(const toml::source_region& region) const {
    return source_name_ + ":" + std::to_string(region.begin.line);
  }

  std::string source_name_;
  Config config_;
  std::vector<config::Key> keys_ = config::keys_of(config_);
};

Expected<Done> Reader::read(std::string_view text) {
  const auto parsed = toml::parse(text);
  if (!parsed) {
    const auto& error = parsed.error();
    return invalid(place_of(error.source()),
                   "not valid TOML: " + config::one_line(error.description()));
  }
  for (const auto& [key, node] : parsed.table()) {
    const std::string_view name = key.str();
    const bool is_known = std::any_of(keys_.begin(), keys_.end(),
                                      [&](const auto& known) { return known.table == name; });
    if (!is_known && !node.is_table()) {
      return invalid(place_of(key.source()),
                     "unknown key " + config::excerpt(name) + suggestion("", name));
    }
    if (!is_known) {
      std::vector<std::string_view> tables;
      for (const auto& known : keys_) tables.push_back(known.table);
      return invalid(place_of(key.source()), "unknown table " + config::excerpt(name)
                                                 + "; the nearest known one is ["
                                                 + std::string{nearest(name, tables)} + "]");
    }
    if (!node.is_table()) {
      return invalid(place_of(node.source()),
                     std::string{name} + ": " + *mismatch("a table", node));
    }
    if (auto done = read_table(name, *node.as_table()); !done) return done;
  }
  return Done{};
}

Expected<Done> Reader::read_table(std::string_view table, const toml::table& content) {
  for (const auto& [key, node] : content) {
    const bool is_known = find(table, key.str()) != nullptr;
    const auto where = place_of(is_known ? node.source() : key.source());
    if (auto done = set(where, table, key.str(), node); !done) return done;
  }
  return Done{};
}

Expected<Done> Reader::override_with(std::string_view assignment) {
  const auto trimmed = [](std::string_view text) {
    const auto begin = std::min(text.find_first_not_of(" \t"), text.size());
    return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
  };
  const auto where = "override " + config::excerpt(assignment);
  const auto equals = assignment.find('=');
  if (equals == std::string_view::npos) {
    return invalid(where, "expected key=value, for example train.steps=10");
  }
  const auto path = trimmed(assignment.substr(0, equals));
  const auto dot = std::min(path.find('.'), path.size());
  const auto table = dot < path.size() ? path.substr(0, dot) : std::string_view{};
  const auto name = dot < path.size() ? path.substr(dot + 1) : path;
  const auto value = trimmed(assignment.substr(equals + 1));

  const auto* key = find(table, name);
  const bool is_text = key != nullptr && std::holds_alternative<config::Text>(key->value);
  auto parsed = toml::parse("value = " + std::string{value});
  const bool is_toml = parsed && parsed.table().size() == 1;
  if (!is_toml || (is_text && !parsed.table()["value"].is_string())) {
    parsed = toml::parse("value = " + config::toml_string(value));
    if (!parsed) return invalid(where, "the value is not valid UTF-8");
  }
  return set(where, table, name, *parsed.table().get("value"));
}

Expected<Done> Reader::set(const std::string& where, std::string_view table, std::string_view name,
                           const toml::node& node) {
  const auto* key = find(table, name);
  if (key == nullptr) {
    const auto path = (table.empty() ? "" : std::string{table} + ".") + std::string{name};
    return invalid(where, "unknown key " + config::excerpt(path) + suggestion(table, name));
  }
  const auto complaint =
      std::visit([&](const auto& field) { return assign(field, node); }, key->value);
  if (complaint) return invalid(where, key->path() + ": " + *complaint);
  return Done{};
}

const config::Key* Reader::find(std::string_view table, std::string_view name) const {
  const auto key = std::find_if(keys_.begin(), keys_.end(), [&](const auto& known) {
    return known.table == table && known.name == name;
  });
  return key == keys_.end() ? nullptr : &*key;
}

std::string Reader::suggestion(std::string_view table, std::string_view name) const {
  // The right word in the wrong table is nearer than another word in the right one.
  const auto distance = [&](const config::Key& key) {
    return edit_distance(name, key.name) + std::min(edit_distance(table, key.table), 2U);
  };
  const auto key = std::min_element(
      keys_.begin(), keys_.end(),
      [&](const auto& left, const auto& right) { return distance(left) < distance(right); });
  return "; the nearest known key is " + key->path();
}

}  // namespace

Expected<Config> parse_config(std::string_view text, std::string_view source_name,
                              std::span<const std::string> overrides) {
  Reader reader{source_name};
  if (auto done = reader.read(text); !done) return done.error();
  for (const auto& assignment : overrides) {
    if (auto done = reader.override_with(assignment); !done) return done.error();
  }
  return reader.config();
}

}  // namespace troupe
