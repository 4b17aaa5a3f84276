// transport/src/process_memory.hpp -- reading another process's memory for as long as it consents.
//
// Linux lets a process read the memory of another one of the same user (process_vm_readv), unless a
// ptrace scope or a sandbox forbids it; whoever wants to finds out by trying. The system does not
// know whether the bytes are still those that were meant. So who is read keeps a random number in
// its memory, and every read ends with it, in the same call: if it is there, the bytes before it
// were read while that very process lived and consented. Who wants its bytes for itself again
// erases the number first.
//
// Nobody writes: a process that is stopped, given up, and continued after that spoils nothing.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "troupe/engine/memory.hpp"

namespace troupe::transport {

/// By what another process reads this one's memory.
struct MemoryKey {
  std::uint32_t process = 0;  ///< The system's number of it; 0: nobody may read.
  std::uint64_t address = 0;  ///< Where the random number lies there.
  std::array<std::uint64_t, 2> number{};

  friend bool operator==(const MemoryKey&, const MemoryKey&) = default;
};

/// This process's consent that another reads its memory. Stays where it is; ends with `withdraw` or
/// its destruction.
class MemoryConsent {
public:
  MemoryConsent();
  ~MemoryConsent() { withdraw(); }
  MemoryConsent(const MemoryConsent&) = delete;
  MemoryConsent& operator=(const MemoryConsent&) = delete;

  [[nodiscard]] MemoryKey key() const noexcept;

  /// When this returns, whatever is read and was not read before fails, for ever.
  void withdraw() noexcept;

private:
  std::array<std::atomic<std::uint64_t>, 2> number_;
};

/// Fills `target` with what lies at `address` in the process of `key`. Returns whether it consented
/// to the end; if not, the content of `target` is unspecified. An empty target asks that alone.
/// Takes about 0.1 ms for a mebibyte.
[[nodiscard]] bool read_memory(const MemoryKey& key, std::uint64_t address,
                               BufferView target) noexcept;

}  // namespace troupe::transport
