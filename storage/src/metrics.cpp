#include "troupe/storage/metrics.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <type_traits>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "troupe/engine/check.hpp"

#include "file.hpp"

namespace troupe::storage {

namespace {

bool is_plain(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char letter) {
    return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z')
           || (letter >= '0' && letter <= '9') || letter == '_';
  });
}

template <class Number>
void append_number(std::string& line, Number number) {
  if constexpr (std::is_floating_point_v<Number>) {
    if (!std::isfinite(number)) {
      line += "null";
      return;
    }
  }
  std::array<char, 32> digits{};
  const auto [end, status] = std::to_chars(digits.begin(), digits.end(), number);
  line.append(digits.begin(), end);
}

}  // namespace

struct MetricLog::Impl {
  std::string path;
  File file;
  std::string line;              ///< Kept, so that appending does not allocate.
  std::uint64_t size_bytes = 0;  ///< Of the whole lines in the file.
};

MetricLog::MetricLog(std::unique_ptr<Impl> impl) noexcept : impl_{std::move(impl)} {}
MetricLog::MetricLog(MetricLog&&) noexcept = default;
MetricLog& MetricLog::operator=(MetricLog&&) noexcept = default;
MetricLog::~MetricLog() = default;

Expected<MetricLog> MetricLog::create(const std::string& path) {
  auto file = File::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
  if (!file) return file_failure("create", path);
  return MetricLog{std::make_unique<Impl>(Impl{.path = path, .file = std::move(file), .line = {}})};
}

Expected<Done> MetricLog::append(std::span<const Metric> metrics) {
  auto& [path, file, line, size_bytes] = *impl_;
  line = "{";
  for (const auto& [name, value] : metrics) {
    TROUPE_ASSERT(is_plain(name));
    line += line.size() > 1 ? ",\"" : "\"";
    line += name;
    line += "\":";
    std::visit([&text = line](auto number) { append_number(text, number); }, value);
  }
  line += "}\n";
  if (!file.write(std::as_bytes(std::span{line}))) {
    auto failure = file_failure("write", path);
    // Half a line may have fitted. If it cannot be taken back either, the first reason still
    // counts.
    [[maybe_unused]] const auto status =
        ::ftruncate(file.descriptor(), static_cast<off_t>(size_bytes));
    return failure;
  }
  size_bytes += line.size();
  return Done{};
}

}  // namespace troupe::storage
