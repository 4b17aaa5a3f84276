// troupe/actors/choice_lane.hpp -- how the leader of a stage's shards tells another its choices.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "troupe/engine/inline_function.hpp"
#include "troupe/engine/schedule.hpp"
#include "troupe/transport/link.hpp"

namespace troupe::actors {

/// One end of the lane, the leader's or the follower's. Every choice of a step is a message of its
/// own, so that the follower knows it as soon as it is made.
///
/// Thread safety: belongs to one actor; completions come from any thread.
class ChoiceLane {
public:
  /// `choice_max`: of a step. Both ends name the same.
  ChoiceLane(std::unique_ptr<transport::Link> link, std::size_t choice_max);

  /// Called exactly once; like `transport::TransferDone`. `internal` if what came is no pass.
  using Received = InlineFunction<void(Errc, const Action&), 24>;
  using Sent = InlineFunction<void(Errc), 24>;

  void send(std::uint32_t step, std::uint32_t index, const Action& choice, Sent done);
  void receive(std::uint32_t step, std::uint32_t index, Received done);

  /// As `transport::Link::close`.
  void close() { link_->close(); }

private:
  /// Stage, pass, microbatch.
  using Message = std::array<std::uint32_t, 3>;

  [[nodiscard]] Message& place_of(std::uint32_t step, std::uint32_t index);

  std::size_t choice_max_;
  std::vector<Message> messages_;  ///< Of two steps: one may begin before all sends have completed.
  std::unique_ptr<transport::Link> link_;  ///< Uses the messages until it is closed.
};

}  // namespace troupe::actors
