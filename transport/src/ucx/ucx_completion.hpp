// transport/src/ucx/ucx_completion.hpp -- who is told that an operation of UCX has ended.
#pragma once

#include <cstddef>

#include <ucp/api/ucp.h>

namespace troupe::transport {

class UcxWorker;

/// An operation of UCX in flight. Stays where it is until `completed` runs, once: from within the
/// worker's `progress` or its destruction, or before the call that started the operation returns.
class UcxCompletion {
public:
  virtual void completed(ucs_status_t status) = 0;

  /// Where it is in flight. Belongs to the worker.
  struct {
    UcxWorker* worker = nullptr;
    std::size_t position = 0;
  } flight{};

protected:
  ~UcxCompletion() = default;
};

}  // namespace troupe::transport
