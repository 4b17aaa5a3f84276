#include "file.hpp"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

namespace troupe::storage {

Error file_failure(std::string_view verb, const std::string& path) {
  const std::error_code reason{errno, std::generic_category()};
  return {Errc::file_failure, "cannot " + std::string{verb} + " " + path + ": " + reason.message()};
}

File::File(File&& other) noexcept : descriptor_{std::exchange(other.descriptor_, -1)} {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File File::open(const std::string& path, int flags, unsigned mode) {
  return File{::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, mode)};
}

bool File::write(std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const auto written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return true;
}

Expected<AtomicFile> AtomicFile::create(std::string path) {
  auto partial_path = path + ".partial";
  auto file = File::open(partial_path, O_WRONLY | O_CREAT | O_TRUNC);
  if (!file) return file_failure("create", partial_path);
  return AtomicFile{std::move(path), std::move(partial_path), std::move(file)};
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_{std::move(other.path_)},
      partial_path_{std::exchange(other.partial_path_, {})},
      file_{std::move(other.file_)} {}

AtomicFile::~AtomicFile() {
  if (!partial_path_.empty()) ::unlink(partial_path_.c_str());
}

Expected<Done> AtomicFile::write(std::span<const std::byte> bytes) {
  if (!file_.write(bytes)) return file_failure("write", path_);
  return Done{};
}

Expected<Done> AtomicFile::commit() {
  if (::fsync(file_.descriptor()) != 0) return file_failure("write", path_);
  if (std::rename(partial_path_.c_str(), path_.c_str()) != 0) return file_failure("replace", path_);
  partial_path_.clear();
  // The name itself is durable once its folder is; a file system that cannot say so is no failure.
  const auto parent = std::filesystem::path{path_}.parent_path().string();
  const auto folder = File::open(parent.empty() ? "." : parent, O_RDONLY | O_DIRECTORY);
  if (folder) ::fsync(folder.descriptor());
  return Done{};
}

}  // namespace troupe::storage
