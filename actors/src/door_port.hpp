// actors/src/door_port.hpp -- where CAF listens for what comes through the gate.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <caf/all.hpp>

#include "troupe/actors/node_messages.hpp"
#include "troupe/engine/expected.hpp"

namespace troupe::actors {

/// Publishes the door on a free port of 127.0.0.1 and returns the port. Only connections of this
/// process are taken, which are the gate's; they speak TLS if CAF's module for that is loaded. Who
/// goes round the gate, and whose TLS fails, is told to `on_refused`, each sentence once, on CAF's
/// thread. Fails with `internal`.
[[nodiscard]] Expected<std::uint16_t> publish_behind_gate(
    caf::actor_system& system, const DoorHandle& door,
    std::function<void(const std::string& sentence)> on_refused);

}  // namespace troupe::actors
