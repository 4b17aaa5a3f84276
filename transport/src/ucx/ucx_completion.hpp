// transport/src/ucx/ucx_completion.hpp -- who is told that an operation of UCX has ended.
#pragma once

#include <ucp/api/ucp.h>

namespace troupe::transport {

/// An operation of UCX in flight. Stays where it is until `completed` runs, once, on the worker's
/// thread: from within `progress`, or before the call that started the operation returns.
class UcxCompletion {
public:
  virtual void completed(ucs_status_t status) = 0;

protected:
  ~UcxCompletion() = default;
};

/// Tells `completion` if the operation that returned `outcome` has ended already; otherwise UCX's
/// callback will.
inline void settle_at_once(ucs_status_ptr_t outcome, UcxCompletion& completion) {
  if (outcome == nullptr) return completion.completed(UCS_OK);
  if (UCS_PTR_IS_ERR(outcome)) completion.completed(UCS_PTR_STATUS(outcome));
}

/// The number under which fabrics' messages travel among UCX's active messages.
inline constexpr unsigned ucx_message_id = 1;

}  // namespace troupe::transport
