// A device whose streams run work at once on the calling thread, with the reference kernels: the
// test double for whatever drives a device.
#pragma once

#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "troupe/stages/device.hpp"

#include "reference_kernels.hpp"
#include "separate_memory.hpp"

namespace troupe::stages {

class InlineStream final : public Stream {
public:
  void enqueue(Work work) override { work(); }
  void record(Event& /*event*/) override {}
  void wait(Event& /*event*/) override {}
  void synchronize() override {}
};

/// Not thread-safe: one thread drives it and all its streams.
class InlineDevice : public Device {
public:
  /// @param size_bytes_max what `allocate` grants in sum before it reports `out_of_memory`.
  /// @param space it computes in: `device` is memory that nothing but its kernels can touch.
  explicit InlineDevice(std::size_t size_bytes_max = std::numeric_limits<std::size_t>::max(),
                        MemorySpace space = MemorySpace::host)
      : free_bytes_{size_bytes_max}, space_{space} {}

  [[nodiscard]] std::unique_ptr<Stream> make_stream(std::string_view /*name*/,
                                                    std::uint32_t /*thread_count*/) override {
    return std::make_unique<InlineStream>();
  }
  [[nodiscard]] std::unique_ptr<Event> make_event() override {
    return std::make_unique<InlineEvent>();
  }

  [[nodiscard]] Expected<BufferView> allocate(std::size_t size_bytes, MemorySpace space) override {
    if (size_bytes > free_bytes_) {
      return Error{Errc::out_of_memory, "The inline device refuses " + std::to_string(size_bytes)
                                            + " bytes: it was made with a limit."};
    }
    free_bytes_ -= size_bytes;
    if (space == MemorySpace::device) {
      return BufferView{separate_.allocate(size_bytes), size_bytes, space};
    }
    constexpr std::size_t alignment = 64;
    const std::size_t rounded = (size_bytes / alignment + 1) * alignment;
    std::unique_ptr<void, decltype(&std::free)> memory{std::aligned_alloc(alignment, rounded),
                                                       &std::free};
    TROUPE_ASSERT(memory != nullptr);
    std::memset(memory.get(), 0, rounded);
    arenas_.push_back(std::move(memory));
    return BufferView{static_cast<std::byte*>(arenas_.back().get()), size_bytes, space};
  }

  [[nodiscard]] MemorySpace memory_space() const noexcept override { return space_; }
  [[nodiscard]] Kernels& kernels() override { return kernels_; }
  [[nodiscard]] double measure_peak_flops(std::uint32_t /*stream_count*/,
                                          std::uint32_t /*thread_count*/,
                                          Precision /*precision*/) override {
    return 1e9;
  }

private:
  class InlineEvent final : public Event {};

  SeparateMemory separate_;
  ReferenceKernels kernels_{&separate_};
  std::size_t free_bytes_;
  MemorySpace space_;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> arenas_;
};

/// An inline device whose memory the host cannot touch.
inline std::unique_ptr<Device> make_separate_device() {
  return std::make_unique<InlineDevice>(std::numeric_limits<std::size_t>::max(),
                                        MemorySpace::device);
}

}  // namespace troupe::stages
