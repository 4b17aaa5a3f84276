#include "troupe/stages/cpu_device.hpp"

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cpu_kernels.hpp"
#include "cpu_memory.hpp"
#include "cpu_stream.hpp"
#include "isa.hpp"

namespace troupe::stages {

namespace {

/// Side of the square matrices that the peak is measured with, and how often: a product takes a few
/// milliseconds, so that one of them meets no disturbance.
constexpr std::uint32_t peak_side = 768;
constexpr std::uint32_t peak_rounds = 12;

class CpuDevice final : public Device {
public:
  explicit CpuDevice(const Isa& isa) : kernels_{isa} {}

  [[nodiscard]] std::unique_ptr<Stream> make_stream(std::string_view name,
                                                    std::uint32_t thread_count) override {
    return std::make_unique<CpuStream>(name, thread_count, board_);
  }
  [[nodiscard]] std::unique_ptr<Event> make_event() override {
    return std::make_unique<CpuEvent>(board_);
  }
  [[nodiscard]] Expected<BufferView> allocate(std::size_t size_bytes, MemorySpace space) override;
  [[nodiscard]] MemorySpace memory_space() const noexcept override { return MemorySpace::host; }
  [[nodiscard]] Kernels& kernels() override { return kernels_; }
  [[nodiscard]] double measure_peak_flops(std::uint32_t stream_count, std::uint32_t thread_count,
                                          Precision precision) override;

private:
  CpuKernels kernels_;
  std::shared_ptr<EventBoard> board_ = std::make_shared<EventBoard>();
  std::mutex mutex_;
  std::vector<CpuMemory> arenas_;  ///< Under `mutex_`.
};

Expected<BufferView> CpuDevice::allocate(std::size_t size_bytes, MemorySpace space) {
  CpuMemory memory{std::max<std::size_t>(size_bytes, 1)};
  if (memory.data() == nullptr) {
    return Error{Errc::out_of_memory, "The CPU device cannot reserve " + std::to_string(size_bytes)
                                          + " bytes; make the model, the microbatch or their "
                                            "number smaller."};
  }
  const BufferView view{memory.data(), size_bytes, space};
  const std::lock_guard lock{mutex_};
  arenas_.push_back(std::move(memory));
  return view;
}

/// Seconds from the first stream's start to the last one's end of one call of enqueue(stream
/// index).
template <class Enqueue>
double seconds_of(std::vector<std::unique_ptr<Stream>>& streams, const Enqueue& enqueue) {
  const std::int64_t begin_ns = steady_now_ns();
  for (std::size_t i = 0; i < streams.size(); ++i) enqueue(i);
  for (auto& stream : streams) stream->synchronize();
  return static_cast<double>(steady_now_ns() - begin_ns) * 1e-9;
}

double CpuDevice::measure_peak_flops(std::uint32_t stream_count, std::uint32_t thread_count,
                                     Precision precision) {
  constexpr std::size_t count = std::size_t{peak_side} * peak_side;
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<CpuMemory> matrices;
  const auto matrix = [&](std::size_t stream, std::size_t index) {
    return reinterpret_cast<float*>(matrices[stream].data()) + index * count;
  };
  for (std::uint32_t i = 0; i < stream_count; ++i) {
    streams.push_back(make_stream("peak", thread_count));
    matrices.emplace_back(3 * count * sizeof(float));
    TROUPE_ASSERT(matrices.back().data() != nullptr);
  }
  const LinearShape shape{peak_side, peak_side, peak_side, WeightLayout::in_out, precision};
  double best_seconds = 1e9;
  for (std::uint32_t round = 0; round < peak_rounds; ++round) {
    best_seconds = std::min(best_seconds, seconds_of(streams, [&](std::size_t i) {
                              kernels_.linear_forward(*streams[i], matrix(i, 0), matrix(i, 1),
                                                      nullptr, nullptr, matrix(i, 2), shape);
                            }));
  }
  constexpr double flops = 2.0 * static_cast<double>(count) * peak_side;
  return flops * stream_count / best_seconds;
}

}  // namespace

std::unique_ptr<Device> make_cpu_device() {
  return make_cpu_device(*available_isas().back());
}

std::unique_ptr<Device> make_cpu_device(const Isa& isa) {
  return std::make_unique<CpuDevice>(isa);
}

std::vector<std::string> cpu_instruction_sets() {
  std::vector<std::string> names;
  for (const auto* isa : available_isas()) names.emplace_back(isa->name);
  return names;
}

}  // namespace troupe::stages
