// transport/src/gate/file.hpp -- small files that hold what others may not know.
#pragma once

#include <cstddef>
#include <string>

namespace troupe::transport {

/// A file, closed at the end of its scope.
class File {
public:
  /// Opens it with `flags` of open(2). A new one is its owner's alone. The reason of a failure is
  /// in `errno`.
  File(const std::string& path, int flags);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  [[nodiscard]] bool is_open() const noexcept { return descriptor_ >= 0; }
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

private:
  int descriptor_;
};

/// Appends the file to `text`, or as much of it as shows that it has more than `max_bytes`. Returns
/// whether it could be read; if not, the reason is in `errno`.
[[nodiscard]] bool read_all(const File& file, std::size_t max_bytes, std::string& text);

}  // namespace troupe::transport
