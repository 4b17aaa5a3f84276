// Memory that the host cannot touch, as an accelerator's: a forgotten copy crashes in a test that
// needs no accelerator.
#pragma once

#include <cstddef>

#include <sys/mman.h>

#include "troupe/engine/check.hpp"

namespace troupe::stages {

/// Address space that is readable and writable while it is open and traps otherwise. Hands out
/// zeroed memory and takes it back at its end. Not thread-safe.
class SeparateMemory {
public:
  SeparateMemory()
      : base_{static_cast<std::byte*>(::mmap(nullptr, reserved_bytes, PROT_NONE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))} {
    TROUPE_ASSERT(base_ != MAP_FAILED);
  }
  ~SeparateMemory() { ::munmap(base_, reserved_bytes); }
  SeparateMemory(const SeparateMemory&) = delete;
  SeparateMemory& operator=(const SeparateMemory&) = delete;

  /// Whole pages.
  [[nodiscard]] std::byte* allocate(std::size_t size_bytes) {
    std::byte* const memory = base_ + used_bytes_;
    used_bytes_ += (size_bytes / page_bytes + 1) * page_bytes;
    TROUPE_ASSERT(used_bytes_ <= reserved_bytes);
    return memory;
  }

  void open() { protect(PROT_READ | PROT_WRITE); }
  void close() { protect(PROT_NONE); }

private:
  static constexpr std::size_t reserved_bytes = std::size_t{1} << 30U;
  static constexpr std::size_t page_bytes = 4096;

  void protect(int rights) {
    if (used_bytes_ > 0) TROUPE_ASSERT(::mprotect(base_, used_bytes_, rights) == 0);
  }

  std::byte* base_;
  std::size_t used_bytes_ = 0;
};

}  // namespace troupe::stages
