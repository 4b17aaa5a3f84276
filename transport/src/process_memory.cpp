#include "process_memory.hpp"

#include <random>

#include <sys/uio.h>
#include <unistd.h>

namespace troupe::transport {

MemoryConsent::MemoryConsent() {
  std::random_device device;
  for (auto& half : number_) half = (std::uint64_t{device()} << 32U) | device();
}

MemoryKey MemoryConsent::key() const noexcept {
  return {.process = static_cast<std::uint32_t>(::getpid()),
          .address = reinterpret_cast<std::uintptr_t>(number_.data()),
          .number = {number_[0], number_[1]}};
}

void MemoryConsent::withdraw() noexcept {
  for (auto& half : number_) half = 0;
}

bool read_memory(const MemoryKey& key, std::uint64_t address, BufferView target) noexcept {
  if (key.process == 0) return false;
  auto seen = key.number;
  seen.fill(0);
  const auto there = [](std::uint64_t place) { return reinterpret_cast<void*>(place); };
  // In this order: what is valid at the end was valid before.
  const std::array<iovec, 2> from{iovec{there(address), target.size_bytes},
                                  iovec{there(key.address), sizeof seen}};
  const std::array<iovec, 2> to{iovec{target.data, target.size_bytes},
                                iovec{seen.data(), sizeof seen}};
  const auto count = ::process_vm_readv(static_cast<pid_t>(key.process), to.data(), to.size(),
                                        from.data(), from.size(), 0);
  return count == static_cast<ssize_t>(target.size_bytes + sizeof seen) && seen == key.number;
}

}  // namespace troupe::transport
