#include "cpu_memory.hpp"

#include <limits>
#include <memory>

#include <sys/mman.h>

namespace troupe::stages {

namespace {

constexpr std::size_t huge_page_bytes = std::size_t{2} << 20U;

}  // namespace

CpuMemory::CpuMemory(std::size_t size_bytes) {
  const std::size_t slack = size_bytes >= huge_page_bytes ? huge_page_bytes : 0;
  if (size_bytes == 0 || size_bytes > std::numeric_limits<std::size_t>::max() - slack) return;
  void* mapping = ::mmap(nullptr, size_bytes + slack, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return;
  mapping_ = mapping;
  mapped_bytes_ = size_bytes + slack;
  size_bytes_ = size_bytes;
  void* aligned = mapping;
  std::size_t space = mapped_bytes_;
  if (slack > 0 && std::align(huge_page_bytes, size_bytes, aligned, space) != nullptr) {
    ::madvise(aligned, size_bytes, MADV_HUGEPAGE);  // A wish: refusal costs speed alone.
  }
  data_ = static_cast<std::byte*>(aligned);
}

CpuMemory::~CpuMemory() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_bytes_);
}

}  // namespace troupe::stages
