// transport/src/ucx/ucx_error.hpp -- what UCX reports, in troupe's words.
#pragma once

#include <string>

#include <ucs/type/status.h>

#include "troupe/engine/error.hpp"

namespace troupe::transport {

/// Translates a status of UCX. The only place that knows what its codes mean to us.
[[nodiscard]] Errc to_errc(ucs_status_t status) noexcept;

/// Returns the error of `operation`, a noun phrase such as "listening on 127.0.0.1".
[[nodiscard]] Error ucx_error(ucs_status_t status, const std::string& operation);

}  // namespace troupe::transport
