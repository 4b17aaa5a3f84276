// troupe/transport/ucx_environment.hpp -- the UCX that is loaded, and who sets what of it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "troupe/transport/ucx_fabric.hpp"

namespace troupe::transport {

/// Returns the version of the UCX library that is loaded, for example "1.13.1".
[[nodiscard]] std::string ucx_version();

/// A setting of UCX. Where both want one, the user's wins.
struct UcxVariable {
  std::string name;                  ///< As in the environment: UCX_TLS.
  std::optional<std::string> ours;   ///< What a fabric sets.
  std::optional<std::string> users;  ///< What the environment of this process says.
};

/// Returns what a fabric with `options` sets, in its order, and then, by name, every other UCX_*
/// variable of the environment.
[[nodiscard]] std::vector<UcxVariable> ucx_variables(const UcxOptions& options);

}  // namespace troupe::transport
