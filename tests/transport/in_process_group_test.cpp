#include <algorithm>
#include <array>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "troupe/transport/in_process.hpp"

#include "collective_conformance.hpp"

namespace troupe::transport {

/// A queue served by a thread of its own.
class ThreadQueue final : public WorkQueue {
public:
  ~ThreadQueue() override {
    enqueue({});
    thread_.join();
  }

  void enqueue(Work work) override {
    const std::scoped_lock lock{mutex_};
    queue_.push_back(std::move(work));
    wake_.notify_one();
  }

private:
  void run() {
    for (;;) {
      std::unique_lock lock{mutex_};
      wake_.wait(lock, [this] { return !queue_.empty(); });
      auto work = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      if (!work) return;
      work();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Work> queue_;
  std::thread thread_{[this] { run(); }};
};

/// Queues that run their work when the test looks for progress, the last queue first.
struct SteppedWorld {
  struct SteppedQueue final : WorkQueue {
    void enqueue(Work work) override { queue.push_back(std::move(work)); }
    std::deque<Work> queue;
  };

  auto make_group(std::uint32_t size) { return make_in_process_group(size); }
  WorkQueue& queue(std::uint32_t rank) { return queues.at(rank); }
  void count(std::uint32_t& counter) { ++counter; }

  template <class Condition>
  void progress_until(Condition condition) {
    while (!condition()) {
      const auto busy = std::ranges::find_if(queues.rbegin(), queues.rend(),
                                             [](const auto& q) { return !q.queue.empty(); });
      ASSERT_NE(busy, queues.rend()) << "nothing left to run";
      auto work = std::move(busy->queue.front());
      busy->queue.pop_front();
      work();
    }
  }

  std::array<SteppedQueue, 4> queues;
};
INSTANTIATE_TYPED_TEST_SUITE_P(Stepped, CollectiveConformance, SteppedWorld);

TEST(InProcessGroup, ReducesBetweenThreadsWithTheSameBitsEveryTime) {
  constexpr std::uint32_t size = 3;
  constexpr std::size_t count = 3000;
  std::vector<float> first;
  for (int run = 0; run < 20; ++run) {
    auto members = make_in_process_group(size);
    std::vector<std::vector<float>> values;
    for (std::uint32_t r = 0; r < size; ++r) values.push_back(random_floats(count, r));
    {
      std::mutex mutex;
      std::condition_variable all_done;
      std::uint32_t done_count = 0;
      std::array<ThreadQueue, size> queues;  // Last: their threads end before what they use.
      for (std::uint32_t r = 0; r < size; ++r) {
        members[r]->all_reduce(queues[r], view_of(values[r]), [&](Errc) {
          const std::scoped_lock lock{mutex};
          ++done_count;
          all_done.notify_one();
        });
      }
      std::unique_lock lock{mutex};
      all_done.wait(lock, [&] { return done_count == size; });
    }
    if (run == 0) first = values[0];
    for (std::uint32_t r = 0; r < size; ++r) EXPECT_EQ(values[r], first);
  }
}

}  // namespace troupe::transport
