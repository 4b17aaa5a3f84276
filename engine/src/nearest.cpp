#include "troupe/engine/nearest.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

#include "troupe/engine/check.hpp"

namespace troupe {

namespace {

constexpr std::size_t compared_max = 64;

}  // namespace

std::uint32_t edit_distance(std::string_view a, std::string_view b) {
  a = a.substr(0, compared_max);
  b = b.substr(0, compared_max);
  // Three rows of the table whose cell (i, j) is the distance of the first i and j letters.
  using Row = std::array<std::uint32_t, compared_max + 1>;
  Row before{};
  Row above{};
  Row row{};
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<std::uint32_t>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before = above;
    above = row;
    row[0] = static_cast<std::uint32_t>(i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::uint32_t replaced = above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({replaced, above[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
  }
  return row[b.size()];
}

std::string_view nearest(std::string_view word, std::span<const std::string_view> candidates) {
  TROUPE_ASSERT(!candidates.empty());
  return *std::min_element(candidates.begin(), candidates.end(), [&](auto left, auto right) {
    return edit_distance(word, left) < edit_distance(word, right);
  });
}

}  // namespace troupe
