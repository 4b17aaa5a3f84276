// transport/src/ucx/ucx_news.hpp -- transfers that have ended and whose users do not know it yet.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "troupe/transport/link.hpp"

namespace troupe::transport {

/// How many of a lane's transfers have ended without their completions having run. Any thread may
/// call it.
class UcxUntold {
public:
  void add() noexcept { ++count_; }
  void remove() noexcept {
    if (--count_ == 0) count_.notify_all();
  }

  /// Blocks until there are none.
  void wait() const noexcept {
    for (auto count = count_.load(); count != 0; count = count_.load()) count_.wait(count);
  }

private:
  std::atomic<std::uint32_t> count_ = 0;
};

/// Takes in completions while the fabric is driven, and runs them when it is not: whoever is told
/// of a message may get the core at once, in the place of the thread that tells, and then finds
/// everything sent, and nobody driving.
///
/// Any thread may call it. Allocates nothing once it held as many as it ever will.
class UcxNews {
public:
  void add(UcxUntold& untold, TransferDone done, Delivery delivery) {
    untold.add();
    const std::scoped_lock lock{mutex_};
    items_.push_back({&untold, std::move(done), std::move(delivery)});
    any_ = true;
  }

  [[nodiscard]] bool any() const noexcept { return any_; }

  /// Runs what is there. Several threads may do so at once; a completion is run by one of them.
  void tell() {
    for (Item item; any_ && take(item);) {
      item.done(std::move(item.delivery));
      item.untold->remove();
    }
  }

private:
  struct Item {
    UcxUntold* untold = nullptr;
    TransferDone done;
    Delivery delivery;
  };

  bool take(Item& item) {
    const std::scoped_lock lock{mutex_};
    if (items_.empty()) return false;
    item = std::move(items_[told_++]);
    if (told_ == items_.size()) {
      items_.clear();
      told_ = 0;
      any_ = false;
    }
    return true;
  }

  std::atomic<bool> any_ = false;
  std::mutex mutex_;
  std::vector<Item> items_;
  std::size_t told_ = 0;  ///< So many at the beginning of `items_` have been taken.
};

}  // namespace troupe::transport
