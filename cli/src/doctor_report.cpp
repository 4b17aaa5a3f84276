#include "doctor_report.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "troupe/engine/check.hpp"

namespace troupe::cli {

namespace {

using Json = nlohmann::ordered_json;

std::string key_of(std::string name) {
  std::ranges::replace(name, ' ', '_');
  return name;
}

}  // namespace

void DoctorReport::begin(std::string section) {
  sections_.push_back({.name = std::move(section), .findings = {}});
}

void DoctorReport::add(std::string name, std::string text, Json value) {
  TROUPE_ASSERT(!sections_.empty());
  sections_.back().findings.push_back({std::move(name), std::move(text), std::move(value)});
}

void DoctorReport::add(std::string name, const std::string& text) {
  add(std::move(name), text, text);
}

void DoctorReport::add(Attention attention) {
  attentions_.push_back(std::move(attention));
}

bool DoctorReport::runs_can_work() const {
  return std::ranges::none_of(attentions_, &Attention::prevents_runs);
}

std::string DoctorReport::to_text() const {
  std::size_t width = 0;
  for (const auto& section : sections_) {
    for (const auto& finding : section.findings) width = std::max(width, finding.name.size());
  }
  std::string text;
  for (const auto& section : sections_) {
    text += section.name + '\n';
    for (const auto& [name, said, value] : section.findings) {
      text += fmt::format("  {:<{}}  {}\n", name, width, said);
    }
    text += '\n';
  }
  for (const auto& [what, why, what_to_do, prevents_runs] : attentions_) {
    text += fmt::format("attention: {}: {}; {}\n", what, why, what_to_do);
  }
  if (!attentions_.empty()) text += '\n';
  return text
         + (runs_can_work() ? "Runs of several processes work on this machine.\n"
                            : "Runs of several processes do not work on this machine as it is.\n");
}

std::string DoctorReport::to_json() const {
  Json json{{"works", runs_can_work()}};
  for (const auto& section : sections_) {
    auto& findings = json[key_of(section.name)] = Json::object();
    for (const auto& [name, said, value] : section.findings) findings[key_of(name)] = value;
  }
  auto& attentions = json["attention"] = Json::array();
  for (const auto& [what, why, what_to_do, prevents_runs] : attentions_) {
    attentions.push_back({{"what", what},
                          {"why", why},
                          {"what_to_do", what_to_do},
                          {"prevents_runs", prevents_runs}});
  }
  constexpr auto whatever_it_is = Json::error_handler_t::replace;
  return json.dump(2, ' ', false, whatever_it_is) + '\n';
}

}  // namespace troupe::cli
