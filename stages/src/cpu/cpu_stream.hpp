// stages/src/cpu/cpu_stream.hpp -- a stream as one thread that works off a queue.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "troupe/stages/device.hpp"

#include "cpu_memory.hpp"
#include "onednn_products.hpp"

namespace troupe::stages {

/// What the events and streams of one device share: events are rare, so one lock serves them all.
struct EventBoard {
  std::mutex mutex;
  std::condition_variable changed;
};

/// Counts how often it was recorded and how many of those the work has reached.
class CpuEvent final : public Event {
public:
  explicit CpuEvent(std::shared_ptr<EventBoard> board) : board_{std::move(board)} {}

private:
  friend class CpuStream;

  std::shared_ptr<EventBoard> board_;
  std::uint64_t recorded_ = 0;  ///< Both under the board's lock.
  std::uint64_t reached_ = 0;
};

/// Its destructor finishes the work in progress and destroys the rest without running it.
/// An event outlives the work that records or waits for it.
class CpuStream final : public Stream {
public:
  CpuStream(std::string_view name, std::uint32_t thread_count, std::shared_ptr<EventBoard> board);
  ~CpuStream() override;

  void enqueue(Work work) override;
  void record(Event& event) override;
  void wait(Event& event) override;
  void synchronize() override;

  [[nodiscard]] std::uint32_t thread_count() const noexcept { return thread_count_; }

  /// Memory for the work that runs now, 64-byte aligned, of undefined content: one piece of
  /// `count` floats per thread, `index` below `thread_count()`. Valid until the next call with the
  /// same index. Grows to the largest request; the steady state does not allocate. Only threads of
  /// this stream may call it.
  [[nodiscard]] float* scratch(std::uint32_t index, std::size_t count);

  /// For the work that runs now, on the thread that runs it.
  [[nodiscard]] OnednnProducts& products() noexcept { return products_; }

private:
  /// First in, first out, in memory that is kept: it holds the work of a long step, and doubles in
  /// the rare case that it is full. (Blocking instead would deadlock a stream that enqueues onto
  /// itself.)
  class Ring {
  public:
    void push(Work work);
    [[nodiscard]] Work pop();
    [[nodiscard]] bool empty() const noexcept { return count_ == 0; }

  private:
    std::vector<Work> items_ = std::vector<Work>(1024);
    std::size_t first_ = 0;
    std::size_t count_ = 0;
  };

  void run();
  [[nodiscard]] Work next();

  std::uint32_t thread_count_;
  std::shared_ptr<EventBoard> board_;
  std::vector<CpuMemory> scratch_;  ///< By thread.
  OnednnProducts products_;

  std::mutex mutex_;
  std::condition_variable work_arrived_;
  std::condition_variable became_idle_;
  Ring ring_;  ///< Under `mutex_`, as are the next two.
  bool is_asleep_ = false;
  bool is_busy_ = false;
  std::atomic<bool> is_stopping_ = false;  ///< Set under both locks.

  std::thread worker_;
};

}  // namespace troupe::stages
