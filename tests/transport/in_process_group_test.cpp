#include <deque>

#include "troupe/transport/in_process.hpp"

#include "collective_conformance.hpp"
#include "threaded_world.hpp"

namespace troupe::transport {

/// Queues that run their work when the test looks for progress, the last queue first.
class SteppedWorld {
public:
  Members make_group(std::uint32_t size, WireFormat wire) {
    return make_in_process_group(size, wire);
  }
  WorkQueue& queue(std::uint32_t rank) { return queues_.at(rank); }

  template <class Change>
  void post(Change change) {
    change();
  }

  void progress() {
    while (step()) {
    }
  }

  template <class Condition>
  void progress_until(Condition condition) {
    while (!condition()) ASSERT_TRUE(step()) << "nothing left to run";
  }

private:
  struct SteppedQueue final : WorkQueue {
    void enqueue(Work work) override { waiting.push_back(std::move(work)); }
    std::deque<Work> waiting;
  };

  bool step() {
    const auto busy = std::ranges::find_if(queues_.rbegin(), queues_.rend(),
                                           [](const auto& q) { return !q.waiting.empty(); });
    if (busy == queues_.rend()) return false;
    auto work = std::move(busy->waiting.front());
    busy->waiting.pop_front();
    work();
    return true;
  }

  std::array<SteppedQueue, 5> queues_;
};
INSTANTIATE_TYPED_TEST_SUITE_P(Stepped, CollectiveConformance, SteppedWorld);

class ThreadedInProcessWorld : public ThreadedWorld {
public:
  static Members make_group(std::uint32_t size, WireFormat wire) {
    return make_in_process_group(size, wire);
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(Threaded, CollectiveConformance, ThreadedInProcessWorld);

TEST(PartOf, PartsCoverEveryArrayInOrderAtCacheLines) {
  for (const auto size : group_sizes) {
    for (std::size_t bytes = 0; bytes < 2000; ++bytes) {
      std::size_t end = 0;
      for (std::uint32_t p = 0; p < size; ++p) {
        const auto part = part_of(bytes, size, p);
        EXPECT_EQ(part.begin_bytes, end);
        EXPECT_EQ(part.begin_bytes % 64, 0U);
        end = part.begin_bytes + part.size_bytes;
      }
      EXPECT_EQ(end, bytes);
    }
  }
}

TEST(PartOf, TheLastTakesWhatIsLeft) {
  EXPECT_EQ(part_of(1000, 3, 0), (Part{0, 320}));
  EXPECT_EQ(part_of(1000, 3, 1), (Part{320, 320}));
  EXPECT_EQ(part_of(1000, 3, 2), (Part{640, 360}));
  EXPECT_EQ(part_of(63, 2, 0), (Part{0, 0}));
  EXPECT_EQ(part_of(63, 2, 1), (Part{0, 63}));
}

TEST(InProcessGroupDeathTest, MembersThatDisagreeAboutTheSizeAbort) {
  const auto disagree = [] {
    SteppedWorld world;
    auto members = world.make_group(2, WireFormat::fp32);
    Floats left(4), right(5);
    members[0]->all_reduce(world.queue(0), view_of(left), [](Errc) {});
    members[1]->all_reduce(world.queue(1), view_of(right), [](Errc) {});
    world.progress();
  };
  EXPECT_DEATH(disagree(), "size_bytes");
}

}  // namespace troupe::transport
