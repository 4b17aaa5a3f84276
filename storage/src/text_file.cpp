#include "troupe/storage/text_file.hpp"

#include <span>

#include "troupe/storage/mapped_file.hpp"

#include "file.hpp"

namespace troupe::storage {

Expected<std::string> read_text(const std::string& path) {
  const auto file = MappedFile::open(path);
  if (!file) return file.error();
  const auto bytes = file->bytes();
  if (bytes.size() > text_size_max_bytes) {
    return Error{Errc::invalid_file, path + " has " + std::to_string(bytes.size())
                                         + " bytes, expected a text of at most "
                                         + std::to_string(text_size_max_bytes)};
  }
  return std::string{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Expected<Done> write_text(const std::string& path, std::string_view text) {
  auto file = AtomicFile::create(path);
  if (!file) return file.error();
  if (auto written = file->write(std::as_bytes(std::span{text})); !written) return written;
  return file->commit();
}

}  // namespace troupe::storage
