#include "troupe/engine/time_account.hpp"

#include <algorithm>
#include <utility>

namespace troupe {

namespace {

/// While the machine waits for nothing, the device computes or is about to.
TimeCause cause_of(WaitCause cause) {
  switch (cause) {
    case WaitCause::none:
      return TimeCause::computing;
    case WaitCause::activation:
      return TimeCause::activation;
    case WaitCause::gradient:
      return TimeCause::gradient;
    case WaitCause::send:
      return TimeCause::send;
    case WaitCause::leader:
      return TimeCause::shards;
    case WaitCause::reduction:
      return TimeCause::reduction;
    case WaitCause::measuring:
      return TimeCause::measuring;
    case WaitCause::director:
      return TimeCause::director;
    case WaitCause::optimizer:
      return TimeCause::optimizer;
    case WaitCause::next_step:
      return TimeCause::next_step;
  }
  return TimeCause::dispatch;
}

}  // namespace

std::string_view to_string(TimeCause cause) noexcept {
  constexpr std::array<std::string_view, time_cause_count> names{
      "computing", "dispatch", "activation", "gradient",  "send",  "reduction",
      "measuring", "director", "optimizer",  "next_step", "shards"};
  return names[static_cast<std::size_t>(cause)];
}

void TimeKeeper::advance(WaitCause waited_for, std::int64_t now_ns) {
  account_[cause_of(waited_for)] += now_ns - account_.end_ns;
  account_.end_ns = now_ns;
}

TimeAccount TimeKeeper::close() {
  // Between two events without an obstacle the device ran its passes; the rest was the runtime's.
  auto account = account_;
  account_ = {.ns = {}, .begin_ns = account.end_ns, .end_ns = account.end_ns};
  const auto open_ns = account[TimeCause::computing];
  account[TimeCause::computing] = std::min(std::exchange(computing_ns_, 0), open_ns);
  const auto rest_ns = open_ns - account[TimeCause::computing];
  const auto waited_ns = std::min(std::exchange(waiting_ns_, 0), rest_ns);
  const auto gathered_ns = std::min(std::exchange(gathering_ns_, 0), rest_ns - waited_ns);
  account[TimeCause::shards] += waited_ns;
  account[TimeCause::reduction] += gathered_ns;
  account[TimeCause::dispatch] = rest_ns - waited_ns - gathered_ns;
  return account;
}

}  // namespace troupe
