#include "troupe/transport/orphaned_segments.hpp"

#include <chrono>
#include <csignal>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace troupe::transport {

namespace fs = std::filesystem;

namespace {

/// The kernel lends a file for writing only to who is alone with it: neither open nor mapped
/// anywhere else, in other process-id namespaces neither.
bool nobody_has(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return false;
  struct stat facts {};
  // Who opens it meanwhile makes the kernel signal this process, by default with a deadly signal.
  const bool alone = ::fstat(file, &facts) == 0 && S_ISREG(facts.st_mode)
                     && facts.st_uid == ::geteuid() && ::fcntl(file, F_SETSIG, SIGURG) == 0
                     && ::fcntl(file, F_SETLEASE, F_WRLCK) == 0;
  ::close(file);
  return alone;
}

}  // namespace

std::size_t remove_orphaned_segments(const fs::path& folder) {
  std::vector<fs::path> orphans;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator{folder, ignored}) {
    const auto is_of_ucx = entry.path().filename().string().starts_with("ucx_shm_posix_");
    if (is_of_ucx && nobody_has(entry.path())) orphans.push_back(entry.path());
  }
  if (orphans.empty()) return 0;
  // A file is there a moment before the process that makes it has it open.
  std::this_thread::sleep_for(std::chrono::milliseconds{200});
  std::size_t count = 0;
  for (const auto& orphan : orphans) {
    if (nobody_has(orphan) && fs::remove(orphan, ignored)) ++count;
  }
  return count;
}

}  // namespace troupe::transport
