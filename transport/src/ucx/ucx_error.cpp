#include "ucx/ucx_error.hpp"

namespace troupe::transport {

Errc to_errc(ucs_status_t status) noexcept {
  switch (status) {
    case UCS_OK:
      return Errc::none;
    case UCS_ERR_CANCELED:
      return Errc::cancelled;
    case UCS_ERR_MESSAGE_TRUNCATED:
      return Errc::message_truncated;
    case UCS_ERR_NO_MEMORY:
      return Errc::out_of_memory;
    case UCS_ERR_INVALID_ADDR:
    case UCS_ERR_NO_DEVICE:
      return Errc::invalid_config;
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_REJECTED:
    case UCS_ERR_TIMED_OUT:
    case UCS_ERR_IO_ERROR:
    case UCS_ERR_SHMEM_SEGMENT:  // Died before its memory was attached.
      return Errc::peer_unreachable;
    default:
      return Errc::internal;
  }
}

Error ucx_error(ucs_status_t status, const std::string& operation) {
  return {to_errc(status), operation + " failed: UCX says '" + ucs_status_string(status)
                               + "'; UCX_LOG_LEVEL=info makes it say more"};
}

}  // namespace troupe::transport
