#include "troupe/stages/cpu_device.hpp"

#include <array>
#include <atomic>
#include <limits>
#include <memory>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <pthread.h>

#include "device_conformance.hpp"
#include "inline_device.hpp"
#include "seeded_device.hpp"

namespace troupe::stages {
namespace {

struct CpuBackend {
  static std::unique_ptr<Device> make() { return make_cpu_device(); }
};
struct InlineBackend {
  static std::unique_ptr<Device> make() { return std::make_unique<InlineDevice>(); }
};
struct SeparateBackend {
  static std::unique_ptr<Device> make() { return make_separate_device(); }
};
struct SeededBackend {
  static std::unique_ptr<Device> make() { return std::make_unique<SeededDevice>(1); }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, DeviceConformance, CpuBackend);
INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, ThreadedDeviceConformance, CpuBackend);
INSTANTIATE_TYPED_TEST_SUITE_P(Inline, DeviceConformance, InlineBackend);
INSTANTIATE_TYPED_TEST_SUITE_P(Separate, DeviceConformance, SeparateBackend);
INSTANTIATE_TYPED_TEST_SUITE_P(Seeded, DeviceConformance, SeededBackend);

// What follows is more than every device can promise.

TEST(CpuDevice, WorkMayEnqueueMoreWorkOnItsOwnStream) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream("self", 1);
  int ran = 0;
  stream->enqueue([&] {
    for (int i = 0; i < 3000; ++i) stream->enqueue([&ran] { ++ran; });
  });
  stream->synchronize();
  EXPECT_EQ(ran, 3000);
}

TEST(CpuDevice, AStreamWhoseEventNeverComesCanBeDestroyed) {
  const auto device = make_cpu_device();
  const auto event = device->make_event();
  const auto token = std::make_shared<int>(0);
  auto blocker = device->make_stream("blocker", 1);
  auto waiting = device->make_stream("waiting", 1);
  std::atomic<bool> release = false;
  blocker->enqueue([&release] {
    while (!release) std::this_thread::yield();
  });
  blocker->record(*event);
  waiting->wait(*event);
  waiting->enqueue([token] {});
  waiting.reset();
  EXPECT_EQ(token.use_count(), 1);
  release = true;
  blocker->synchronize();
}

TEST(CpuDevice, RefusesMoreMemoryThanThereIsAddressSpaceAndNamesTheBytes) {
  const auto device = make_cpu_device();
  const auto size_bytes = std::numeric_limits<std::size_t>::max() / 2;
  const auto memory = device->allocate(size_bytes, MemorySpace::host);
  ASSERT_FALSE(memory.has_value());
  EXPECT_EQ(memory.error().code, Errc::out_of_memory);
  EXPECT_NE(memory.error().context.find(std::to_string(size_bytes)), std::string::npos);
  EXPECT_FALSE(
      device->allocate(std::numeric_limits<std::size_t>::max(), MemorySpace::host).has_value());
}

TEST(CpuDevice, NamesTheThreadOfAStream) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream("stage 3", 1);
  std::array<char, 16> name{};
  stream->enqueue([&name] { pthread_getname_np(pthread_self(), name.data(), name.size()); });
  stream->synchronize();
  EXPECT_STREQ(name.data(), "stage 3");
}

TEST(CpuDeviceDeathTest, RefusesANameThatIsTooLong) {
  const auto device = make_cpu_device();
  EXPECT_DEATH((void)device->make_stream("a name of 16 byt", 1), "name.size");
}

TEST(SeparateDeviceDeathTest, EndsATestWhoseHostTouchesDeviceMemory) {
  const auto device = make_separate_device();
  const auto memory = device->allocate(64, device->memory_space()).value();
  const auto stream = device->make_stream("host", 1);
  EXPECT_DEATH(memory.data[63] = std::byte{1}, "");
  EXPECT_DEATH(stream->enqueue([&memory] { memory.data[0] = std::byte{1}; }), "");
}

TEST(InlineDevice, RefusesMemoryBeyondItsLimit) {
  InlineDevice device{100};
  EXPECT_TRUE(device.allocate(60, MemorySpace::host).has_value());
  EXPECT_EQ(device.allocate(60, MemorySpace::host).error().code, Errc::out_of_memory);
}

}  // namespace
}  // namespace troupe::stages
