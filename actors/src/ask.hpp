// actors/src/ask.hpp -- asking an actor from a thread that waits for the answer.
#pragma once

#include <chrono>
#include <utility>

#include <caf/all.hpp>

#include "troupe/engine/expected.hpp"

namespace troupe::actors {

/// Blocks for the answer, `patience` at most.
/// @returns `peer_unreachable` with what CAF says about it.
template <class Reply, class Handle, class Message>
[[nodiscard]] Expected<Reply> ask(caf::actor_system& system, const Handle& whom, Message message,
                                  std::chrono::milliseconds patience) {
  caf::scoped_actor self{system};
  Expected<Reply> answer{Error{Errc::peer_unreachable, {}}};
  self->request(whom, patience, std::move(message))
      .receive([&](Reply& reply) { answer = std::move(reply); },
               [&](const caf::error& error) {
                 answer = Error{Errc::peer_unreachable, system.render(error)};
               });
  return answer;
}

}  // namespace troupe::actors
