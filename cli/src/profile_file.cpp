#include "profile_file.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "troupe/storage/text_file.hpp"

namespace troupe::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr int format_version = 1;
constexpr auto version_key = "troupe_profile";

/// A day: longer than anything that a step does.
constexpr std::int64_t duration_max_ns = std::int64_t{86'400} * 1'000'000'000;

/// More than anything carries: what takes no time.
constexpr double bandwidth_max = 1e15;

/// Goes through what parts take with one number of shards, with one of the two below.
template <class Visitor, class AnyParts>
void visit_parts(Visitor& visitor, AnyParts& parts) {
  visitor.count("shards", parts.shard_count);
  visitor.passes("embedding", parts.embedding);
  visitor.passes("layer", parts.layer);
  visitor.passes("recomputing_layer", parts.recomputing_layer);
  visitor.passes("head", parts.head);
}

/// Goes through the members of a profile in the order of the file.
template <class Visitor, class AnyProfile>
void visit_members(Visitor& visitor, AnyProfile& profile) {
  visitor.choice("family", profile.model.family, family_names);
  visitor.count("hidden", profile.model.hidden);
  visitor.count("heads", profile.model.heads);
  visitor.count("kv_heads", profile.model.kv_heads);
  visitor.count("feed_forward", profile.model.feed_forward);
  visitor.count("sequence", profile.model.sequence);
  visitor.count("vocabulary", profile.model.vocabulary);
  if (profile.model.family == Family::bert) visitor.choice("task", profile.model.task, task_names);
  if (profile.model.classifies()) visitor.count("classes", profile.model.classes);
  visitor.real("dropout", profile.model.dropout);
  visitor.real("attention_dropout", profile.model.attention_dropout);
  visitor.count("microbatch_size", profile.microbatch_size);
  visitor.count("threads_per_stage", profile.threads_per_stage);
  visitor.choice("precision", profile.precision, precision_names);
  visitor.count("streams", profile.stream_count);
  visitor.choice("recompute", profile.recompute, recompute_names);
  visitor.flag("sequence_parallel", profile.sequence_parallel);
  visitor.parts("parts", profile.parts);
  visitor.real("optimizer_ns_per_element", profile.optimizer_ns_per_element);
  visitor.real("measuring_ns_per_element", profile.measuring_ns_per_element);
  visitor.duration("dispatch_ns", profile.dispatch_ns);
  visitor.duration("director_ns", profile.director_ns);
  visitor.duration("start_ns", profile.start_ns);
  visitor.wire("reduction", profile.reduction);
  visitor.flag("spare_cores", profile.has_spare_cores);
  visitor.links("between_processes", profile.between_processes);
  visitor.unevenness("unevenness", profile.unevenness);
}

/// Goes through what ranks of different processes exchange takes.
template <class Visitor, class AnyLinks>
void visit_links(Visitor& visitor, AnyLinks& links) {
  visitor.wire("link", links.link);
  visitor.wire("reduction", links.reduction);
}

struct PassMember {
  const char* name;
  std::int64_t PassCosts::*value;
};
constexpr std::array pass_members{PassMember{"F", &PassCosts::forward_ns},
                                  PassMember{"B", &PassCosts::backward_ns},
                                  PassMember{"I", &PassCosts::backward_input_ns},
                                  PassMember{"W", &PassCosts::backward_weight_ns}};

constexpr auto latency_name = "latency_ns";
constexpr auto bandwidth_name = "bytes_per_second";
constexpr auto pass_spread_name = "pass_spread";
constexpr auto slowdowns_name = "slowdowns";

class Writer {
public:
  explicit Writer(Json json) : json_(std::move(json)) {}  // Braces would make a list of it.

  void count(const char* name, std::uint32_t value) { json_[name] = value; }
  template <class Enum>
  void choice(const char* name, Enum value, std::span<const std::string_view> names) {
    json_[name] = names[static_cast<std::size_t>(value)];
  }
  void flag(const char* name, bool value) { json_[name] = value; }
  void real(const char* name, double value) { json_[name] = value; }
  void duration(const char* name, std::int64_t value) { json_[name] = value; }
  void passes(const char* name, const PassCosts& costs) {
    for (const auto& [letter, value] : pass_members) json_[name][letter] = costs.*value;
  }
  void parts(const char* name, const std::vector<PartTimes>& list) {
    for (const auto& parts : list) {
      Writer writer{Json::object()};
      visit_parts(writer, parts);
      json_[name].push_back(std::move(writer.json_));
    }
  }
  void wire(const char* name, const Wire& wire) {
    json_[name] = {{latency_name, wire.latency_ns},
                   {bandwidth_name, std::min(wire.bytes_per_second, bandwidth_max)}};
  }
  void links(const char* name, const std::optional<ProcessLinks>& links) {
    Writer writer{Json{}};
    if (links) visit_links(writer, *links);
    json_[name] = std::move(writer.json_);
  }
  void unevenness(const char* name, const Unevenness& unevenness) {
    json_[name] = {{pass_spread_name, unevenness.pass_spread}, {slowdowns_name, Json::array()}};
    for (const auto& of_step : unevenness.slowdowns) {
      // Four digits are more than such a factor has.
      auto row = Json::array();
      for (const auto slowdown : of_step) row.push_back(std::round(1e4 * slowdown) / 1e4);
      json_[name][slowdowns_name].push_back(std::move(row));
    }
  }
  [[nodiscard]] std::string text() const { return json_.dump(2) + "\n"; }

private:
  Json json_;
};

class Reader {
public:
  Reader(const Json& json, const std::string& source) : json_{&json}, source_{source} {}

  void count(const char* name, std::uint32_t& value) {
    read(*json_, name, "a whole number from 1 to 4294967295", [&](const Json& found) {
      if (!found.is_number_integer() || found < 1
          || found > std::numeric_limits<std::uint32_t>::max()) {
        return false;
      }
      value = found.get<std::uint32_t>();
      return true;
    });
  }
  template <class Enum>
  void choice(const char* name, Enum& value, std::span<const std::string_view> names) {
    const auto expected = fmt::format("one of {}", fmt::join(names, ", "));
    read(*json_, name, expected.c_str(), [&](const Json& found) {
      const auto place =
          std::ranges::find(names, found.is_string() ? found.get<std::string>() : "");
      if (place == names.end()) return false;
      value = static_cast<Enum>(place - names.begin());
      return true;
    });
  }
  void flag(const char* name, bool& value) {
    read(*json_, name, "true or false", [&](const Json& found) {
      if (!found.is_boolean()) return false;
      value = found.get<bool>();
      return true;
    });
  }
  void real(const char* name, double& value) {
    read(*json_, name, "a number from 0 to 1e9",
         [&value](const Json& found) { return take_real(found, 1e9, value); });
  }
  void duration(const char* name, std::int64_t& value) { duration_in(*json_, name, value); }
  void passes(const char* name, PassCosts& costs) {
    read(*json_, name, "an object with F, B, I and W", [&](const Json& found) {
      if (!found.is_object()) return false;
      for (const auto& [letter, value] : pass_members) duration_in(found, letter, costs.*value);
      return true;
    });
  }
  void wire(const char* name, Wire& wire) {
    read(*json_, name, "an object with latency_ns and bytes_per_second", [&](const Json& found) {
      if (!found.is_object()) return false;
      duration_in(found, latency_name, wire.latency_ns);
      read(found, bandwidth_name, "a number from 1 to 1e15", [&](const Json& bandwidth) {
        return take_real(bandwidth, bandwidth_max, wire.bytes_per_second) && bandwidth >= 1.0;
      });
      return true;
    });
  }
  void links(const char* name, std::optional<ProcessLinks>& links) {
    read(*json_, name, "null, or an object with link and reduction", [&](const Json& found) {
      if (found.is_null()) return true;
      if (!found.is_object()) return false;
      const auto* const profile = std::exchange(json_, &found);
      visit_links(*this, links.emplace());
      json_ = profile;
      return true;
    });
  }
  void parts(const char* name, std::vector<PartTimes>& list) {
    read(*json_, name, "a list of objects, one for each number of shards", [&](const Json& found) {
      if (!found.is_array() || found.empty()) return false;
      for (const auto& element : found) {
        if (!element.is_object()) return false;
        const auto* const profile = std::exchange(json_, &element);
        visit_parts(*this, list.emplace_back());
        json_ = profile;
      }
      return true;
    });
  }
  void unevenness(const char* name, Unevenness& unevenness) {
    read(*json_, name, "an object with pass_spread and slowdowns", [&](const Json& found) {
      if (!found.is_object()) return false;
      const auto spread_text = fmt::format("a number from 0 to {}", Unevenness::pass_spread_max);
      read(found, pass_spread_name, spread_text.c_str(), [&](const Json& spread) {
        return take_real(spread, Unevenness::pass_spread_max, unevenness.pass_spread);
      });
      const auto rows_text =
          fmt::format("a list of lists of numbers from 0 to {}", Unevenness::slowdown_max);
      read(found, slowdowns_name, rows_text.c_str(),
           [&](const Json& rows) { return take_slowdowns(rows, unevenness.slowdowns); });
      return true;
    });
  }
  [[nodiscard]] const std::string& complaint() const noexcept { return complaint_; }

private:
  static bool take_real(const Json& found, double max, double& value) {
    if (!found.is_number() || found < 0.0 || found > max) return false;
    value = found.get<double>();
    return true;
  }
  static bool take_slowdowns(const Json& rows, std::vector<std::vector<double>>& slowdowns) {
    if (!rows.is_array()) return false;
    for (const auto& row : rows) {
      if (!row.is_array() || row.empty()) return false;
      auto& of_step = slowdowns.emplace_back();
      for (const auto& number : row) {
        if (!take_real(number, Unevenness::slowdown_max, of_step.emplace_back())) return false;
      }
    }
    return true;
  }
  void duration_in(const Json& object, const char* name, std::int64_t& value) {
    read(object, name, "whole nanoseconds from 0 to a day", [&](const Json& found) {
      if (!found.is_number_integer() || found < 0 || found > duration_max_ns) return false;
      value = found.get<std::int64_t>();
      return true;
    });
  }
  template <class Take>
  void read(const Json& object, const char* name, const char* expected, Take take) {
    if (!complaint_.empty()) return;
    const auto found = object.find(name);
    if (found != object.end() && take(*found)) return;
    if (!complaint_.empty()) return;
    constexpr std::size_t shown_max = 40;
    const auto text = found == object.end()
                          ? std::string{"nothing"}
                          : found->dump(-1, ' ', true, Json::error_handler_t::replace);
    complaint_ = fmt::format("{}: {}: found {}, expected {}; write a new one with `troupe profile`",
                             source_, name, text.substr(0, shown_max), expected);
  }

  const Json* json_;  ///< The object whose members are read.
  const std::string& source_;
  std::string complaint_;
};

}  // namespace

std::string to_json(const Profile& profile) {
  Writer writer{Json{{version_key, format_version}}};
  visit_members(writer, profile);
  return writer.text();
}

Expected<Profile> parse_profile(std::string_view text, const std::string& source_name) {
  const auto json = Json::parse(text, nullptr, false);
  if (!json.is_object() || json.value(version_key, Json{}) != format_version) {
    return Error{Errc::invalid_file,
                 fmt::format("{}: is not a profile: expected a JSON object with \"{}\": {}; write "
                             "one with `troupe profile`",
                             source_name, version_key, format_version)};
  }
  Profile profile;
  Reader reader{json, source_name};
  visit_members(reader, profile);
  if (!reader.complaint().empty()) return Error{Errc::invalid_file, reader.complaint()};
  return profile;
}

Expected<Profile> read_profile(const std::string& path) {
  const auto text = storage::read_text(path);
  if (!text) return text.error();
  return parse_profile(*text, path);
}

}  // namespace troupe::cli
