// actors/src/network_settings.hpp -- how CAF is set up in a process that talks to others.
#pragma once

#include "troupe/actors/node.hpp"

#include "actor_settings.hpp"

namespace troupe::actors {

/// Knows every message that travels, and watches connections.
class NetworkSettings : public ActorSettings {
public:
  explicit NetworkSettings(const Heartbeat& heartbeat);
};

}  // namespace troupe::actors
