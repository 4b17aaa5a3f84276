#include "ucx/ucx_loop.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace troupe::transport {

/// Stands for UCX: what work begins, the next round of progress ends. Like all that a loop drives
/// it has no lock, so the thread sanitizer sees whether one thread at a time is in it.
class Begun final : public UcxDriven {
public:
  /// What `progress` does before anything else. Returns whether that was something.
  std::function<bool()> round = [] { return false; };

  /// To be called by work. `ended` learns which thread brings it to its end.
  void begin(std::promise<std::thread::id>& ended) { begun_.push_back(&ended); }

  /// To be called by `round` before it says that it did something.
  void leave_rest() { rests_ = false; }
  /// Blocks until the thread has asked for an event after the last work: it is about to sleep.
  void wait_for_rest() const { rests_.wait(false); }

  bool progress() override {
    const bool busy = round();
    if (!begun_.empty()) leave_rest();
    for (auto* ended : std::exchange(begun_, {})) ended->set_value(std::this_thread::get_id());
    return busy;
  }
  bool arm() override {
    rests_ = true;
    rests_.notify_all();
    return true;
  }
  bool leave() override { return !begun_.empty(); }
  [[nodiscard]] bool awaits_answers() const override { return false; }
  [[nodiscard]] bool has_news() const override { return has_news_; }
  void tell() override {
    if (has_news_.exchange(false)) news();
  }

  /// To be called by `round` or by work: afterwards `news` runs, once.
  void have_news() { has_news_ = true; }
  std::function<void()> news;

private:
  std::vector<std::promise<std::thread::id>*> begun_;
  std::atomic<bool> rests_ = false;
  std::atomic<bool> has_news_ = false;
};

bool is_readable(int descriptor) {
  pollfd question{.fd = descriptor, .events = POLLIN, .revents = 0};
  return poll(&question, 1, 0) == 1;
}

class UcxLoops : public testing::Test {
protected:
  ~UcxLoops() override {
    if (thread_.joinable()) stop();
  }

  void start() {
    thread_ = std::thread{[this] { loop_->run(); }};
    id_ = thread_.get_id();
  }

  /// Wakes the thread by what is not under test, and returns when it has ended.
  void stop() {
    post(loop_->io(), [this] { loop_->post([this] { loop_->stop(); }); });
    thread_.join();
  }

  /// Keeps the thread where it sleeps, away from what it drives, until `awake_` is counted down.
  /// Returns when it is there.
  void hold_asleep() {
    driven_.wait_for_rest();
    std::promise<void> held;
    post(loop_->io(), [this, &held] {
      held.set_value();
      awake_.wait();
    });
    held.get_future().wait();
  }

  /// Posts work that does `what`. Returns the thread that runs it, once it has run.
  template <class What>
  std::thread::id thread_that_runs(What what) {
    std::promise<std::thread::id> ran;
    loop_->post([&ran, &what] {
      what();
      ran.set_value(std::this_thread::get_id());
    });
    return ran.get_future().get();
  }

  const std::thread::id here_ = std::this_thread::get_id();
  std::latch awake_{1};  // It outlives the thread that waits for it.
  Begun driven_;
  std::unique_ptr<UcxLoop> loop_ = UcxLoop::make(driven_).value();
  std::thread thread_;
  std::thread::id id_;  ///< Of the loop's thread.
};

TEST_F(UcxLoops, RunWorkOnThePostersThreadBeforeTheyBeginAndAfterTheyEnd) {
  EXPECT_EQ(thread_that_runs([] {}), here_);
  start();
  stop();
  EXPECT_EQ(thread_that_runs([] {}), here_);
}

TEST_F(UcxLoops, RunWorkOnThePostersThreadWhileTheySleep) {
  start();
  hold_asleep();
  EXPECT_EQ(thread_that_runs([] {}), here_);
  EXPECT_FALSE(is_readable(loop_->events())) << "nothing was begun, and it is woken";
  awake_.count_down();
}

TEST_F(UcxLoops, RunWorkOnTheirThreadWhileItMakesProgress) {
  std::latch entered{1};
  std::latch posted{1};
  driven_.round = [&, first = true]() mutable {
    if (!std::exchange(first, false)) return false;
    entered.count_down();
    posted.wait();
    return true;
  };
  start();
  entered.wait();
  std::promise<std::thread::id> ran;
  loop_->post([&] { ran.set_value(std::this_thread::get_id()); });
  posted.count_down();
  EXPECT_EQ(ran.get_future().get(), id_);
}

TEST_F(UcxLoops, EndOnTheirThreadWhatWorkOfAnotherHasBegun) {
  start();
  std::promise<std::thread::id> first;
  hold_asleep();
  EXPECT_EQ(thread_that_runs([&] { driven_.begin(first); }), here_);
  const bool woken = is_readable(loop_->events());
  awake_.count_down();
  EXPECT_EQ(first.get_future().get(), id_);
  ASSERT_TRUE(woken) << "what was begun while it slept would wait for an event";
  // Asleep or on its way there, which is left to chance.
  for (int round = 0; round < 200; ++round) {
    driven_.wait_for_rest();
    std::promise<std::thread::id> ended;
    thread_that_runs([&] { driven_.begin(ended); });
    ASSERT_EQ(ended.get_future().get(), id_);
  }
}

TEST_F(UcxLoops, WakeForAnEventOfWhatTheyDrive) {
  const int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  epoll_event readable{};
  readable.events = EPOLLIN;
  ASSERT_EQ(epoll_ctl(loop_->events(), EPOLL_CTL_ADD, event, &readable), 0);
  std::optional<std::promise<std::thread::id>> seen;
  driven_.round = [&] {
    std::uint64_t count = 0;
    if (read(event, &count, sizeof count) < 0) return false;
    driven_.leave_rest();
    seen->set_value(std::this_thread::get_id());
    return true;
  };
  start();
  for (int round = 0; round < 200; ++round) {
    seen.emplace();
    auto future = seen->get_future();
    driven_.wait_for_rest();
    const std::uint64_t once = 1;
    ASSERT_EQ(write(event, &once, sizeof once), static_cast<ssize_t>(sizeof once));
    ASSERT_EQ(future.get(), id_);
  }
  stop();
  close(event);
}

TEST_F(UcxLoops, RunAfterItWhatWorkPosts) {
  std::string order;
  loop_->post([&] {
    loop_->post([&] { order += "second"; });
    order += "first ";
  });
  EXPECT_EQ(order, "first second");
}

TEST_F(UcxLoops, TellOfWhatHasEndedWhileNobodyDrives) {
  std::promise<std::thread::id> told;
  driven_.news = [&] {
    // Whoever is told gets by who tells: what it posts it runs itself.
    std::promise<std::thread::id> ran;
    std::thread other{[&] { loop_->post([&] { ran.set_value(std::this_thread::get_id()); }); }};
    const auto other_id = other.get_id();
    other.join();
    EXPECT_EQ(ran.get_future().get(), other_id);
    told.set_value(std::this_thread::get_id());
  };
  loop_->post([&] { driven_.have_news(); });
  EXPECT_EQ(told.get_future().get(), here_);
  told = {};
  driven_.round = [&, round = 0]() mutable {
    if (round++ == 0) driven_.have_news();
    return round < 2 || driven_.has_news();  // It has no rest before it has told.
  };
  start();
  EXPECT_EQ(told.get_future().get(), id_);
}

TEST_F(UcxLoops, TellBeforeTheyEnd) {
  std::uint32_t told = 0;
  driven_.news = [&] { ++told; };
  driven_.round = [&] {
    driven_.have_news();
    loop_->stop();
    return false;
  };
  loop_->run();
  EXPECT_EQ(told, 1U);
}

TEST_F(UcxLoops, LeaveNothingLyingThatIsPostedWhileAnotherPosterRunsWork) {
  start();
  hold_asleep();
  std::latch running{1};
  std::latch posted{1};
  std::thread other{[&] {
    loop_->post([&] {
      running.count_down();
      posted.wait();
    });
  }};
  const auto other_id = other.get_id();
  running.wait();
  std::promise<std::thread::id> ran;
  loop_->post([&] { ran.set_value(std::this_thread::get_id()); });
  posted.count_down();
  EXPECT_EQ(ran.get_future().get(), other_id);
  awake_.count_down();
  other.join();
}

TEST_F(UcxLoops, RunOneWorkAtATimeAndEachPostersInItsOrder) {
  constexpr std::size_t poster_count = 3;
  constexpr std::uint32_t work_count = 2000;
  start();
  std::vector<std::vector<std::uint32_t>> ran(poster_count);
  std::uint32_t total = 0;  // Without a lock: the loop's promise is what orders its changes.
  std::latch all{poster_count * work_count};
  std::vector<std::thread> posters;
  for (std::size_t poster = 0; poster < poster_count; ++poster) {
    posters.emplace_back([&, poster] {
      for (std::uint32_t number = 0; number < work_count; ++number) {
        loop_->post([&, poster, number] {
          ran[poster].push_back(number);
          ++total;
          all.count_down();
        });
      }
    });
  }
  for (auto& poster : posters) poster.join();
  all.wait();
  stop();
  EXPECT_EQ(total, poster_count * work_count);
  for (const auto& numbers : ran) {
    EXPECT_EQ(numbers.size(), work_count);
    EXPECT_TRUE(std::ranges::is_sorted(numbers));
  }
}

TEST_F(UcxLoops, RunTimersWhileThereIsAlwaysSomethingToDo) {
  constexpr std::uint32_t rounds_max = 1'000'000;
  std::uint32_t rounds = 0;
  std::promise<std::uint32_t> fired;
  bool waits = true;
  driven_.round = [&] { return waits && ++rounds < rounds_max; };
  boost::asio::steady_timer timer{loop_->io(), std::chrono::seconds{0}};
  timer.async_wait([&](const boost::system::error_code&) {
    waits = false;
    fired.set_value(rounds);
  });
  start();
  EXPECT_LT(fired.get_future().get(), rounds_max)
      << "the timer had to wait for the end of the work";
}

TEST_F(UcxLoops, EndWhenAllHasRunThatWasPostedUntilTheyWereStopped) {
  bool last_ran = false;
  driven_.round = [&, first = true]() mutable {
    if (std::exchange(first, false)) {
      loop_->post([&] {
        loop_->stop();
        loop_->post([&] { last_ran = true; });
      });
    }
    return false;
  };
  loop_->run();
  EXPECT_TRUE(last_ran);
}

}  // namespace troupe::transport
