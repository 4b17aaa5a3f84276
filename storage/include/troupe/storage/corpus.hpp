// troupe/storage/corpus.hpp -- a text, its larger part for training and its tail for validation.
#pragma once

#include <cstdint>

#include "troupe/engine/config.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/storage/token_file.hpp"

namespace troupe::storage {

/// The tokens to train on and the tokens held out. The held-out part is the last
/// `floor(token_count * validation_fraction)` tokens, so no token is in both.
class Corpus {
public:
  /// Opens `data.text` for samples of `sequence` tokens.
  /// @returns what `TokenFile::open` returns; `invalid_file` with the count found and the count
  ///          needed if a part is too short for one sample and the token after it. A
  ///          `validation_fraction` of 0 holds nothing out.
  [[nodiscard]] static Expected<Corpus> open(const DataConfig& data, std::uint32_t sequence);

  /// Valid as long as this corpus, also when it has moved.
  [[nodiscard]] TokenView training() const {
    return file_.tokens().part(0, file_.tokens().token_count() - validation_count_);
  }
  /// As above; empty if nothing is held out.
  [[nodiscard]] TokenView validation() const {
    const auto count = file_.tokens().token_count();
    return file_.tokens().part(count - validation_count_, count);
  }

  /// Equal for equal texts; see `TokenFile::fingerprint`.
  [[nodiscard]] std::string fingerprint() const { return file_.fingerprint(); }

private:
  Corpus(TokenFile file, std::uint64_t validation_count) noexcept
      : file_{std::move(file)}, validation_count_{validation_count} {}

  TokenFile file_;
  std::uint64_t validation_count_ = 0;
};

}  // namespace troupe::storage
