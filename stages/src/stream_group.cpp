#include "stream_group.hpp"

#include "troupe/engine/check.hpp"

namespace troupe::stages {

StreamGroup::StreamGroup(Stream& stream, const Peers& peers, std::size_t place_count)
    : stream_{stream}, peers_{peers} {
  for (std::size_t i = 0; i < place_count; ++i) places_.push_back(std::make_unique<Place>());
}

/// It begins no earlier than the stream comes to it: what a collective enqueues to finish one
/// operation must not come behind the beginning of the next, which waits for that.
void StreamGroup::begin(Operation operation, BufferView array, std::size_t place) {
  auto& at = *places_.at(place);
  TROUPE_ASSERT(peers_.group != nullptr && !at.is_begun);
  at.is_begun = true;
  stream_.enqueue([this, operation, array, &at] {
    at.is_over.store(false, std::memory_order_relaxed);
    const auto done = [this, &at](Errc code) { over(at, code); };
    switch (operation) {
      case Operation::all_reduce:
        return peers_.group->all_reduce(*peers_.stream, array, done);
      case Operation::reduce_scatter:
        return peers_.group->reduce_scatter(*peers_.stream, array, done);
      case Operation::all_gather:
        return peers_.group->all_gather(*peers_.stream, array, done);
      case Operation::broadcast:
        return peers_.group->broadcast(*peers_.stream, array, peers_.group->size() - 1, done);
    }
  });
}

void StreamGroup::over(Place& place, Errc code) {
  auto none = Errc::none;
  if (code != Errc::none) failure_.compare_exchange_strong(none, code);
  place.is_over.store(true, std::memory_order_release);
  place.is_over.notify_one();
}

void StreamGroup::await(std::size_t place) {
  auto& at = *places_.at(place);
  if (!std::exchange(at.is_begun, false)) return;
  stream_.enqueue([this, &at] {
    const auto begin_ns = steady_now_ns();
    at.is_over.wait(false, std::memory_order_acquire);
    waiting_ns_ += steady_now_ns() - begin_ns;
  });
}

}  // namespace troupe::stages
