// troupe/transport/collective.hpp -- operations of a group of ranks, enqueued on a stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/inline_function.hpp"
#include "troupe/engine/memory.hpp"
#include "troupe/engine/part.hpp"
#include "troupe/engine/precision.hpp"

namespace troupe::transport {

/// A first-in, first-out queue of work that is not an actor's thread: a host thread that owns a
/// core, or an accelerator's stream. The port through which a collective does arithmetic without
/// knowing devices.
class WorkQueue {
public:
  using Work = InlineFunction<void(), 192>;

  virtual ~WorkQueue() = default;
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  /// Runs `work` on the host after everything enqueued earlier has finished. Returns at once. Any
  /// thread may call it. `work` must not block.
  virtual void enqueue(Work work) = 0;

  /// The vendor's stream, for collectives that run on the device; null on the host.
  [[nodiscard]] virtual void* native_handle() noexcept { return nullptr; }

protected:
  WorkQueue() = default;
};

/// Called exactly once per collective operation. It must only post a message.
using CollectiveDone = InlineFunction<void(Errc)>;

/// One rank's membership in a group. The n-th operation of one member is the n-th of all: members
/// call the same operations in the same order, with arrays of the same size, but may run ahead of
/// each other.
///
/// Every operation starts after the work already enqueued on `queue`, and returns at once. The
/// array is in host memory and belongs to the collective until `done` runs. Operations complete in
/// any order; with `cancelled` if a member closed first, with `peer_unreachable` if one was lost,
/// with `message_truncated` if members between processes disagree about the size. After a failure
/// the array's content is unspecified, and so it is with every later operation of the group, which
/// completes with an error at once.
///
/// Thread safety: every member function may be called from any thread; the order of the calls
/// decides which operation is the n-th.
///
/// Determinism: a reduction adds the members' values in rank order, `((r0 + r1) + r2) + ...`, for
/// each element, so the result has the same bits on every member, in every run, and whatever
/// carries the bytes. In a group that was made for `WireFormat::bf16` every addend of a reduction,
/// and the fp32 sum, is rounded to bf16, and that is what travels; bytes that are not added travel
/// as they are.
class Collective {
public:
  virtual ~Collective() = default;
  Collective(const Collective&) = delete;
  Collective& operator=(const Collective&) = delete;

  [[nodiscard]] virtual std::uint32_t rank() const noexcept = 0;
  [[nodiscard]] virtual std::uint32_t size() const noexcept = 0;

  /// Replaces `values`, 32-bit floats, by the element-wise sum over the members.
  virtual void all_reduce(WorkQueue& queue, BufferView values, CollectiveDone done) = 0;

  /// Replaces this member's part of `values`, 32-bit floats, by the element-wise sum over the
  /// members' same parts; see `part_of`. Leaves the other parts as they are. An `all_gather` of the
  /// same array then completes what `all_reduce` does at once, with the same bits.
  virtual void reduce_scatter(WorkQueue& queue, BufferView values, CollectiveDone done) = 0;

  /// Replaces the `values`, 32-bit floats, of member `root`, which is the same number on every
  /// member, by the element-wise sum of the others', of which there is at least one: its own are no
  /// addend. Leaves those of the others, which may be done while the root still waits.
  virtual void reduce(WorkQueue& queue, BufferView values, std::uint32_t root,
                      CollectiveDone done) = 0;

  /// Replaces every part of `bytes` by what the part's owner has there; see `part_of`.
  virtual void all_gather(WorkQueue& queue, BufferView bytes, CollectiveDone done) = 0;

  /// Replaces `bytes` by those of member `root`, which is the same number on every member.
  virtual void broadcast(WorkQueue& queue, BufferView bytes, std::uint32_t root,
                         CollectiveDone done) = 0;

  /// Completes when every member's queue has come to its barrier. No other operation promises
  /// that: an empty array, for example, may complete without waiting for anyone.
  virtual void barrier(WorkQueue& queue, CollectiveDone done) = 0;

  /// Cancels what is pending, on every member. Idempotent.
  virtual void close() = 0;

protected:
  Collective() = default;
};

}  // namespace troupe::transport
