// stages/src/cpu/cpu_memory.hpp -- pages from the operating system.
#pragma once

#include <cstddef>
#include <utility>

namespace troupe::stages {

/// Owns one stretch of zeroed pages, huge ones where the system grants them: a matrix product
/// touches more pages than the processor remembers small ones.
class CpuMemory {
public:
  CpuMemory() = default;
  /// Null `data()` if the system refuses.
  explicit CpuMemory(std::size_t size_bytes);
  ~CpuMemory();
  CpuMemory(CpuMemory&& other) noexcept
      : mapping_{std::exchange(other.mapping_, nullptr)},
        mapped_bytes_{std::exchange(other.mapped_bytes_, 0)},
        data_{std::exchange(other.data_, nullptr)},
        size_bytes_{std::exchange(other.size_bytes_, 0)} {}
  CpuMemory& operator=(CpuMemory&& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return size_bytes_; }

private:
  void* mapping_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  std::byte* data_ = nullptr;  ///< Within the mapping, aligned to a huge page or to a page.
  std::size_t size_bytes_ = 0;
};

}  // namespace troupe::stages
