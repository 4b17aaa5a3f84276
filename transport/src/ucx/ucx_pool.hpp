// transport/src/ucx/ucx_pool.hpp -- objects with a fixed place, used again and again.
#pragma once

#include <memory>
#include <vector>

namespace troupe::transport {

/// Grows to as many objects as were ever in use at once, and allocates nothing after that. Gives
/// them out as they were left. One thread at a time may call it.
template <class Object>
class UcxPool {
public:
  [[nodiscard]] Object& take() {
    if (free_.empty()) {
      free_.push_back(all_.emplace_back(std::make_unique<Object>()).get());
      free_.reserve(all_.size());
    }
    auto* object = free_.back();
    free_.pop_back();
    return *object;
  }

  void give_back(Object& object) { free_.push_back(&object); }

private:
  std::vector<std::unique_ptr<Object>> all_;
  std::vector<Object*> free_;
};

}  // namespace troupe::transport
