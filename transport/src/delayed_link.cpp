#include "troupe/transport/delayed_link.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

namespace troupe::transport {

namespace {

using Clock = std::chrono::steady_clock;

class DelayedLink final : public Link {
public:
  DelayedLink(std::unique_ptr<Link> inner, std::chrono::nanoseconds delay)
      : inner_{std::move(inner)}, delay_{delay}, timer_{[this] { run(); }} {}
  ~DelayedLink() override {
    close();
    timer_.join();
  }
  DelayedLink(const DelayedLink&) = delete;
  DelayedLink& operator=(const DelayedLink&) = delete;

  void post_send(Tag tag, Buffer source, TransferDone done) override {
    {
      const std::scoped_lock lock{mutex_};
      if (!is_closed_) {
        waiting_.push_back({Clock::now() + delay_, tag, std::move(source), std::move(done)});
        changed_.notify_one();
        return;
      }
    }
    inner_->post_send(tag, std::move(source), std::move(done));
  }

  void post_receive(Tag tag, Buffer target, TransferDone done) override {
    inner_->post_receive(tag, std::move(target), std::move(done));
  }

  /// The inner link, once closed, completes as cancelled what the timer then gives it.
  void close() override {
    inner_->close();
    std::unique_lock lock{mutex_};
    is_closed_ = true;
    changed_.notify_one();
    became_empty_.wait(lock, [this] { return waiting_.empty(); });
  }

private:
  struct Waiting {
    Clock::time_point due;
    Tag tag;
    Buffer source;
    TransferDone done;
  };

  void run() {
    std::unique_lock lock{mutex_};
    while (true) {
      changed_.wait(lock, [this] { return is_closed_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      changed_.wait_until(lock, waiting_.front().due, [this] { return is_closed_; });
      auto first = std::move(waiting_.front());
      lock.unlock();
      inner_->post_send(first.tag, std::move(first.source), std::move(first.done));
      lock.lock();
      waiting_.pop_front();  // Only now: who closes waits for its completion too.
      if (waiting_.empty()) became_empty_.notify_all();
    }
  }

  std::unique_ptr<Link> inner_;
  std::chrono::nanoseconds delay_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable became_empty_;
  std::deque<Waiting> waiting_;
  bool is_closed_ = false;
  std::thread timer_;
};

}  // namespace

std::unique_ptr<Link> make_delayed_link(std::unique_ptr<Link> inner,
                                        std::chrono::nanoseconds delay) {
  return std::make_unique<DelayedLink>(std::move(inner), delay);
}

}  // namespace troupe::transport
