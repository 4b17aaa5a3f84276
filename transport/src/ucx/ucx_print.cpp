#include "ucx/ucx_print.hpp"

#include <algorithm>
#include <cctype>

namespace troupe::transport {

namespace {

/// Calls `use` with each part of `text` between `separator`s.
template <class Use>
void for_each_part(std::string_view text, char separator, Use use) {
  while (!text.empty()) {
    const auto end = std::min(text.find(separator), text.size());
    use(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

/// Strips the `1:` in front of a lane's resource and the `.0` behind it.
std::string_view stripped(std::string_view word) {
  if (const auto colon = word.find(':'); colon != std::string_view::npos) {
    word.remove_prefix(colon + 1);
  }
  const auto dot = word.rfind('.');
  const bool path_index = dot != std::string_view::npos && dot + 1 < word.size()
                          && std::ranges::all_of(word.substr(dot + 1), [](char c) {
                               return std::isdigit(static_cast<unsigned char>(c)) != 0;
                             });
  return path_index ? word.substr(0, dot) : word;
}

}  // namespace

std::vector<std::string> transports_in(std::string_view text) {
  std::vector<std::string> found;
  for_each_part(text, '\n', [&](std::string_view line) {
    if (line.find(" resource ") == std::string_view::npos
        && line.find(" lane[") == std::string_view::npos) {
      return;
    }
    bool first = true;  // What follows on a lane's line describes the same transport again.
    for_each_part(line, ' ', [&](std::string_view word) {
      if (!first || word.find('/') == std::string_view::npos) return;
      first = false;
      const std::string name{stripped(word)};
      if (std::ranges::find(found, name) == found.end()) found.push_back(name);
    });
  });
  return found;
}

}  // namespace troupe::transport
