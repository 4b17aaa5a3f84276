// transport/src/matching.hpp -- pending operations of a link, matched by tag.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "troupe/transport/link.hpp"

namespace troupe::transport {

/// One posted half of a transfer.
struct PendingTransfer {
  Tag tag{};
  Buffer buffer;
  TransferDone done;
};

/// Runs the completion of `transfer` with the buffer it was posted with.
inline void complete(PendingTransfer transfer, Errc code) {
  transfer.done({std::move(transfer.buffer), code});
}

/// A small unordered set of pending operations. Linear search: a link never has more of them
/// pending than its stage has buffers, and a vector does not allocate once it has grown.
class PendingSet {
public:
  void add(PendingTransfer transfer) {
    TROUPE_ASSERT(std::ranges::find(pending_, transfer.tag, &PendingTransfer::tag)
                  == pending_.end());
    pending_.push_back(std::move(transfer));
  }

  [[nodiscard]] std::optional<PendingTransfer> take(Tag tag) {
    const auto found = std::ranges::find(pending_, tag, &PendingTransfer::tag);
    if (found == pending_.end()) return std::nullopt;
    auto transfer = std::move(*found);
    if (found != pending_.end() - 1) *found = std::move(pending_.back());
    pending_.pop_back();
    return transfer;
  }

  /// Takes everything, leaving the set empty.
  [[nodiscard]] std::vector<PendingTransfer> take_all() { return std::exchange(pending_, {}); }

private:
  std::vector<PendingTransfer> pending_;
};

}  // namespace troupe::transport
