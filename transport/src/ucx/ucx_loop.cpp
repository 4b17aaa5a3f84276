#include "ucx/ucx_loop.hpp"

#include <boost/asio/post.hpp>
#include <sched.h>

namespace troupe::transport {

namespace {

/// Going to sleep and waking costs more than a message; most answers come sooner.
constexpr std::chrono::microseconds spin{20};

/// How long a busy loop lets timers wait, in rounds of well under a microsecond.
constexpr std::uint32_t rounds_between_timers = 4096;

}  // namespace

UcxLoop::UcxLoop(UcxWorker& worker, int event_descriptor, Turn turn)
    : worker_{worker}, turn_{std::move(turn)}, events_{io_, event_descriptor} {}

void UcxLoop::post(Work work) {
  const std::scoped_lock lock{mutex_};
  if (ended_) return work();
  posted_.push_back(std::move(work));
  has_posted_.store(true, std::memory_order_release);
  if (std::exchange(asleep_, false)) worker_.signal();
}

void UcxLoop::run() {
  boost::asio::post(io_, [this] { poll(); });
  io_.run();
  end();
}

void UcxLoop::poll() {
  for (std::uint32_t round = 0; !stopped_; ++round) {
    if (round == rounds_between_timers) return boost::asio::post(io_, [this] { poll(); });
    const bool progressed = worker_.progress();
    const bool ran = run_posted();
    if (turn_() || progressed || ran) {
      last_busy_ = Clock::now();
      continue;
    }
    if (Clock::now() - last_busy_ < spin) continue;
    if (!worker_.arm()) {
      // Often another process must run before there is progress; do not keep it from the core.
      sched_yield();
      continue;
    }
    if (fall_asleep()) return sleep();
  }
  io_.stop();
}

bool UcxLoop::run_posted() {
  if (!has_posted_.load(std::memory_order_acquire)) return false;
  {
    const std::scoped_lock lock{mutex_};
    std::swap(posted_, running_);
    has_posted_.store(false, std::memory_order_relaxed);
  }
  for (auto& work : running_) work();
  running_.clear();
  return true;
}

bool UcxLoop::fall_asleep() {
  const std::scoped_lock lock{mutex_};
  asleep_ = posted_.empty();
  return asleep_;
}

void UcxLoop::sleep() {
  events_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                     [this](const boost::system::error_code&) {
                       {
                         const std::scoped_lock lock{mutex_};
                         asleep_ = false;
                       }
                       poll();
                     });
}

void UcxLoop::end() {
  const std::scoped_lock lock{mutex_};
  ended_ = true;
  for (auto& work : posted_) work();
  posted_.clear();
  events_.release();  // The worker closes its descriptor itself.
}

}  // namespace troupe::transport
