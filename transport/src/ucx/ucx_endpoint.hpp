// transport/src/ucx/ucx_endpoint.hpp -- a connection to one peer.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include <ucp/api/ucp.h>

#include "troupe/engine/memory.hpp"

#include "ucx/ucx_header.hpp"
#include "ucx/ucx_worker.hpp"

namespace troupe::transport {

/// Owns a UCX endpoint that notices its peer's death. One thread at a time may call it.
class UcxEndpoint {
public:
  /// Runs once at most, from within `progress`: it must only take note.
  using Failed = std::function<void(ucs_status_t)>;

  /// Begins to connect to the worker of another fabric, which must know the address of this one
  /// soon. Messages may be sent at once; a failure is told by `failed`.
  static Expected<std::unique_ptr<UcxEndpoint>> connect(UcxWorker& worker,
                                                        const UcxWorkerAddress& peer,
                                                        Failed failed);

  /// Closes by force; `failed` does not run any more.
  ~UcxEndpoint();
  UcxEndpoint(const UcxEndpoint&) = delete;
  UcxEndpoint& operator=(const UcxEndpoint&) = delete;

  /// Sends a message. `header` and the bytes must stay as they are until `completion` runs.
  void send(std::span<const std::byte> header, BufferView bytes, UcxCompletion& completion) {
    worker_.send(handle_, header, bytes, completion);
  }

  /// What UCX prints about the transports it has chosen.
  [[nodiscard]] std::string print() const;

private:
  UcxEndpoint(UcxWorker& worker, Failed failed) : worker_{worker}, failed_{std::move(failed)} {}

  UcxWorker& worker_;
  Failed failed_;
  ucp_ep_h handle_ = nullptr;
};

}  // namespace troupe::transport
