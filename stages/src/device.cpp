#include "troupe/stages/device.hpp"

#include <chrono>

namespace troupe::stages {

std::int64_t steady_now_ns() noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace troupe::stages
