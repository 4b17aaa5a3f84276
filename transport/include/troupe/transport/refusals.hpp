// troupe/transport/refusals.hpp -- what is said of refusals: everything once, nothing forever.
#pragma once

#include <chrono>
#include <functional>
#include <set>
#include <string>

namespace troupe::transport {

/// Passes on each sentence once an hour, and so many different ones: a stranger who comes back
/// again and again, or sends something new every time, cannot fill a log. For one thread.
class Refusals {
public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::size_t sentences_max = 64;
  static constexpr std::chrono::hours period{1};

  explicit Refusals(std::function<void(const std::string&)> report) : report_{std::move(report)} {}

  void note(const std::string& sentence, Clock::time_point now);

private:
  std::function<void(const std::string&)> report_;
  std::set<std::string> said_;
  Clock::time_point begin_{};
};

}  // namespace troupe::transport
