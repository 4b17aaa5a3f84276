#include "gate/file.hpp"

#include <algorithm>
#include <array>
#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace troupe::transport {

File::File(const std::string& path, int flags)
    : descriptor_{::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, S_IRUSR | S_IWUSR)} {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool read_all(const File& file, std::size_t max_bytes, std::string& text) {
  std::array<char, 4096> buffer{};
  while (text.size() <= max_bytes) {
    const auto wanted = std::min(buffer.size(), max_bytes + 1 - text.size());
    const auto count = ::read(file.descriptor(), buffer.data(), wanted);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return false;
    if (count == 0) return true;
    text.append(buffer.data(), static_cast<std::size_t>(count));
  }
  return true;
}

}  // namespace troupe::transport
