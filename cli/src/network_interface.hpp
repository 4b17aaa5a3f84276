// cli/src/network_interface.hpp -- the network over which a process reaches the director's machine.
#pragma once

#include <string>
#include <vector>

#include "troupe/engine/expected.hpp"

namespace troupe::cli {

/// Returns `given`, what `--interface` says, or, if it is empty, the interface by which this
/// machine sends to `host`: "lo" if that is a loopback address. Sends nothing; may block for a name
/// server. Fails with `invalid_config` if the host is not known, cannot be reached, or stands for
/// all.
[[nodiscard]] Expected<std::string> network_interface_or(const std::string& given,
                                                         const std::string& host);

struct NetworkInterface {
  std::string name;
  bool is_up = false;
  std::vector<std::string> addresses;  ///< IPv4 before IPv6; none that mean nothing elsewhere.
};

/// Returns the interfaces of this machine in the system's order.
[[nodiscard]] std::vector<NetworkInterface> network_interfaces();

/// Checks that this machine has an interface `name`, what `--interface` says, with an address.
/// @returns `invalid_config` with those that it has.
[[nodiscard]] Expected<Done> check_network_interface(const std::string& name);

}  // namespace troupe::cli
