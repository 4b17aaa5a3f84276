// troupe/transport/seeded_network.hpp -- links whose delays and order are drawn from a seed.
#pragma once

#include <cstdint>
#include <memory>

#include "troupe/transport/in_process.hpp"

namespace troupe::transport {

/// A network in one thread: nothing arrives until `deliver_one` is called, and what arrives next is
/// drawn from a seed among all that could. Transfers copy, as between machines; whoever posted a
/// buffer gets the same one back. Two runs with one seed and the same calls deliver the same.
///
/// Thread safety: none. Outlives nothing: links may be used after the network is gone.
class SeededNetwork {
public:
  explicit SeededNetwork(std::uint64_t seed);
  ~SeededNetwork();
  SeededNetwork(const SeededNetwork&) = delete;
  SeededNetwork& operator=(const SeededNetwork&) = delete;

  [[nodiscard]] LinkPair make_link();

  /// Completes one half of one matched transfer, if there is one: the send and the receive of a
  /// transfer complete at different times. Returns whether it did.
  bool deliver_one();

private:
  class Core;
  class End;
  std::shared_ptr<Core> core_;
};

}  // namespace troupe::transport
