#include "troupe/storage/mapped_file.hpp"

#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "file.hpp"

namespace troupe::storage {

Expected<MappedFile> MappedFile::open(const std::string& path) {
  const auto file = File::open(path, O_RDONLY);
  struct stat status {};
  if (!file || ::fstat(file.descriptor(), &status) != 0) return file_failure("open", path);
  if (S_ISDIR(status.st_mode)) {
    return Error{Errc::file_failure, "cannot read " + path + ": it is a folder, expected a file"};
  }
  if (!S_ISREG(status.st_mode)) {
    return Error{Errc::file_failure, "cannot map " + path + ": it is not a regular file"};
  }
  const auto size_bytes = static_cast<std::size_t>(status.st_size);
  if (size_bytes == 0) return MappedFile{{}};
  void* address = ::mmap(nullptr, size_bytes, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
  if (address == MAP_FAILED) return file_failure("map", path);
  return MappedFile{{static_cast<const std::byte*>(address), size_bytes}};
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_{std::exchange(other.bytes_, {})} {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  // munmap takes the address as it was given; nothing is written through it.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast)
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace troupe::storage
