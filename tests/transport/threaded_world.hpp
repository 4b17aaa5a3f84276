// tests/transport/threaded_world.hpp -- a world in which every member's queue has a thread.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "troupe/transport/collective.hpp"

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

/// What a world for the conformance suite needs besides `make_group`.
class ThreadedWorld {
public:
  WorkQueue& queue(std::uint32_t rank) { return queues_.at(rank); }

  template <class Change>
  void post(Change change) {
    const std::scoped_lock lock{mutex_};
    change();
    changed_.notify_one();
  }

  void progress() {}

  template <class Condition>
  void progress_until(Condition condition) {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, condition);
  }

private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<ThreadQueue, 5> queues_;  // Last: their threads end before what they use.
};

}  // namespace troupe::transport
