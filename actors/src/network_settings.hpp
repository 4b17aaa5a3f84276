// actors/src/network_settings.hpp -- how CAF is set up in a process that talks to others.
#pragma once

#include "troupe/actors/node.hpp"

#include "actor_settings.hpp"

namespace troupe::actors {

/// Knows every message that travels.
class NetworkSettings : public ActorSettings {
public:
  /// @param tls Files that `transport::check_tls_files` has found good, or none.
  explicit NetworkSettings(const std::optional<transport::TlsFiles>& tls);
};

/// From now on, sends signs of life through every connection, and closes those through which none
/// has come for the heartbeat's timeout. Once for each system. A connection that this process has
/// asked for must stand by then: CAF takes one that still waits for an answer to have been silent
/// since the machine was started, and closes it.
void begin_heartbeat(caf::actor_system& system, const Heartbeat& heartbeat);

}  // namespace troupe::actors
