#include <cmath>

#include "troupe/stages/kernels.hpp"

namespace troupe::stages {

std::vector<float> rotary_turns(std::uint32_t sequence, std::uint32_t head_size, double base) {
  const std::size_t half = head_size / 2;
  std::vector<float> turns(std::size_t{sequence} * head_size);
  for (std::size_t t = 0; t < sequence; ++t) {
    for (std::size_t i = 0; i < half; ++i) {
      const auto angle =
          static_cast<double>(t) * std::pow(base, -2.0 * static_cast<double>(i) / head_size);
      turns[t * head_size + i] = static_cast<float>(std::cos(angle));
      turns[t * head_size + half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return turns;
}

}  // namespace troupe::stages
