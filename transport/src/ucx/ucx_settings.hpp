// transport/src/ucx/ucx_settings.hpp -- what our options mean in UCX's own words.
#pragma once

#include <string>
#include <vector>

#include "troupe/transport/ucx_fabric.hpp"

namespace troupe::transport {

/// One setting of UCX, without the UCX_ that its environment variable has in front.
struct UcxSetting {
  std::string name;
  std::string value;
  /// What `ucp_config_modify` calls it, if that differs: it drops the transport's name in front of
  /// what one transport alone has.
  std::string key = name;

  friend bool operator==(const UcxSetting&, const UcxSetting&) = default;
};

/// Returns the settings that `options` ask for. Why these, and why UCX_RNDV_SCHEME is not among
/// them: docs/gotchas/ucx-waits-for-a-dead-reader.md and
/// docs/gotchas/ucx-aborts-when-a-peer-dies.md.
[[nodiscard]] std::vector<UcxSetting> settings_for(const UcxOptions& options);

/// Leaves out of `settings` what the user's environment already sets.
[[nodiscard]] std::vector<UcxSetting> without_users_own(std::vector<UcxSetting> settings);

/// Gives the signals back that libucs seizes when it is loaded (SEGV, BUS, FPE, ILL and HUP),
/// unless the user's environment asks for them or somebody else has taken them since. Idempotent.
void release_signals();

}  // namespace troupe::transport
