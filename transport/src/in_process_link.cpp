#include <array>
#include <cstring>
#include <mutex>

#include "troupe/transport/in_process.hpp"

#include "matching.hpp"

namespace troupe::transport {

namespace {

/// What the two ends share. Completions run outside the lock.
class Lane {
public:
  explicit Lane(HandOver hand_over) : is_copying_{hand_over == HandOver::copy} {}

  void post_send(std::size_t side, PendingTransfer send) {
    if (auto receive = match(directions_[side].sends, directions_[side].receives, send)) {
      hand_over(std::move(send), std::move(*receive));
    }
  }

  void post_receive(std::size_t side, PendingTransfer receive) {
    auto& direction = directions_[1 - side];
    if (auto send = match(direction.receives, direction.sends, receive)) {
      hand_over(std::move(*send), std::move(receive));
    }
  }

  void close() {
    std::vector<PendingTransfer> cancelled;
    {
      const std::scoped_lock lock{mutex_};
      closed_ = true;
      for (auto& direction : directions_) {
        for (auto* set : {&direction.sends, &direction.receives}) {
          for (auto& transfer : set->take_all()) cancelled.push_back(std::move(transfer));
        }
      }
    }
    for (auto& transfer : cancelled) complete(std::move(transfer), Errc::cancelled);
  }

private:
  struct Direction {
    PendingSet sends;
    PendingSet receives;
  };

  /// Returns the counterpart of `transfer` from `theirs`; without one, moves `transfer` to `mine`.
  std::optional<PendingTransfer> match(PendingSet& mine, PendingSet& theirs,
                                       PendingTransfer& transfer) {
    std::unique_lock lock{mutex_};
    if (closed_) {
      lock.unlock();
      complete(std::move(transfer), Errc::cancelled);
      return std::nullopt;
    }
    auto counterpart = theirs.take(transfer.tag);
    if (!counterpart) mine.add(std::move(transfer));
    return counterpart;
  }

  void hand_over(PendingTransfer send, PendingTransfer receive) const {
    if (send.buffer.size_bytes() != receive.buffer.size_bytes()) {
      complete(std::move(send), Errc::message_truncated);
      complete(std::move(receive), Errc::message_truncated);
      return;
    }
    if (is_copying_) {
      std::memcpy(receive.buffer.data(), send.buffer.data(), send.buffer.size_bytes());
    } else {
      std::swap(receive.buffer, send.buffer);
    }
    receive.done({std::move(receive.buffer), Errc::none});
    send.done({std::move(send.buffer), Errc::none});
  }

  const bool is_copying_;
  std::mutex mutex_;
  bool closed_ = false;
  std::array<Direction, 2> directions_;  ///< By the side that sends.
};

class InProcessLink final : public Link {
public:
  InProcessLink(std::shared_ptr<Lane> lane, std::size_t side)
      : lane_{std::move(lane)}, side_{side} {}
  ~InProcessLink() override { lane_->close(); }

  void post_send(Tag tag, Buffer source, TransferDone done) override {
    lane_->post_send(side_, {tag, std::move(source), std::move(done)});
  }
  void post_receive(Tag tag, Buffer target, TransferDone done) override {
    lane_->post_receive(side_, {tag, std::move(target), std::move(done)});
  }
  void close() override { lane_->close(); }

private:
  std::shared_ptr<Lane> lane_;
  std::size_t side_;
};

}  // namespace

LinkPair make_in_process_link(HandOver hand_over) {
  const auto lane = std::make_shared<Lane>(hand_over);
  return {std::make_unique<InProcessLink>(lane, 0), std::make_unique<InProcessLink>(lane, 1)};
}

}  // namespace troupe::transport
