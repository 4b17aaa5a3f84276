// transport/src/ucx/ucx_loop.hpp -- the thread of a fabric: progress, work from others, sleep,
// timers.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/inline_function.hpp"

namespace troupe::transport {

/// What a loop drives. One thread at a time calls its members, except for `tell`, and each sees
/// what the one before has done.
class UcxDriven {
public:
  /// Does what can be done now. Returns whether there was anything.
  virtual bool progress() = 0;

  /// Asks for an event on the loop's descriptor once there is something to do again. Returns false
  /// if there is something already.
  virtual bool arm() = 0;

  /// Called by a thread other than the loop's that has run work and leaves. Returns whether the
  /// work has begun what only `progress` brings to its end.
  virtual bool leave() = 0;

  /// Whether something waits for what those do who are told.
  [[nodiscard]] virtual bool awaits_answers() const = 0;

  /// Whether there is something to `tell`.
  [[nodiscard]] virtual bool has_news() const = 0;

  /// Tells whoever waits for it what has come of what they began. Not part of driving: any thread
  /// calls it that drives no longer, and several may at once.
  virtual void tell() = 0;

protected:
  ~UcxDriven() = default;
};

/// Runs a thread that makes progress, and work that any thread posts.
///
/// While there is something to do the thread polls; when there has been nothing for a while it
/// sleeps in Asio until an event, a timer or `wake`. Work is run by the thread while it has
/// something to do, and otherwise by whoever posts it: a change of threads would cost more than
/// most work does. Posting makes no system call, unless the thread must be woken, and allocates
/// nothing once as much work was waiting as ever will be.
class UcxLoop {
public:
  using Work = InlineFunction<void(), 144>;

  /// Fails if the system has no more descriptors.
  static Expected<std::unique_ptr<UcxLoop>> make(UcxDriven& driven);
  ~UcxLoop();
  UcxLoop(const UcxLoop&) = delete;
  UcxLoop& operator=(const UcxLoop&) = delete;

  /// An epoll descriptor: whatever is added to it wakes the thread.
  [[nodiscard]] int events() const noexcept { return events_; }

  /// Runs `work`, in the order posted, now or soon, on this thread or another, never two at once.
  /// Any thread may call it, before, while and after the loop runs; from within work it returns at
  /// once.
  void post(Work work);

  /// Returns after `stop`, when all work posted until then has run.
  void run();

  /// Ends `run`. To be called by work or by what is driven.
  void stop() noexcept { stopped_ = true; }

  /// For timers. Their handlers run on the loop's thread; what they do with what is driven, they
  /// do in work that they post.
  [[nodiscard]] boost::asio::io_context& io() noexcept { return io_; }

private:
  using Clock = std::chrono::steady_clock;

  UcxLoop(UcxDriven& driven, int events, int waker);

  [[nodiscard]] bool try_to_drive() noexcept { return !driving_.exchange(true); }
  void drive() noexcept;
  void stop_driving() noexcept;

  void poll();
  void poll_io();
  bool advance();
  void tell();
  void lend();
  bool run_posted();
  void run_what_nobody_runs();
  void sleep();
  void wake() noexcept;

  UcxDriven& driven_;
  int events_;
  int waker_;
  bool stopped_ = false;
  bool asleep_ = false;      ///< The thread waits for an event, or is about to. Of who drives.
  bool others_ran_ = false;  ///< Work, since the thread last looked. Of who drives.
  bool waits_for_events_ = false;
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> io_stays_{
      io_.get_executor()};
  boost::asio::posix::stream_descriptor events_in_io_;

  /// Whether a thread runs what is driven. Whoever stops looks once more for posted work, so work
  /// that was posted meanwhile is not left lying.
  std::atomic<bool> driving_ = false;
  std::atomic<bool> has_posted_ = false;
  std::mutex mutex_;
  std::vector<Work> posted_;
  std::vector<Work> running_;  ///< Of the thread that drives.
};

}  // namespace troupe::transport
