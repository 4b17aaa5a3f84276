#include "ucx/ucx_loop.hpp"

#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace troupe::transport {

namespace {

/// Going to sleep and waking costs more than a message; most answers come sooner.
constexpr std::chrono::microseconds spin{200};

/// A round in which nothing was done and that took longer shared its core with another thread,
/// which has better use for it.
constexpr std::chrono::microseconds crowded{10};

/// What a thread that finds nothing rests before it looks again. Where another processor shares the
/// core's units (hyper-threads, as most rented processors are), the other end may run on it, and
/// every look slows it: of 16 MiB over TCP by a tenth (bench/results/links.md).
constexpr std::chrono::nanoseconds rest{1000};

/// A busy loop looks at the clock once in so many rounds, which are well under a microsecond long,
/// and at timers and connections once in so many looks.
constexpr std::uint32_t rounds_between_looks = 64;
constexpr std::uint32_t looks_between_timers = 64;

/// Leaves the core's units to others for some cycles.
void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Expected<std::unique_ptr<UcxLoop>> UcxLoop::make(UcxDriven& driven) {
  const int events = epoll_create1(EPOLL_CLOEXEC);
  const int waker = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  epoll_event readable{};
  readable.events = EPOLLIN;
  if (events >= 0 && waker >= 0 && epoll_ctl(events, EPOLL_CTL_ADD, waker, &readable) == 0) {
    return std::unique_ptr<UcxLoop>{new UcxLoop{driven, events, waker}};
  }
  const auto why = std::generic_category().message(errno);
  if (events >= 0) close(events);
  if (waker >= 0) close(waker);
  return Error{Errc::internal, "waiting for UCX needs two file descriptors: " + why};
}

UcxLoop::UcxLoop(UcxDriven& driven, int events, int waker)
    : driven_{driven}, events_{events}, waker_{waker}, events_in_io_{io_, events} {}

UcxLoop::~UcxLoop() {
  close(waker_);
}

void UcxLoop::post(Work work) {
  {
    const std::scoped_lock lock{mutex_};
    posted_.push_back(std::move(work));
    has_posted_ = true;
  }
  run_what_nobody_runs();
}

void UcxLoop::run_what_nobody_runs() {
  while (has_posted_ && try_to_drive()) {
    run_posted();
    others_ran_ = true;
    const bool is_needed = driven_.leave() && asleep_;
    stop_driving();
    if (is_needed) wake();
    driven_.tell();
  }
}

bool UcxLoop::run_posted() {
  if (!has_posted_.load(std::memory_order_relaxed)) return false;
  {
    const std::scoped_lock lock{mutex_};
    std::swap(posted_, running_);
    has_posted_ = false;
  }
  for (auto& work : running_) work();
  running_.clear();
  return true;
}

void UcxLoop::drive() noexcept {
  while (!try_to_drive()) driving_.wait(true);
}

void UcxLoop::stop_driving() noexcept {
  driving_ = false;
  driving_.notify_one();
}

void UcxLoop::run() {
  while (true) {
    drive();
    asleep_ = false;
    poll();
    const bool stopped = stopped_;
    asleep_ = !stopped;
    stop_driving();
    if (stopped) return run_what_nobody_runs();
    if (!has_posted_) sleep();
  }
}

void UcxLoop::poll() {
  auto last_look = Clock::now();
  auto last_busy = last_look;
  for (std::uint32_t look = 1; !stopped_; ++look) {
    if (look % looks_between_timers == 0) poll_io();
    const bool others_ran = std::exchange(others_ran_, false);
    const bool advanced = advance();
    const auto now = Clock::now();
    const auto took = now - std::exchange(last_look, now);
    if (advanced || others_ran) {
      last_busy = now;
      continue;
    }
    const bool spins = now - last_busy < spin && took < crowded;
    if (!spins && driven_.arm()) return;
    lend();
  }
}

/// As much as does not keep what is driven waiting, however many strangers connect.
void UcxLoop::poll_io() {
  constexpr int handlers_max = 16;
  for (int handler = 0; handler < handlers_max && io_.poll_one() != 0; ++handler) continue;
}

/// Does what there is to do, as long as there is more at once. Returns whether there was anything.
bool UcxLoop::advance() {
  bool advanced = false;
  for (std::uint32_t times = 0; times < rounds_between_looks; ++times) {
    const bool progressed = driven_.progress();
    const bool ran = run_posted();
    tell();
    if (!progressed && !ran) return advanced;
    advanced = true;
  }
  return advanced;
}

/// Whoever is told may get the core at once in this thread's place, and what it posts it runs
/// itself.
void UcxLoop::tell() {
  if (!driven_.has_news()) return;
  const bool awaits_answers = driven_.awaits_answers();
  stop_driving();
  driven_.tell();
  if (awaits_answers) sched_yield();
  drive();
}

/// Whoever was just told of a message, or must run before there is one, gets the core at once, and
/// what it posts it may run itself.
void UcxLoop::lend() {
  stop_driving();
  sched_yield();
  constexpr int pauses_between_looks = 8;
  for (const auto end = Clock::now() + rest; Clock::now() < end;) {
    for (int i = 0; i < pauses_between_looks; ++i) pause();
  }
  drive();
}

void UcxLoop::sleep() {
  if (!waits_for_events_) {
    waits_for_events_ = true;
    events_in_io_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                             [this](const boost::system::error_code&) {
                               waits_for_events_ = false;
                               std::uint64_t wakes = 0;
                               static_cast<void>(read(waker_, &wakes, sizeof wakes));
                             });
  }
  io_.run_one();
}

void UcxLoop::wake() noexcept {
  const std::uint64_t once = 1;
  static_cast<void>(write(waker_, &once, sizeof once));
}

}  // namespace troupe::transport
