#include "reduction_measurement.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <string>
#include <vector>

#include "troupe/stages/cpu_device.hpp"
#include "troupe/transport/in_process.hpp"

namespace troupe::cli {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t small_bytes = 64;
constexpr std::size_t large_bytes = std::size_t{16} << 20U;
constexpr int small_round_count = 101;
constexpr int large_round_count = 7;

/// Median of an all-reduce of `values`, in nanoseconds.
Expected<double> median_ns(transport::Collective& member, transport::WorkQueue& queue,
                           const BufferView& values, int round_count) {
  std::vector<double> durations_ns;
  for (int round = 0; round < round_count; ++round) {
    std::promise<Errc> promise;
    auto summed = promise.get_future();
    const auto begin = Clock::now();
    member.all_reduce(queue, values, [&promise](Errc code) { promise.set_value(code); });
    if (const auto code = summed.get(); code != Errc::none) {
      return Error{code, "a sum broke off: " + std::string{to_string(code)}};
    }
    durations_ns.push_back(std::chrono::duration<double, std::nano>(Clock::now() - begin).count());
  }
  const auto middle = durations_ns.begin() + round_count / 2;
  std::ranges::nth_element(durations_ns, middle);
  return *middle;
}

}  // namespace

Expected<Wire> measure_reduction(transport::Collective& member) {
  const auto device = stages::make_cpu_device();
  const auto stream = device->make_stream("reduction", 1);
  const auto memory = device->allocate(large_bytes, MemorySpace::host);
  if (!memory) return memory.error();
  const auto small_ns =
      median_ns(member, *stream, {memory->data, small_bytes, MemorySpace::host}, small_round_count);
  if (!small_ns) return small_ns.error();
  const auto large_ns = median_ns(member, *stream, *memory, large_round_count);
  stream->synchronize();
  if (!large_ns) return large_ns.error();
  constexpr double least_ns = 1.0;
  return Wire{.latency_ns = static_cast<std::int64_t>(*small_ns),
              .bytes_per_second = large_bytes / std::max(least_ns, *large_ns - *small_ns) * 1e9};
}

Expected<Wire> measure_reduction() {
  const auto members = transport::make_in_process_group(2);
  const auto measure = [](transport::Collective& member) {
    auto measured = measure_reduction(member);
    if (!measured) member.close();  // The other waits for it.
    return measured;
  };
  auto other = std::async(std::launch::async, [&] { return measure(*members[1]); });
  auto measured = measure(*members[0]);
  const auto others = other.get();
  return others ? measured : others.error();
}

}  // namespace troupe::cli
