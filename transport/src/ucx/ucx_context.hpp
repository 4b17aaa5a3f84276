// transport/src/ucx/ucx_context.hpp -- the library's state for one fabric: settings and devices.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ucp/api/ucp.h>

#include "troupe/engine/expected.hpp"

#include "ucx/ucx_settings.hpp"

namespace troupe::transport {

/// Owns a UCX context for active messages that can wake a sleeping thread.
class UcxContext {
public:
  static Expected<std::shared_ptr<const UcxContext>> make(const std::vector<UcxSetting>& settings);

  ~UcxContext();
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;

  [[nodiscard]] ucp_context_h get() const noexcept { return handle_; }

  /// What UCX prints about its transports and devices.
  [[nodiscard]] std::string print() const;

private:
  explicit UcxContext(ucp_context_h handle) noexcept : handle_{handle} {}
  ucp_context_h handle_;
};

}  // namespace troupe::transport
