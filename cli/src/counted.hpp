// cli/src/counted.hpp -- a number and what is counted, as in "1 replica" and "2 replicas".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace troupe::cli {

/// @param noun in the singular; one whose plural ends in "es" ends in "s" or "ch".
[[nodiscard]] inline std::string counted(std::uint64_t count, std::string_view noun) {
  const auto* const ending = noun.ends_with('s') || noun.ends_with("ch") ? "es" : "s";
  return std::to_string(count) + " " + std::string{noun} + (count == 1 ? "" : ending);
}

}  // namespace troupe::cli
