// A device whose streams are empty only when somebody waits for them: then the work of all its
// streams runs in an order drawn from a seed, any that streams and events allow. What must be
// ordered across streams and is not goes wrong under some seed. A failure prints it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "troupe/engine/check.hpp"
#include "troupe/engine/random.hpp"

#include "inline_device.hpp"

namespace troupe::stages {

/// With memory that the host cannot touch. Not thread-safe: one thread drives it and all its
/// streams, which it outlives.
class SeededDevice final : public InlineDevice {
public:
  explicit SeededDevice(std::uint64_t seed)
      : InlineDevice{std::numeric_limits<std::size_t>::max(), MemorySpace::device}, random_{seed} {}

  [[nodiscard]] std::unique_ptr<Stream> make_stream(std::string_view /*name*/,
                                                    std::uint32_t /*thread_count*/) override {
    return std::make_unique<SeededStream>(*this);
  }
  [[nodiscard]] std::unique_ptr<Event> make_event() override {
    return std::make_unique<SeededEvent>();
  }

private:
  struct SeededEvent final : Event {
    std::uint64_t recorded_count = 0;
    std::uint64_t reached_count = 0;
  };

  class SeededStream final : public Stream {
  public:
    explicit SeededStream(SeededDevice& device) : device_{device} {
      device_.streams_.push_back(this);
    }
    ~SeededStream() override { std::erase(device_.streams_, this); }

    void enqueue(Work work) override { items_.push_back({nullptr, 0, std::move(work)}); }
    void record(Event& event) override {
      auto& reached = static_cast<SeededEvent&>(event);
      enqueue([&reached, count = ++reached.recorded_count] { reached.reached_count = count; });
    }
    void wait(Event& event) override {
      auto& awaited = static_cast<SeededEvent&>(event);
      items_.push_back({&awaited, awaited.recorded_count, [] {}});
    }
    void synchronize() override {
      while (!items_.empty()) device_.run_any();
    }

    [[nodiscard]] bool can_run() const {
      if (items_.empty()) return false;
      const auto& next = items_.front();
      return next.awaited == nullptr || next.awaited->reached_count >= next.count;
    }
    void run_next() {
      auto work = std::move(items_.front().work);
      items_.pop_front();
      work();
    }

  private:
    struct Item {
      const SeededEvent* awaited;  ///< If not null, the item waits for it.
      std::uint64_t count;
      Work work;
    };

    SeededDevice& device_;
    std::deque<Item> items_;
  };

  /// The first that can run, in an order that is drawn anew now and then: a stream may be far ahead
  /// of another, or far behind.
  void run_any() {
    constexpr std::uint64_t items_in_order = 40;
    const bool is_drawn = random_.below(items_in_order) == 0;
    for (auto i = streams_.size(); is_drawn && i > 1; --i) {
      std::swap(streams_[i - 1], streams_[random_.below(i)]);
    }
    const auto chosen = std::ranges::find_if(streams_, &SeededStream::can_run);
    TROUPE_ASSERT(chosen != streams_.end());
    (*chosen)->run_next();
  }

  Random random_;
  std::vector<SeededStream*> streams_;
};

}  // namespace troupe::stages
