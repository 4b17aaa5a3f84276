#include "rank_order_sum.hpp"

#include <algorithm>
#include <array>

#include "troupe/engine/bf16.hpp"

namespace troupe::transport {

namespace {

constexpr std::size_t block = 1024;  // Floats added up in the first-level cache.

float rounded(float value) {
  return from_bf16(to_bf16(value));
}

/// `target` is `one` or `other` or overlaps neither.
void add(const float* one, const float* other, float* target, std::size_t count) {
#pragma GCC ivdep
  for (std::size_t i = 0; i < count; ++i) target[i] = one[i] + other[i];
}

}  // namespace

void add_in_rank_order(std::span<const float* const> sources, std::span<float* const> targets,
                       std::size_t count) {
  std::array<float, block> sum;
  for (std::size_t begin = 0; begin < count; begin += block) {
    const auto length = std::min(block, count - begin);
    const auto* so_far = sources[0] + begin;
    for (std::size_t s = 1; s < sources.size(); ++s) {
      auto* const target = s + 1 == sources.size() ? targets[0] + begin : sum.data();
      add(so_far, sources[s] + begin, target, length);
      so_far = target;
    }
    for (auto* target : targets) {
      if (target + begin != so_far) std::copy_n(so_far, length, target + begin);
    }
  }
}

void add_bf16_in_rank_order(std::span<const float* const> sources, std::span<float* const> targets,
                            std::size_t count) {
  std::array<float, block> sum;
  for (std::size_t begin = 0; begin < count; begin += block) {
    const auto length = std::min(block, count - begin);
    const auto* const first = sources[0] + begin;
    for (std::size_t i = 0; i < length; ++i) sum[i] = rounded(first[i]);
    for (const auto* source : sources.subspan(1)) {
      for (std::size_t i = 0; i < length; ++i) sum[i] += rounded(source[begin + i]);
    }
    for (std::size_t i = 0; i < length; ++i) sum[i] = rounded(sum[i]);
    for (auto* target : targets) std::copy_n(sum.data(), length, target + begin);
  }
}

void add_bf16_in_rank_order(std::span<const std::uint16_t* const> sources, std::uint16_t* target,
                            std::size_t count) {
  std::array<float, block> sum;
  for (std::size_t begin = 0; begin < count; begin += block) {
    const auto length = std::min(block, count - begin);
    unpack_bf16(sources[0] + begin, sum.data(), length);
    for (const auto* source : sources.subspan(1)) {
      for (std::size_t i = 0; i < length; ++i) sum[i] += from_bf16(source[begin + i]);
    }
    pack_bf16(sum.data(), target + begin, length);
  }
}

void pack_bf16(const float* values, std::uint16_t* packed, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) packed[i] = to_bf16(values[i]);
}

void unpack_bf16(const std::uint16_t* packed, float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = from_bf16(packed[i]);
}

}  // namespace troupe::transport
