// transport/src/ucx/ucx_reader.hpp -- messages that are read out of a peer's memory, in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "troupe/engine/memory.hpp"

#include "process_memory.hpp"
#include "ucx/ucx_completion.hpp"

namespace troupe::transport {

/// Reads offered messages one after the other, in rounds of the fabric's thread: whoever posts a
/// receive, an actor perhaps, does not read for it. (It was measured, and gained nothing.) One
/// thread at a time may call it.
class UcxReader {
public:
  /// What a round reads at most, in 0.1 ms; as long do other messages wait for it.
  static constexpr std::size_t piece_bytes = std::size_t{1} << 20U;

  /// Reads by `key` from now on, if this process is able to.
  void open(const MemoryKey& key);
  [[nodiscard]] bool is_open() const noexcept { return key_.process != 0; }

  /// Begins to read from `address` into `target`.
  void fetch(std::uint64_t address, BufferView target, UcxCompletion& completion);

  /// Reads a piece. Returns whether there was anything to read.
  bool progress();

  [[nodiscard]] bool has_in_flight() const noexcept { return !reads_.empty(); }

  /// Completes what has not been read as cancelled.
  void cancel();

private:
  struct Read {
    std::uint64_t address = 0;
    BufferView target;
    UcxCompletion* completion = nullptr;
  };

  MemoryKey key_;
  std::vector<Read> reads_;  ///< The oldest first; of it, what is left.
};

}  // namespace troupe::transport
