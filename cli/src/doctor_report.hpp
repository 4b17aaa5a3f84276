// cli/src/doctor_report.hpp -- what `troupe doctor` has found, for people and for machines.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace troupe::cli {

/// Something that makes runs fail, or slow.
struct Attention {
  std::string what;
  std::string why;
  std::string what_to_do;
  bool prevents_runs = false;
};

/// Findings in sections, in the order in which they are added.
class DoctorReport {
public:
  /// Names the section of the findings that follow.
  void begin(std::string section);
  /// @param text for people; `value` for machines, under `name` with '_' for spaces.
  void add(std::string name, std::string text, nlohmann::ordered_json value);
  /// A finding that reads the same for both.
  void add(std::string name, const std::string& text);
  void add(Attention attention);

  [[nodiscard]] bool runs_can_work() const;

  /// Sections with their findings below each other, then the attentions, then a verdict.
  [[nodiscard]] std::string to_text() const;
  /// {"works": true, "SECTION": {"NAME": VALUE, ...}, ..., "attention": [{"what": ...}, ...]}
  [[nodiscard]] std::string to_json() const;

private:
  struct Finding {
    std::string name;
    std::string text;
    nlohmann::ordered_json value;
  };
  struct Section {
    std::string name;
    std::vector<Finding> findings;
  };

  std::vector<Section> sections_;
  std::vector<Attention> attentions_;
};

}  // namespace troupe::cli
