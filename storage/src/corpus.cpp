#include "troupe/storage/corpus.hpp"

#include <cmath>
#include <string>
#include <utility>

namespace troupe::storage {

namespace {

std::uint64_t validation_count_of(std::uint64_t token_count, double fraction) {
  return static_cast<std::uint64_t>(std::floor(static_cast<double>(token_count) * fraction));
}

// The shortest corpus both of whose parts hold `needed` tokens; the fraction is at most a half.
std::uint64_t shortest(std::uint64_t needed, double fraction) {
  if (fraction <= 0.0) return needed;
  auto count = static_cast<std::uint64_t>(static_cast<double>(needed) / fraction);
  while (validation_count_of(count, fraction) < needed) ++count;
  return count;
}

Error too_short(const DataConfig& data, std::uint64_t token_count, std::uint32_t sequence) {
  const std::uint64_t needed = std::uint64_t{sequence} + 1;
  const bool is_split = data.validation_fraction > 0.0 && token_count >= needed;
  std::string sentence =
      "data.text: " + data.text + " has " + std::to_string(token_count)
      + " tokens, and a sample takes model.sequence + 1 = " + std::to_string(needed);
  if (is_split) {
    const auto held_out = validation_count_of(token_count, data.validation_fraction);
    sentence += ", but data.validation_fraction leaves " + std::to_string(token_count - held_out)
                + " to train on and holds out " + std::to_string(held_out);
  }
  sentence += "; give a text of at least "
              + std::to_string(shortest(needed, data.validation_fraction))
              + " tokens or a shorter model.sequence";
  if (is_split) sentence += ", or set data.validation_fraction to 0";
  return {Errc::invalid_file, std::move(sentence)};
}

}  // namespace

Expected<Corpus> Corpus::open(const DataConfig& data, std::uint32_t sequence) {
  TROUPE_ASSERT(data.validation_fraction >= 0.0 && data.validation_fraction <= 0.5);
  auto file = TokenFile::open(data);
  if (!file) return file.error();
  const auto token_count = file->tokens().token_count();
  const auto held_out = validation_count_of(token_count, data.validation_fraction);
  const bool validates = data.validation_fraction > 0.0;
  if (token_count - held_out <= sequence || (validates && held_out <= sequence)) {
    return too_short(data, token_count, sequence);
  }
  return Corpus{std::move(*file), held_out};
}

}  // namespace troupe::storage
