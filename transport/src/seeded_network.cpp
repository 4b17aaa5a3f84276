#include "troupe/transport/seeded_network.hpp"

#include <array>
#include <cstring>

#include "troupe/engine/random.hpp"

#include "matching.hpp"

namespace troupe::transport {

class SeededNetwork::Core {
public:
  struct Lane {
    struct Direction {
      PendingSet sends;
      PendingSet receives;
    };
    std::array<Direction, 2> directions;  ///< By the side that sends.
    bool closed = false;
  };

  explicit Core(std::uint64_t seed) : random_{seed} {}

  /// Matched halves move at once and complete later, each in its own time.
  void match(PendingTransfer send, PendingTransfer receive) {
    auto code = Errc::none;
    if (send.buffer.size_bytes() != receive.buffer.size_bytes()) {
      code = Errc::message_truncated;
    } else {
      std::memcpy(receive.buffer.data(), send.buffer.data(), send.buffer.size_bytes());
    }
    ready_.push_back({std::move(send), code});
    ready_.push_back({std::move(receive), code});
  }

  bool deliver_one() {
    if (ready_.empty()) return false;
    std::swap(ready_[random_.below(ready_.size())], ready_.back());
    auto [transfer, code] = std::move(ready_.back());
    ready_.pop_back();
    complete(std::move(transfer), code);
    return true;
  }

private:
  struct Ready {
    PendingTransfer transfer;
    Errc code;
  };

  Random random_;
  std::vector<Ready> ready_;
};

class SeededNetwork::End final : public Link {
public:
  End(std::shared_ptr<Core> core, std::shared_ptr<Core::Lane> lane, std::size_t side)
      : core_{std::move(core)}, lane_{std::move(lane)}, side_{side} {}
  ~End() override { End::close(); }

  void post_send(Tag tag, Buffer source, TransferDone done) override {
    PendingTransfer send{tag, std::move(source), std::move(done)};
    if (lane_->closed) return complete(std::move(send), Errc::cancelled);
    auto& direction = lane_->directions[side_];
    auto receive = direction.receives.take(tag);
    if (!receive) return direction.sends.add(std::move(send));
    core_->match(std::move(send), std::move(*receive));
  }

  void post_receive(Tag tag, Buffer target, TransferDone done) override {
    PendingTransfer receive{tag, std::move(target), std::move(done)};
    if (lane_->closed) return complete(std::move(receive), Errc::cancelled);
    auto& direction = lane_->directions[1 - side_];
    auto send = direction.sends.take(tag);
    if (!send) return direction.receives.add(std::move(receive));
    core_->match(std::move(*send), std::move(receive));
  }

  void close() override {
    lane_->closed = true;
    for (auto& direction : lane_->directions) {
      for (auto* set : {&direction.sends, &direction.receives}) {
        for (auto& transfer : set->take_all()) complete(std::move(transfer), Errc::cancelled);
      }
    }
  }

private:
  std::shared_ptr<Core> core_;
  std::shared_ptr<Core::Lane> lane_;
  std::size_t side_;
};

SeededNetwork::SeededNetwork(std::uint64_t seed) : core_{std::make_shared<Core>(seed)} {}
SeededNetwork::~SeededNetwork() = default;

LinkPair SeededNetwork::make_link() {
  const auto lane = std::make_shared<Core::Lane>();
  return {std::make_unique<End>(core_, lane, 0), std::make_unique<End>(core_, lane, 1)};
}

bool SeededNetwork::deliver_one() {
  return core_->deliver_one();
}

}  // namespace troupe::transport
