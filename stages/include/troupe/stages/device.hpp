// troupe/stages/device.hpp -- where computation happens: memory, streams and events.
//
// The port is shaped by asynchronous devices. Everything is enqueued and returns at once; order
// exists within a stream, and between streams through events; the host learns of progress only from
// work it enqueued, and that work only posts a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/memory.hpp"
#include "troupe/engine/precision.hpp"
#include "troupe/transport/collective.hpp"

namespace troupe::stages {

class Kernels;

/// A point in the work of one stream that other streams can wait for. Reusable.
class Event {
public:
  virtual ~Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

protected:
  Event() = default;
};

/// A first-in, first-out queue of device work. Host code enqueued with `WorkQueue::enqueue` runs in
/// its turn; on an accelerator that is a host callback, which can neither touch device memory nor
/// enqueue.
///
/// Thread safety: any thread may enqueue.
class Stream : public transport::WorkQueue {
public:
  /// Marks the work enqueued so far.
  virtual void record(Event& event) = 0;
  /// Holds later work of this stream back until what `event` last recorded has finished.
  virtual void wait(Event& event) = 0;
  /// Blocks the calling thread until the stream is empty: for construction and shutdown only.
  virtual void synchronize() = 0;
};

/// One computing device of this process.
class Device {
public:
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  /// @param name of the thread that serves the stream, for debuggers and traces; at most 15 bytes.
  /// @param thread_count threads that work on each of its kernels; on an accelerator ignored.
  [[nodiscard]] virtual std::unique_ptr<Stream> make_stream(std::string_view name,
                                                            std::uint32_t thread_count) = 0;
  [[nodiscard]] virtual std::unique_ptr<Event> make_event() = 0;

  /// Reserves one stretch of zeroed memory, aligned to 64 bytes; the device frees it at its end.
  /// @returns `Errc::out_of_memory` naming the bytes asked for.
  [[nodiscard]] virtual Expected<BufferView> allocate(std::size_t size_bytes,
                                                      MemorySpace space) = 0;

  /// The space its kernels compute in.
  [[nodiscard]] virtual MemorySpace memory_space() const noexcept = 0;

  /// Its kernels, for streams of this device.
  [[nodiscard]] virtual Kernels& kernels() = 0;

  /// Matrix-product peak of `stream_count` streams of `thread_count` threads each, all at work at
  /// once, in FLOP/s; measured now, in about a tenth of a second. Blocks.
  [[nodiscard]] virtual double measure_peak_flops(std::uint32_t stream_count,
                                                  std::uint32_t thread_count,
                                                  Precision precision) = 0;

protected:
  Device() = default;
};

/// Nanoseconds of the clock that `DeviceSpan` uses, now.
[[nodiscard]] std::int64_t steady_now_ns() noexcept;

}  // namespace troupe::stages
