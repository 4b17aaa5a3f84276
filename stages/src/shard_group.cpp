#include "shard_group.hpp"

#include "troupe/engine/check.hpp"

namespace troupe::stages {

ShardGroup::ShardGroup(Device& device, Stream& stream, const ShardPeers& peers)
    : stream_{stream}, peers_{peers} {
  if (peers_.group != nullptr) reached_ = device.make_event();
}

template <class Post>
void ShardGroup::in_order(Post post) {
  TROUPE_ASSERT(peers_.group != nullptr);
  stream_.record(*reached_);
  peers_.stream->wait(*reached_);
  post([this](Errc code) {
    auto none = Errc::none;
    if (code != Errc::none) failure_.compare_exchange_strong(none, code);
    finished_count_.fetch_add(1, std::memory_order_release);
    finished_count_.notify_one();
  });
  const auto number = ++enqueued_count_;
  stream_.enqueue([this, number] {
    // One operation is under way at a time: the next begins when the stream has come to it.
    for (auto seen = finished_count_.load(std::memory_order_acquire); seen != number;
         seen = finished_count_.load(std::memory_order_acquire)) {
      finished_count_.wait(seen, std::memory_order_acquire);
    }
  });
}

void ShardGroup::all_reduce(BufferView values) {
  in_order([&](transport::CollectiveDone done) {
    peers_.group->all_reduce(*peers_.stream, values, std::move(done));
  });
}

void ShardGroup::all_gather(BufferView bytes) {
  in_order([&](transport::CollectiveDone done) {
    peers_.group->all_gather(*peers_.stream, bytes, std::move(done));
  });
}

}  // namespace troupe::stages
