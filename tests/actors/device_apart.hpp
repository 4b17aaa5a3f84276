// tests/actors/device_apart.hpp -- a CPU that passes for a device with memory of its own.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string_view>

#include "troupe/stages/cpu_device.hpp"
#include "troupe/stages/device.hpp"

namespace troupe::actors {

using TakenBytes = std::map<MemorySpace, std::uint64_t>;

/// Counts what is taken of each memory.
class DeviceApart final : public stages::Device {
public:
  explicit DeviceApart(TakenBytes& taken) : taken_{taken} {}

  std::unique_ptr<stages::Stream> make_stream(std::string_view name,
                                              std::uint32_t thread_count) override {
    return cpu_->make_stream(name, thread_count);
  }
  std::unique_ptr<stages::Event> make_event() override { return cpu_->make_event(); }
  Expected<BufferView> allocate(std::size_t size_bytes, MemorySpace space) override {
    taken_[space] += size_bytes;
    return cpu_->allocate(size_bytes, space);
  }
  MemorySpace memory_space() const noexcept override { return MemorySpace::device; }
  stages::Kernels& kernels() override { return cpu_->kernels(); }
  double measure_peak_flops(std::uint32_t stream_count, std::uint32_t thread_count,
                            Precision precision) override {
    return cpu_->measure_peak_flops(stream_count, thread_count, precision);
  }

private:
  std::unique_ptr<stages::Device> cpu_ = stages::make_cpu_device();
  TakenBytes& taken_;
};

}  // namespace troupe::actors
