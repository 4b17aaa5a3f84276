// transport/src/ucx/ucx_listener.hpp -- where other fabrics connect.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ucp/api/ucp.h>

#include "ucx/ucx_address.hpp"
#include "ucx/ucx_worker.hpp"

namespace troupe::transport {

/// A fabric that asks to be connected. To be accepted by `UcxEndpoint::accept`, once.
struct UcxRequest {
  ucp_conn_request_h handle = nullptr;
  std::uint64_t from = 0;  ///< The fabric that asks.
};

/// Owns a UCX listener and collects the requests that come in while its worker progresses.
class UcxListener {
public:
  /// Listens on `where`, on a port that the system picks.
  static Expected<std::unique_ptr<UcxListener>> make(UcxWorker& worker, const SocketAddress& where);
  ~UcxListener();
  UcxListener(const UcxListener&) = delete;
  UcxListener& operator=(const UcxListener&) = delete;

  [[nodiscard]] const SocketAddress& address() const noexcept { return address_; }

  /// Takes the requests collected since the last call. Empty most of the time.
  [[nodiscard]] std::vector<UcxRequest> take_requests() { return std::exchange(requests_, {}); }

  void reject(const UcxRequest& request) { ucp_listener_reject(handle_, request.handle); }

private:
  UcxListener() = default;
  static void on_request(ucp_conn_request_h request, void* self);

  ucp_listener_h handle_ = nullptr;
  SocketAddress address_;
  std::vector<UcxRequest> requests_;
};

}  // namespace troupe::transport
