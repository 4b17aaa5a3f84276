// transport/src/ucx/ucx_loop.hpp -- the thread of a fabric: progress, work from others, sleep,
// timers.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <utility>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

#include "troupe/engine/inline_function.hpp"

#include "ucx/ucx_worker.hpp"

namespace troupe::transport {

/// Drives a worker from the one thread that calls `run`.
///
/// While there is something to do it polls; when there has been nothing for a while it sleeps in
/// Asio until UCX, a timer or `post` wakes it. Posting to a loop that is awake costs a lock and no
/// system call, and allocates nothing once as much work was waiting as ever will be.
class UcxLoop {
public:
  using Work = InlineFunction<void(), 128>;
  /// What is due after each progress. Returns whether there was anything to do.
  using Turn = InlineFunction<bool()>;

  /// `event_descriptor` is the worker's.
  UcxLoop(UcxWorker& worker, int event_descriptor, Turn turn);
  ~UcxLoop() = default;
  UcxLoop(const UcxLoop&) = delete;
  UcxLoop& operator=(const UcxLoop&) = delete;

  /// Runs `work` on the loop's thread, in the order posted. Any thread may call it. Once the loop
  /// has ended, `work` runs here and now, one at a time, and must not post.
  void post(Work work);

  /// Returns after `stop`, when all work posted until then has run.
  void run();

  /// Ends `run`. To be called on the loop's thread.
  void stop() noexcept { stopped_ = true; }

  /// For timers. Their handlers run on the loop's thread; if they use the worker, they do it in
  /// work that they post.
  [[nodiscard]] boost::asio::io_context& io() noexcept { return io_; }

private:
  using Clock = std::chrono::steady_clock;

  void poll();
  bool run_posted();
  [[nodiscard]] bool fall_asleep();
  void sleep();
  void end();

  UcxWorker& worker_;
  Turn turn_;
  bool stopped_ = false;
  Clock::time_point last_busy_ = Clock::now();
  boost::asio::io_context io_{1};
  boost::asio::posix::stream_descriptor events_;

  std::atomic<bool> has_posted_ = false;  ///< Spares `run_posted` the lock.
  std::mutex mutex_;
  std::vector<Work> posted_;
  bool asleep_ = false;
  bool ended_ = false;
  std::vector<Work> running_;  ///< Of the loop's thread alone.
};

}  // namespace troupe::transport
