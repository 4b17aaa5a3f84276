#include "troupe/storage/token_file.hpp"

#include <algorithm>
#include <utility>

namespace troupe::storage {

void TokenView::copy(std::uint64_t begin, std::span<std::int32_t> out) const {
  TROUPE_ASSERT(begin <= token_count() && out.size() <= token_count() - begin);
  const auto from = tokens_.subspan(begin, out.size());
  std::transform(from.begin(), from.end(), out.begin(),
                 [](std::byte token) { return std::to_integer<std::int32_t>(token); });
}

Expected<TokenFile> TokenFile::open(const std::string& path, std::string_view tokenizer) {
  if (tokenizer != "bytes") {
    return Error{Errc::invalid_config,
                 "unknown tokenizer \"" + std::string{tokenizer} + "\", expected \"bytes\""};
  }
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  if (file->bytes().empty()) {
    return Error{Errc::invalid_file, path + " is empty, expected a text to train on"};
  }
  return TokenFile{std::move(*file)};
}

}  // namespace troupe::storage
