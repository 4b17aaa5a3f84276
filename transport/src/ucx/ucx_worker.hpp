// transport/src/ucx/ucx_worker.hpp -- UCX's engine of progress: whose thread calls it, owns it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <ucp/api/ucp.h>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/inline_function.hpp"
#include "troupe/engine/memory.hpp"

#include "ucx/ucx_card.hpp"
#include "ucx/ucx_completion.hpp"
#include "ucx/ucx_context.hpp"
#include "ucx/ucx_header.hpp"

namespace troupe::transport {

/// A message that has come in: its bytes, or the right to fetch them.
struct UcxArrival {
  enum class Place : std::uint8_t {
    here,        ///< With UCX, which keeps them.
    rendezvous,  ///< With the sender, from which UCX fetches them.
    offered,     ///< With the sender, whose memory this process reads.
  };

  /// The bytes, UCX's descriptor, or the bytes' address in the sender's memory.
  void* handle = nullptr;
  std::size_t size_bytes = 0;
  Place place = Place::here;

  /// What keeping the message takes here.
  [[nodiscard]] std::size_t kept_bytes() const noexcept {
    return place == Place::here ? size_bytes : 0;
  }
};

/// Takes in a message. Returns whether it keeps the arrival, to fetch or release it later.
class UcxInbox {
public:
  virtual bool take_in(std::span<const std::byte> header, const UcxArrival& arrival) = 0;

protected:
  ~UcxInbox() = default;
};

/// Owns a UCX worker and answers for every operation it was given. One thread at a time may call
/// it.
class UcxWorker {
public:
  /// Hands every message that comes in to `inbox`, from within `progress`, and adds what wakes a
  /// sleeping thread to the epoll descriptor `events`, which must outlive the worker.
  static Expected<std::unique_ptr<UcxWorker>> make(std::shared_ptr<const UcxContext> context,
                                                   UcxInbox& inbox, int events);

  /// Completes every operation, whatever the peer does or has stopped doing: waits a little for
  /// UCX to let go of them, then leaves UCX's worker where it is, untouched, and completes them as
  /// cancelled (docs/gotchas/ucx-waits-for-a-dead-reader.md). Endpoints must have been closed, and
  /// arrivals that were kept must have been fetched or released.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  [[nodiscard]] ucp_worker_h get() const noexcept { return handle_; }

  /// By what another worker connects to this one.
  [[nodiscard]] Expected<UcxWorkerAddress> address() const;

  /// Does what can be done now. Returns whether there was anything.
  bool progress();

  /// Asks for an event when there is something to do again. Returns false if there is already.
  [[nodiscard]] bool arm() { return ucp_worker_arm(handle_) == UCS_OK; }

  /// Sends a message. `header` and the bytes must stay as they are until `completion` runs.
  void send(ucp_ep_h endpoint, std::span<const std::byte> header, BufferView bytes,
            UcxCompletion& completion);

  /// Fetches a rendezvous message into `target`. The arrival is used up.
  void fetch(const UcxArrival& arrival, BufferView target, UcxCompletion& completion);

  /// Gives back to UCX what it has of an arrival that was kept. The sender of a rendezvous message
  /// learns of it.
  void release(const UcxArrival& arrival);

  /// Begins to close `endpoint`, which completes what is in flight on it.
  void close_by_force(ucp_ep_h endpoint);

  /// Whether an operation has not completed.
  [[nodiscard]] bool has_in_flight() const noexcept { return !in_flight_.empty(); }

  /// Whether something was begun since the last call that needs `progress` to end.
  [[nodiscard]] bool take_begun() noexcept { return std::exchange(begun_, false); }

private:
  using Work = InlineFunction<void(), 64>;

  UcxWorker(std::shared_ptr<const UcxContext> context, ucp_worker_h handle, int events) noexcept
      : context_{std::move(context)}, handle_{handle}, events_{events} {}
  Expected<Done> deliver_to(UcxInbox& inbox);
  Expected<Done> report_events();

  /// Runs `work` once UCX is left: one that is called from its own callbacks, and finds that the
  /// peer of another connection has died, ends the process (UCX 1.13.1,
  /// uct_tcp_iface_handle_events).
  void outside_of_callbacks(Work work);

  void begin(UcxCompletion& completion);
  void end_if_ended(ucs_status_ptr_t outcome, UcxCompletion& completion);
  static void end(void* request, ucs_status_t status, void* completion);
  void end(UcxCompletion& completion, ucs_status_t status);

  std::shared_ptr<const UcxContext> context_;
  ucp_worker_h handle_;
  int events_;
  int event_descriptor_ = -1;
  bool in_progress_ = false;
  std::vector<Work> deferred_;
  std::vector<UcxCompletion*> in_flight_;
  std::uint32_t closings_ = 0;  ///< Under way.
  bool begun_ = true;           ///< Connecting is what a worker begins with.
};

}  // namespace troupe::transport
