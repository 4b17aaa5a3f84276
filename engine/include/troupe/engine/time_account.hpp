// troupe/engine/time_account.hpp -- where the time of one rank went, by cause, without a remainder.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string_view>

#include "troupe/engine/stage_machine.hpp"

namespace troupe {

/// What a rank's time is spent on.
enum class TimeCause : std::uint8_t {
  computing,   ///< The device runs a pass.
  dispatch,    ///< A pass could run and does not: messages and wake-ups of the runtime itself.
  activation,  ///< Waiting for the previous stage's rank.
  gradient,    ///< Waiting for the next stage's rank.
  send,        ///< Waiting for a link to take an output away.
  reduction,   ///< Waiting for gradients or weights of other replicas, or of the tied embedding.
  measuring,   ///< Measuring the gradient norm.
  director,    ///< Waiting for the slowest rank's gradient norm.
  optimizer,   ///< Updating weights.
  next_step,   ///< Waiting for the next step to begin.
  shards,      ///< Waiting for the other shards of the stage, within passes or for their choice.
};
inline constexpr std::size_t time_cause_count = 11;

/// Returns the enumerator's spelling.
[[nodiscard]] std::string_view to_string(TimeCause cause) noexcept;

/// Nanoseconds by cause; they add up to the time from `begin_ns` to `end_ns` of the driver's clock.
struct TimeAccount {
  std::array<std::int64_t, time_cause_count> ns{};
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;

  [[nodiscard]] std::int64_t& operator[](TimeCause cause) noexcept {
    return ns[static_cast<std::size_t>(cause)];
  }
  [[nodiscard]] std::int64_t operator[](TimeCause cause) const noexcept {
    return ns[static_cast<std::size_t>(cause)];
  }
  [[nodiscard]] std::int64_t total_ns() const noexcept {
    return std::accumulate(ns.begin(), ns.end(), std::int64_t{0});
  }
  friend bool operator==(const TimeAccount&, const TimeAccount&) = default;
};

/// Keeps a `TimeAccount` for the driver of a `StageMachine`. Reads no clock: the driver tells the
/// time.
class TimeKeeper {
public:
  /// Begins to count at `now_ns`.
  explicit TimeKeeper(std::int64_t now_ns)
      : account_{.ns = {}, .begin_ns = now_ns, .end_ns = now_ns} {}

  /// Books the time since the last call; `waited_for` is what the machine had been waiting for.
  void advance(WaitCause waited_for, std::int64_t now_ns);

  /// Books one pass of the device, of which it spent `waiting_ns` waiting for other shards and
  /// `gathering_ns` for gradients or weights of other holders.
  void add_pass(std::int64_t duration_ns, std::int64_t waiting_ns, std::int64_t gathering_ns) {
    computing_ns_ += duration_ns - waiting_ns - gathering_ns;
    waiting_ns_ += waiting_ns;
    gathering_ns_ += gathering_ns;
  }

  /// Returns the account of everything from the end of the one before, or from the beginning, to
  /// the last call of `advance`, and begins a new one there. Passes that took longer by the
  /// device's clock than by the driver's count as long as the driver saw them.
  [[nodiscard]] TimeAccount close();

private:
  TimeAccount account_;  ///< `computing` includes all time of passes until it is closed.
  std::int64_t computing_ns_ = 0;
  std::int64_t waiting_ns_ = 0;
  std::int64_t gathering_ns_ = 0;
};

}  // namespace troupe
