// actors/src/ask.hpp -- asking an actor from a thread that waits for the answer.
#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <utility>

#include <caf/all.hpp>

#include "troupe/engine/expected.hpp"

namespace troupe::actors {

/// Asks an actor, of another process perhaps. The answer is there after `patience` at most, and at
/// once when the actor is lost: CAF leaves a question to a lost process unanswered.
/// @returns `peer_unreachable` with what CAF says about it.
template <class Reply, class Handle, class Message>
[[nodiscard]] std::future<Expected<Reply>> begin_to_ask(caf::actor_system& system,
                                                        const Handle& whom, Message message,
                                                        std::chrono::milliseconds patience) {
  using Promise = std::shared_ptr<std::promise<Expected<Reply>>>;
  const auto made = std::make_shared<std::promise<Expected<Reply>>>();
  auto answer = made->get_future();
  // CAF dereferences a null pointer to the arguments of an actor that has none.
  const auto questioner = [=, &system](caf::event_based_actor* self, const Promise& promise) {
    const auto fail = [=, &system](const caf::error& reason) {
      promise->set_value(Error{Errc::peer_unreachable, system.render(reason)});
      self->quit();
    };
    self->monitor(whom);
    self->set_down_handler([fail](const caf::down_msg& lost) { fail(lost.reason); });
    self->request(whom, patience, message)
        .then(
            [=](Reply& reply) {
              promise->set_value(std::move(reply));
              self->quit();
            },
            fail);
  };
  system.spawn(questioner, made);
  return answer;
}

/// Blocks for the answer.
template <class Reply, class Handle, class Message>
[[nodiscard]] Expected<Reply> ask(caf::actor_system& system, const Handle& whom, Message message,
                                  std::chrono::milliseconds patience) {
  return begin_to_ask<Reply>(system, whom, std::move(message), patience).get();
}

}  // namespace troupe::actors
