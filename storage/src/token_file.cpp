#include "troupe/storage/token_file.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include <openssl/evp.h>

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

/// Who trains with others must have their text.
Expected<TokenFile> TokenFile::open(const DataConfig& data) {
  if (data.text.empty()) {
    return Error{Errc::invalid_config, "data.text: not set; give the path of the text to train on"};
  }
  auto file = open(data.text, data.tokenizer);
  if (!file) return Error{file.error().code, "data.text: " + file.error().context};
  if (data.fingerprint.empty()) return file;
  const auto found = file->fingerprint();
  if (found == data.fingerprint) return file;
  return Error{Errc::invalid_file, "data.text: " + data.text + " has " + found
                                       + ", but the run trains on a text that has "
                                       + data.fingerprint + "; copy that one here"};
}

std::string TokenFile::fingerprint() const {
  constexpr std::string_view digits = "0123456789abcdef";
  const auto bytes = file_.bytes();
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  const auto made =
      EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr);
  TROUPE_ASSERT(made == 1 && size == 32);
  auto text = std::to_string(bytes.size()) + " bytes, SHA-256 ";
  for (unsigned i = 0; i < size; ++i) {
    text += digits[digest[i] >> 4U];
    text += digits[digest[i] & 15U];
  }
  return text;
}

}  // namespace troupe::storage
