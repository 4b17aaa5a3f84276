#include "troupe/storage/labelled_sampler.hpp"

#include <algorithm>

#include "troupe/engine/check.hpp"

namespace troupe::storage {

namespace {

/// Without a text, the first token stands alone.
void write_row(const LabelledText* text, std::int32_t first_token, std::span<std::int32_t> tokens,
               std::int32_t& length, std::int32_t& label) {
  const std::uint64_t count =
      text == nullptr ? 0 : std::min<std::uint64_t>(tokens.size() - 1, text->text.token_count());
  std::ranges::fill(tokens, 0);
  tokens.front() = first_token;
  if (count > 0) text->text.copy(0, tokens.subspan(1, count));
  length = static_cast<std::int32_t>(1 + count);
  label = text == nullptr ? -1 : static_cast<std::int32_t>(text->label);
}

void write_rows(const LabelledRows& rows, const BatchShape& shape, std::int32_t first_token,
                const auto& text_of) {
  const auto count = shape.samples_per_replica();
  TROUPE_ASSERT(rows.tokens.size() == count * shape.sequence && rows.lengths.size() == count
                && rows.labels.size() == count);
  for (std::uint64_t row = 0; row < count; ++row) {
    write_row(text_of(row), first_token, rows.tokens.subspan(row * shape.sequence, shape.sequence),
              rows.lengths[row], rows.labels[row]);
  }
}

}  // namespace

LabelledTrainingSampler::LabelledTrainingSampler(std::span<const LabelledText> texts,
                                                 const BatchShape& shape, std::uint64_t seed,
                                                 std::int32_t first_token)
    : texts_{texts}, shape_{shape}, seed_{seed}, first_token_{first_token} {
  TROUPE_ASSERT(!texts.empty() && shape.sequence >= 1);
}

std::uint64_t LabelledTrainingSampler::index_of(std::uint64_t sample) const {
  const auto key = mixed(seed_, sample / texts_.size());
  return permuted(sample % texts_.size(), texts_.size(), key);
}

void LabelledTrainingSampler::fill(std::uint32_t step, std::uint32_t replica,
                                   const LabelledRows& rows) const {
  const auto first = shape_.first_sample_of(step, replica);
  write_rows(rows, shape_, first_token_,
             [&](std::uint64_t row) { return &texts_[index_of(first + row)]; });
}

LabelledValidationSampler::LabelledValidationSampler(std::span<const LabelledText> texts,
                                                     const BatchShape& shape,
                                                     std::int32_t first_token)
    : texts_{texts}, shape_{shape}, first_token_{first_token} {
  TROUPE_ASSERT(!texts.empty() && shape.sequence >= 1);
}

std::uint32_t LabelledValidationSampler::batch_count() const noexcept {
  const auto size = shape_.samples_per_step();
  return static_cast<std::uint32_t>((texts_.size() + size - 1) / size);
}

std::span<const LabelledText> LabelledValidationSampler::texts_of(std::uint32_t batch) const {
  TROUPE_ASSERT(batch >= 1 && batch <= batch_count());
  const auto first = shape_.first_sample_of(batch, 0);
  return texts_.subspan(first, std::min(shape_.samples_per_step(), texts_.size() - first));
}

void LabelledValidationSampler::fill(std::uint32_t batch, std::uint32_t replica,
                                     const LabelledRows& rows) const {
  const auto texts = texts_of(batch);
  const auto first = replica * shape_.samples_per_replica();
  write_rows(rows, shape_, first_token_, [&](std::uint64_t row) {
    return first + row < texts.size() ? &texts[first + row] : nullptr;
  });
}

}  // namespace troupe::storage
