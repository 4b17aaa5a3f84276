// stages/src/stream_group.hpp -- collectives among the kernels of a stream.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "troupe/stages/device.hpp"
#include "troupe/stages/transformer_stage.hpp"

namespace troupe::stages {

/// Operations of a group that begin when the stream comes to them. The work between beginning and
/// `await` runs meanwhile; at `await` the stream's own thread waits. The additions run on the
/// peers' stream.
///
/// Thread safety: as a stage. The collective's completions come from any thread.
class StreamGroup {
public:
  /// What it refers to outlives the object. Without a group there are no peers, and nothing may
  /// begin. `place_count`: operations that may be under way at once.
  StreamGroup(Stream& stream, const Peers& peers, std::size_t place_count = 1);

  /// What is broadcast is the last member's.
  enum class Operation : std::uint8_t { all_reduce, reduce_scatter, all_gather, broadcast };

  /// Enqueues the beginning of an operation; the one at that place before must have been awaited.
  void begin(Operation operation, BufferView array, std::size_t place);
  /// Work enqueued from here on finds the operation at that place complete; none, if none was
  /// begun.
  void await(std::size_t place);
  void perform(Operation operation, BufferView array) {
    begin(operation, array, 0);
    await(0);
  }

  /// What the first operation that failed reported; what comes after it is meaningless.
  [[nodiscard]] Errc failure() const noexcept { return failure_.load(std::memory_order_acquire); }

  /// The time that the stream has waited since the last call. Belongs to the stream.
  [[nodiscard]] std::int64_t take_waiting_ns() noexcept { return std::exchange(waiting_ns_, 0); }

private:
  struct Place {
    bool is_begun = false;  ///< And not awaited, in the order of enqueuing.
    std::atomic<bool> is_over = false;
  };

  void over(Place& place, Errc code);

  Stream& stream_;
  Peers peers_;
  std::vector<std::unique_ptr<Place>> places_;
  std::atomic<Errc> failure_ = Errc::none;
  std::int64_t waiting_ns_ = 0;  ///< Belongs to the stream.
};

}  // namespace troupe::stages
