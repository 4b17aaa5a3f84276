#include "troupe/storage/sampler.hpp"

#include <algorithm>
#include <bit>

#include "troupe/engine/check.hpp"
#include "troupe/engine/random.hpp"

namespace troupe::storage {

namespace {

// One application of the network to a value of twice `half_bits` bits.
std::uint64_t scrambled(std::uint64_t value, std::uint32_t half_bits, std::uint64_t key) {
  const std::uint64_t mask = (1ULL << half_bits) - 1;
  std::uint64_t left = value >> half_bits;
  std::uint64_t right = value & mask;
  for (std::uint64_t round = 0; round < 4; ++round) {
    const auto next = left ^ (mixed(key + round, right) & mask);
    left = right;
    right = next;
  }
  return left << half_bits | right;
}

void fill_from(const TokenView& from, const BatchShape& shape, const auto& start_of,
               std::uint64_t first_sample, std::span<std::int32_t> tokens,
               std::span<std::int32_t> targets) {
  const auto count = shape.samples_per_replica();
  const std::size_t sequence = shape.sequence;
  TROUPE_ASSERT(tokens.size() == count * sequence && targets.size() == tokens.size());
  for (std::uint64_t row = 0; row < count; ++row) {
    const auto start = start_of(first_sample + row);
    from.copy(start, tokens.subspan(row * sequence, sequence));
    from.copy(start + 1, targets.subspan(row * sequence, sequence));
  }
}

}  // namespace

std::uint64_t BatchShape::first_sample_of(std::uint32_t step, std::uint32_t replica) const {
  TROUPE_ASSERT(step >= 1 && replica < replicas);
  return (step - 1) * samples_per_step() + replica * samples_per_replica();
}

std::uint64_t mixed(std::uint64_t a, std::uint64_t b) noexcept {
  return Random{Random{a}.next() ^ b}.next();
}

BatchShape batch_shape_of(const Config& config) noexcept {
  return {.replicas = config.parallel.data,
          .microbatches = config.schedule.microbatches,
          .microbatch_size = config.schedule.microbatch_size,
          .sequence = config.model.sequence};
}

std::uint64_t permuted(std::uint64_t index, std::uint64_t count, std::uint64_t key) {
  TROUPE_ASSERT(index < count && count <= 1ULL << 62U);
  const auto bits = static_cast<std::uint32_t>(std::bit_width(count - 1));
  const auto half_bits = std::max(1U, (bits + 1) / 2);
  do {
    index = scrambled(index, half_bits, key);
  } while (index >= count);
  return index;
}

TrainingSampler::TrainingSampler(TokenView tokens, const BatchShape& shape, std::uint64_t seed)
    : tokens_{tokens}, shape_{shape}, seed_{seed} {
  const std::uint64_t sequence = shape.sequence;
  TROUPE_ASSERT(sequence >= 1 && tokens.token_count() > sequence);
  const auto usable = tokens.token_count() - 1;  // The last token is a target only.
  window_count_ = std::max<std::uint64_t>(1, (usable - (sequence - 1)) / sequence);
  offset_count_ = std::min(sequence, usable - window_count_ * sequence + 1);
}

std::uint64_t TrainingSampler::start_of(std::uint64_t index) const {
  const auto epoch = index / window_count_;
  const auto key = mixed(seed_, epoch);
  const auto offset = Random{key}.below(offset_count_);
  return offset + permuted(index % window_count_, window_count_, key) * shape_.sequence;
}

void TrainingSampler::fill(std::uint32_t step, std::uint32_t replica,
                           std::span<std::int32_t> tokens, std::span<std::int32_t> targets) const {
  const auto start = [this](std::uint64_t index) { return start_of(index); };
  fill_from(tokens_, shape_, start, shape_.first_sample_of(step, replica), tokens, targets);
}

ValidationSampler::ValidationSampler(TokenView tokens, const BatchShape& shape,
                                     std::uint32_t batch_count)
    : tokens_{tokens}, shape_{shape}, sample_count_{shape.samples_per_step() * batch_count} {
  TROUPE_ASSERT(shape.sequence >= 1 && tokens.token_count() > shape.sequence);
  TROUPE_ASSERT(sample_count_ <= 1ULL << 32U);
}

std::uint64_t ValidationSampler::start_of(std::uint64_t index) const {
  TROUPE_ASSERT(index < sample_count_);
  if (sample_count_ == 1) return 0;
  // floor(index * last / gaps), in parts that cannot overflow.
  const auto last = tokens_.token_count() - 1 - shape_.sequence;
  const auto gaps = sample_count_ - 1;
  return index * (last / gaps) + index * (last % gaps) / gaps;
}

void ValidationSampler::fill(std::uint32_t batch, std::uint32_t replica,
                             std::span<std::int32_t> tokens,
                             std::span<std::int32_t> targets) const {
  const auto start = [this](std::uint64_t index) { return start_of(index); };
  fill_from(tokens_, shape_, start, shape_.first_sample_of(batch, replica), tokens, targets);
}

}  // namespace troupe::storage
