// cli/src/network_interface.hpp -- the network over which a process reaches the director's machine.
#pragma once

#include <string>

#include "troupe/engine/expected.hpp"

namespace troupe::cli {

/// Returns `given`, what `--interface` says, or, if it is empty, the interface by which this
/// machine sends to `host`: "lo" if that is a loopback address. Sends nothing; may block for a name
/// server. Fails with `invalid_config` if the host is not known, cannot be reached, or stands for
/// all.
[[nodiscard]] Expected<std::string> network_interface_or(const std::string& given,
                                                         const std::string& host);

}  // namespace troupe::cli
