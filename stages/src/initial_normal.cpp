#include "initial_normal.hpp"

#include <cmath>
#include <numbers>

#include "troupe/engine/random.hpp"
#include "troupe/stages/transformer_stage.hpp"

namespace troupe::stages {
namespace {

/// FNV-1a, 64 bits.
std::uint64_t hash_of(std::string_view name) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  return hash;
}

/// Uniform in (0, 1): the upper 53 bits, moved off zero by half a step.
double uniform_of(std::uint64_t bits) noexcept {
  return (static_cast<double>(bits >> 11U) + 0.5) * 0x1p-53;
}

}  // namespace

InitialNormal::InitialNormal(std::uint64_t seed, std::string_view name) noexcept
    : key_{Random{seed ^ hash_of(name)}.next()} {}

std::array<float, 2> InitialNormal::pair(std::uint64_t k) const noexcept {
  constexpr std::uint64_t golden = 0x9e3779b97f4a7c15ULL;  // The step of SplitMix64's counter.
  Random random{key_ + 2 * k * golden};
  const double radius = std::sqrt(-2.0 * std::log(uniform_of(random.next())));
  const double angle = 2.0 * std::numbers::pi * uniform_of(random.next());
  return {static_cast<float>(radius * std::cos(angle)),
          static_cast<float>(radius * std::sin(angle))};
}

float InitialNormal::operator()(std::uint64_t index) const noexcept {
  return pair(index / 2)[index % 2];
}

void InitialNormal::fill(std::span<float> values, float deviation,
                         std::uint64_t first) const noexcept {
  std::size_t i = 0;
  if (first % 2 == 1 && !values.empty()) values[i++] = deviation * pair(first / 2)[1];
  for (; i < values.size(); i += 2) {
    const auto normals = pair((first + i) / 2);
    values[i] = deviation * normals[0];
    if (i + 1 < values.size()) values[i + 1] = deviation * normals[1];
  }
}

float initial_normal(std::uint64_t seed, std::string_view name, std::uint64_t index) {
  return InitialNormal{seed, name}(index);
}

}  // namespace troupe::stages
