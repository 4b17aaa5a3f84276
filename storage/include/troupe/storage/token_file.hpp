// troupe/storage/token_file.hpp -- a corpus as a sequence of token numbers, memory-mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "troupe/engine/check.hpp"
#include "troupe/engine/config.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/storage/mapped_file.hpp"

namespace troupe::storage {

/// A stretch of a token file. Points into it; copies are free. Thread-safe.
class TokenView {
public:
  TokenView() = default;
  explicit TokenView(std::span<const std::byte> tokens) noexcept : tokens_{tokens} {}

  [[nodiscard]] std::uint64_t token_count() const noexcept { return tokens_.size(); }

  /// The tokens `[begin, end)` of this stretch, `begin <= end <= token_count()`.
  [[nodiscard]] TokenView part(std::uint64_t begin, std::uint64_t end) const {
    TROUPE_ASSERT(begin <= end && end <= token_count());
    return TokenView{tokens_.subspan(begin, end - begin)};
  }

  /// Copies the `out.size()` tokens from `begin` on; all of them exist.
  void copy(std::uint64_t begin, std::span<std::int32_t> out) const;

private:
  std::span<const std::byte> tokens_;
};

/// A mapped token file. With the tokenizer "bytes" a token is a byte (vocabulary 256), so that the
/// text is its own token file: nothing is converted, stored twice or out of date.
class TokenFile {
public:
  /// @returns `invalid_config` for a tokenizer other than "bytes"; `file_failure` naming path and
  ///          reason; `invalid_file` if the file is empty.
  [[nodiscard]] static Expected<TokenFile> open(const std::string& path,
                                                std::string_view tokenizer);

  /// Opens `data.text`.
  /// @returns `invalid_config` if it is not set; what the above returns, naming the key `data.text`;
  ///          `invalid_file` with both fingerprints if the text is not the one that
  ///          `data.fingerprint` asks for.
  [[nodiscard]] static Expected<TokenFile> open(const DataConfig& data);

  /// All tokens. Valid as long as this file, also when it has moved.
  [[nodiscard]] TokenView tokens() const noexcept { return TokenView{file_.bytes()}; }

  /// As they lie in the file; valid as long as this file, also when it has moved.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return file_.bytes(); }

  /// Size and digest of all tokens, equal where they are: "4 bytes, SHA-256 " and 64 hexadecimal
  /// digits. Reads the whole file, about a second for a gigabyte.
  [[nodiscard]] std::string fingerprint() const;

private:
  explicit TokenFile(MappedFile file) noexcept : file_{std::move(file)} {}

  MappedFile file_;
};

}  // namespace troupe::storage
