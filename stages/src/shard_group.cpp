#include "shard_group.hpp"

#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe::stages {

template <class Post>
void ShardGroup::in_order(Post post) {
  TROUPE_ASSERT(peers_.group != nullptr);
  // Begun no earlier: what a collective enqueues to finish one operation must not come behind the
  // beginning of the next, which waits for that.
  stream_.enqueue([this, post] {
    const auto begin_ns = steady_now_ns();
    const auto before = finished_count_.load(std::memory_order_relaxed);
    post([this](Errc code) {
      auto none = Errc::none;
      if (code != Errc::none) failure_.compare_exchange_strong(none, code);
      finished_count_.fetch_add(1, std::memory_order_release);
      finished_count_.notify_one();
    });
    finished_count_.wait(before, std::memory_order_acquire);
    waiting_ns_ += steady_now_ns() - begin_ns;
  });
}

void ShardGroup::all_reduce(BufferView values) {
  in_order([peers = peers_, values](transport::CollectiveDone done) {
    peers.group->all_reduce(*peers.stream, values, std::move(done));
  });
}

void ShardGroup::all_gather(BufferView bytes) {
  in_order([peers = peers_, bytes](transport::CollectiveDone done) {
    peers.group->all_gather(*peers.stream, bytes, std::move(done));
  });
}

}  // namespace troupe::stages
