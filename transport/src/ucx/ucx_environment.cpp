#include "troupe/transport/ucx_environment.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string_view>

#include <ucp/api/ucp.h>
#include <unistd.h>

#include "ucx/ucx_settings.hpp"

namespace troupe::transport {

namespace {

/// The UCX_* variables of the environment, by name.
std::map<std::string, std::string> users_variables() {
  std::map<std::string, std::string> found;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text{*entry};
    const auto equals = text.find('=');
    if (!text.starts_with("UCX_") || equals == std::string_view::npos) continue;
    found.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return found;
}

}  // namespace

std::string ucx_version() {
  return ucp_get_version_string();
}

std::vector<UcxVariable> ucx_variables(const UcxOptions& options) {
  auto users = users_variables();
  std::vector<UcxVariable> variables;
  for (auto& [name, value, key] : settings_for(options)) {
    UcxVariable variable{.name = "UCX_" + name, .ours = std::move(value), .users = {}};
    if (auto found = users.extract(variable.name)) variable.users = std::move(found.mapped());
    variables.push_back(std::move(variable));
  }
  for (auto& [name, value] : users) variables.push_back({name, {}, std::move(value)});
  return variables;
}

}  // namespace troupe::transport
