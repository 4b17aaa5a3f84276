// tests/transport/seeded_group_world.hpp -- linked members whose events come in an order of a seed.
#pragma once

#include <array>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "troupe/transport/linked_group.hpp"
#include "troupe/transport/seeded_network.hpp"

#include "collective_conformance.hpp"

namespace troupe::transport {

inline constexpr LinkedLimits small_limits{.segment_bytes = 4096};

/// The links of every member, each connected to each of the others by `make_link(p, q)`.
template <class MakeLink>
std::vector<std::vector<std::unique_ptr<Link>>> connect(std::uint32_t size, MakeLink make_link) {
  std::vector<std::vector<std::unique_ptr<Link>>> links(size);
  for (auto& own : links) own.resize(size);
  for (std::uint32_t p = 0; p < size; ++p) {
    for (std::uint32_t q = p + 1; q < size; ++q)
      std::tie(links[p][q], links[q][p]) = make_link(p, q);
  }
  return links;
}

template <class MakeLink>
Members make_members(std::uint32_t size, const LinkedLimits& limits, WireFormat wire,
                     MakeLink make_link) {
  auto links = connect(size, make_link);
  Members members;
  for (std::uint32_t r = 0; r < size; ++r)
    members.push_back(make_linked_member(r, std::move(links[r]), limits, wire));
  return members;
}

/// Members over a seeded network. What happens next, a delivery or the first work of a queue, is
/// drawn from the seed.
class SeededGroupWorld {
public:
  explicit SeededGroupWorld(std::uint64_t seed) : random_{seed}, network_{seed} {}

  Members make_group(std::uint32_t size, WireFormat wire) {
    return make_members(size, small_limits, wire, [&](auto, auto) { return network_.make_link(); });
  }
  SeededNetwork& network() { return network_; }
  Random& random() { return random_; }
  WorkQueue& queue(std::uint32_t rank) { return queues_.at(rank); }

  template <class Change>
  void post(Change change) {
    change();
  }

  bool step() {
    std::array<SeededQueue*, 5> busy{};
    std::size_t busy_count = 0;
    for (auto& queue : queues_) {
      if (!queue.waiting.empty()) busy[busy_count++] = &queue;
    }
    auto drawn = random_.below(busy_count + 1);
    if (drawn == busy_count) {
      if (network_.deliver_one()) return true;
      if (busy_count == 0) return false;
      drawn = random_.below(busy_count);
    }
    auto work = std::move(busy[drawn]->waiting.front());
    busy[drawn]->waiting.erase(busy[drawn]->waiting.begin());
    work();
    return true;
  }

  void progress() {
    while (step()) {
    }
  }

  template <class Condition>
  void progress_until(Condition condition) {
    while (!condition()) ASSERT_TRUE(step()) << "nothing left to happen";
  }

private:
  struct SeededQueue final : WorkQueue {
    void enqueue(Work work) override { waiting.push_back(std::move(work)); }
    std::vector<Work> waiting;  // Short, and does not allocate once it has grown.
  };

  Random random_;
  SeededNetwork network_;
  std::array<SeededQueue, 5> queues_;
};

}  // namespace troupe::transport
