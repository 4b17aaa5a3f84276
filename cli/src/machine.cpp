#include "machine.hpp"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string_view>
#include <system_error>

#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace troupe::cli {

namespace {

namespace fs = std::filesystem;

/// What follows `key` and a colon on the first line that begins with it, without spaces around.
std::string value_in(const fs::path& path, std::string_view key) {
  std::ifstream file{path};
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(':');
    if (colon == std::string::npos || !line.starts_with(key)) continue;
    const auto begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return {};
}

std::optional<std::uint64_t> number_in(std::string_view text) {
  std::uint64_t number = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), number);
  return result.ec == std::errc{} ? std::optional{number} : std::nullopt;
}

std::uint64_t kilobytes_of(std::string_view key) {
  return number_in(value_in("/proc/meminfo", key)).value_or(0) * 1024;
}

/// Words of a file of the process's control group and of each group around it, innermost first.
/// Version 2 of control groups alone.
std::vector<std::vector<std::string>> control_group_words(const std::string& file_name) {
  std::vector<std::vector<std::string>> found;
  const fs::path root{"/sys/fs/cgroup"};
  auto group = value_in("/proc/self/cgroup", "0:");  // Of "0::/system.slice/ssh": ":/system..."
  group.erase(0, group.find('/'));
  for (auto folder = root / fs::path{group}.relative_path();; folder = folder.parent_path()) {
    std::ifstream file{folder / file_name};
    if (file) {
      found.emplace_back(std::istream_iterator<std::string>{file},
                         std::istream_iterator<std::string>{});
    }
    if (folder == root) return found;
  }
}

std::optional<double> core_quota() {
  std::optional<double> least;
  for (const auto& words : control_group_words("cpu.max")) {  // "150000 100000" or "max 100000"
    if (words.size() < 2) continue;
    const auto quota = number_in(words[0]);
    const auto period = number_in(words[1]);
    if (!quota || !period || *period == 0) continue;
    const auto cores = static_cast<double>(*quota) / static_cast<double>(*period);
    least = std::min(least.value_or(cores), cores);
  }
  return least;
}

std::optional<std::uint64_t> memory_quota_bytes() {
  std::optional<std::uint64_t> least;
  for (const auto& words : control_group_words("memory.max")) {
    const auto bytes = words.empty() ? std::nullopt : number_in(words[0]);
    if (bytes) least = std::min(least.value_or(*bytes), *bytes);
  }
  return least;
}

std::uint32_t usable_core_count(std::uint32_t otherwise) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return otherwise;
  return static_cast<std::uint32_t>(CPU_COUNT(&set));
}

ResourceLimit limit_of(__rlimit_resource resource) {
  rlimit limit{};
  if (::getrlimit(resource, &limit) != 0) return {};
  const auto value = [](rlim_t number) {
    return number == RLIM_INFINITY ? std::nullopt : std::optional<std::uint64_t>{number};
  };
  return {.soft = value(limit.rlim_cur), .hard = value(limit.rlim_max)};
}

std::vector<std::string> infiniband_devices() {
  std::vector<std::string> names;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator{"/sys/class/infiniband", none}) {
    names.push_back(entry.path().filename());
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace

std::uint64_t Machine::usable_memory_bytes() const {
  if (!memory_quota_bytes) return available_memory_bytes;
  return available_memory_bytes == 0 ? *memory_quota_bytes
                                     : std::min(available_memory_bytes, *memory_quota_bytes);
}

Machine look_at_machine() {
  Machine machine;
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  machine.host = host;
  machine.processor = value_in("/proc/cpuinfo", "model name");
  machine.core_count = static_cast<std::uint32_t>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
  machine.usable_core_count = usable_core_count(machine.core_count);
  machine.core_quota = core_quota();
  machine.memory_bytes = kilobytes_of("MemTotal");
  machine.available_memory_bytes = kilobytes_of("MemAvailable");
  machine.memory_quota_bytes = memory_quota_bytes();
  struct statvfs shared {};
  if (::statvfs("/dev/shm", &shared) == 0) {
    machine.shared_memory_bytes = std::uint64_t{shared.f_blocks} * shared.f_frsize;
    machine.free_shared_memory_bytes = std::uint64_t{shared.f_bavail} * shared.f_frsize;
  }
  machine.open_files = limit_of(RLIMIT_NOFILE);
  machine.locked_memory_bytes = limit_of(RLIMIT_MEMLOCK);
  machine.infiniband_devices = infiniband_devices();
  return machine;
}

}  // namespace troupe::cli
