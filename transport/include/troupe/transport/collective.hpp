// troupe/transport/collective.hpp -- reductions within a group of ranks, enqueued on a stream.
#pragma once

#include <cstdint>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/inline_function.hpp"
#include "troupe/engine/memory.hpp"

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

/// One rank's membership in a group. Members call the same operations in the same order.
///
/// Determinism: a reduction adds the members' values in rank order, `((r0 + r1) + r2) + ...`, for
/// each element, so the result has the same bits on every member and in every run.
class Collective {
public:
  virtual ~Collective() = default;
  Collective(const Collective&) = delete;
  Collective& operator=(const Collective&) = delete;

  [[nodiscard]] virtual std::uint32_t rank() const noexcept = 0;
  [[nodiscard]] virtual std::uint32_t size() const noexcept = 0;

  /// Replaces `values`, an array of 32-bit floats of the same length on every member, by the
  /// element-wise sum over the members. Starts after the work already enqueued on `queue`; returns
  /// at once. The bytes belong to the collective until `done` runs. Completes with `cancelled` if
  /// a member closed first.
  virtual void all_reduce(WorkQueue& queue, BufferView values, CollectiveDone done) = 0;

  /// Cancels what is pending, on every member. Idempotent.
  virtual void close() = 0;

protected:
  Collective() = default;
};

}  // namespace troupe::transport
