#include "troupe/actors/choice_lane.hpp"

#include <utility>

#include "troupe/engine/check.hpp"
#include "troupe/transport/tag.hpp"

namespace troupe::actors {

namespace {

template <class Message>
Buffer buffer_of(Message& message) {
  return Buffer{
      BufferView{reinterpret_cast<std::byte*>(message.data()), sizeof message, MemorySpace::host}};
}

}  // namespace

ChoiceLane::ChoiceLane(std::unique_ptr<transport::Link> link, std::size_t choice_max)
    : choice_max_{choice_max}, messages_(2 * choice_max), link_{std::move(link)} {}

void ChoiceLane::send(std::uint32_t step, std::uint32_t index, const Action& choice, Sent done) {
  auto& message = place_of(step, index);
  message = {choice.stage.value(), static_cast<std::uint32_t>(choice.pass),
             choice.microbatch.value()};
  link_->post_send(transport::make_choice_tag(step, index), buffer_of(message),
                   [done = std::move(done)](const transport::Delivery& delivery) mutable {
                     done(delivery.code);
                   });
}

void ChoiceLane::receive(std::uint32_t step, std::uint32_t index, Received done) {
  auto& message = place_of(step, index);
  link_->post_receive(
      transport::make_choice_tag(step, index), buffer_of(message),
      [done = std::move(done), &message](const transport::Delivery& delivery) mutable {
        if (delivery.code != Errc::none) return done(delivery.code, {});
        const auto [stage, pass, microbatch] = message;
        if (pass > static_cast<std::uint32_t>(Pass::backward_weight)) {
          return done(Errc::internal, {});
        }
        done(Errc::none, {StageIndex{stage}, static_cast<Pass>(pass), MicrobatchIndex{microbatch}});
      });
}

ChoiceLane::Message& ChoiceLane::place_of(std::uint32_t step, std::uint32_t index) {
  TROUPE_ASSERT(index < choice_max_);
  return messages_[step % 2 * choice_max_ + index];
}

}  // namespace troupe::actors
