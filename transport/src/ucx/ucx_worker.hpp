// transport/src/ucx/ucx_worker.hpp -- UCX's engine of progress: whose thread calls it, owns it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include <ucp/api/ucp.h>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/memory.hpp"

#include "ucx/ucx_completion.hpp"
#include "ucx/ucx_context.hpp"

namespace troupe::transport {

/// A message that has come in and lies with UCX: its bytes, or the right to fetch them.
struct UcxArrival {
  void* handle = nullptr;  ///< The bytes, or UCX's descriptor if `rendezvous`.
  std::size_t size_bytes = 0;
  bool rendezvous = false;
};

/// Takes in a message. Returns whether it keeps the arrival, to fetch or release it later.
class UcxInbox {
public:
  virtual bool take_in(std::span<const std::byte> header, const UcxArrival& arrival) = 0;

protected:
  ~UcxInbox() = default;
};

/// Owns a UCX worker. One thread may call it, except for `signal`.
class UcxWorker {
public:
  /// `id` is what peers learn of a fabric that connects to them.
  static Expected<std::unique_ptr<UcxWorker>> make(const UcxContext& context, std::uint64_t id);

  /// Waits for the closings under way.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  [[nodiscard]] ucp_worker_h get() const noexcept { return handle_; }

  /// Hands every message that comes in from now on to `inbox`, from within `progress`.
  Expected<Done> deliver_to(UcxInbox& inbox);

  /// Does what can be done now. Returns whether there was anything.
  bool progress() { return ucp_worker_progress(handle_) != 0; }

  /// A descriptor that becomes readable when there is something to do after a successful `arm`.
  [[nodiscard]] Expected<int> event_descriptor() const;

  /// Asks for such an event. Returns false if there is something to do already.
  [[nodiscard]] bool arm() { return ucp_worker_arm(handle_) == UCS_OK; }

  /// Makes the descriptor readable. Any thread may call it.
  void signal() { ucp_worker_signal(handle_); }

  /// Fetches a rendezvous message into `target`. The arrival is used up.
  void fetch(const UcxArrival& arrival, BufferView target, UcxCompletion& completion);

  /// Gives back an arrival that was kept. The sender of a rendezvous message learns of it.
  void release(const UcxArrival& arrival);

  /// Begins to close `endpoint`, which completes what is in flight on it.
  void close_by_force(ucp_ep_h endpoint);
  [[nodiscard]] bool is_closing() const noexcept { return closings_ != 0; }

private:
  explicit UcxWorker(ucp_worker_h handle) noexcept : handle_{handle} {}
  ucp_worker_h handle_;
  std::uint32_t closings_ = 0;  ///< Under way.
};

}  // namespace troupe::transport
