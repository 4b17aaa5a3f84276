// stages/src/shard_group.hpp -- collectives of the shards of a stage, in the order of its stream.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "troupe/stages/device.hpp"
#include "troupe/stages/transformer_stage.hpp"

namespace troupe::stages {

/// Enqueues operations of a `Collective` among the kernels of a stream: each begins when the work
/// before it has finished, and the work after it waits for it. The stream's own thread waits; the
/// additions run on the peers' stream.
///
/// Thread safety: as a stage. The collective's completions come from any thread.
class ShardGroup {
public:
  /// What it refers to outlives the object. Without a collective there are no other shards, and
  /// nothing may be called.
  ShardGroup(Stream& stream, const ShardPeers& peers) : stream_{stream}, peers_{peers} {}

  void all_reduce(BufferView values);
  void all_gather(BufferView bytes);

  /// What the first operation that failed reported; what comes after it is meaningless.
  [[nodiscard]] Errc failure() const noexcept { return failure_.load(std::memory_order_acquire); }

  /// The time that the stream has waited since the last call. Belongs to the stream.
  [[nodiscard]] std::int64_t take_waiting_ns() noexcept { return std::exchange(waiting_ns_, 0); }

private:
  /// `post` begins the operation.
  template <class Post>
  void in_order(Post post);

  Stream& stream_;
  ShardPeers peers_;
  std::atomic<std::uint32_t> finished_count_ = 0;
  std::atomic<Errc> failure_ = Errc::none;
  std::int64_t waiting_ns_ = 0;  ///< Belongs to the stream.
};

}  // namespace troupe::stages
