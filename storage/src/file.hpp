// storage/src/file.hpp -- files as the operating system gives them: descriptors, errors, renames.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "troupe/engine/expected.hpp"

namespace troupe::storage {

/// `file_failure`: "cannot <verb> <path>: <the text of errno>". Call it right after the failure.
[[nodiscard]] Error file_failure(std::string_view verb, const std::string& path);

/// An owned file descriptor.
class File {
public:
  File() = default;
  explicit File(int descriptor) noexcept : descriptor_{descriptor} {}
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  /// Opens without waiting (a named pipe does not block) and without leaking into child processes.
  /// @param flags, mode as for `open(2)`.
  [[nodiscard]] static File open(const std::string& path, int flags, unsigned mode = 0666);

  [[nodiscard]] explicit operator bool() const noexcept { return descriptor_ >= 0; }
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

  /// Writes all of `bytes`; false with errno set if not all could be written.
  [[nodiscard]] bool write(std::span<const std::byte> bytes) const;

private:
  int descriptor_ = -1;
};

/// A file that appears under its name complete or not at all: it is written beside its place and
/// renamed by `commit`. Without a commit nothing is left behind.
class AtomicFile {
public:
  [[nodiscard]] static Expected<AtomicFile> create(std::string path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  [[nodiscard]] Expected<Done> write(std::span<const std::byte> bytes);
  /// Forces the content to the disk, then gives the file its name, replacing what had it.
  [[nodiscard]] Expected<Done> commit();

private:
  AtomicFile(std::string path, std::string partial_path, File file) noexcept
      : path_{std::move(path)}, partial_path_{std::move(partial_path)}, file_{std::move(file)} {}

  std::string path_;
  std::string partial_path_;  ///< Empty once there is nothing to remove.
  File file_;
};

}  // namespace troupe::storage
