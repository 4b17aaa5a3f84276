// troupe/storage/mapped_file.hpp -- a file's bytes as memory, read-only.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "troupe/engine/expected.hpp"

namespace troupe::storage {

/// Maps a whole regular file. The bytes keep their address when the object moves. Pages are read
/// when touched; a file that is cut shorter by another program while mapped ends this one (SIGBUS),
/// as for every program that maps files.
class MappedFile {
public:
  /// @returns `file_failure` naming path and reason if `path` cannot be opened or is not a regular
  ///          file. An empty file maps to no bytes.
  [[nodiscard]] static Expected<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

private:
  explicit MappedFile(std::span<const std::byte> bytes) noexcept : bytes_{bytes} {}

  std::span<const std::byte> bytes_;
};

}  // namespace troupe::storage
