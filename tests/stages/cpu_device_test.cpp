#include "troupe/stages/cpu_device.hpp"

#include <array>
#include <limits>
#include <string>

#include <gtest/gtest.h>
#include <pthread.h>

#include "device_conformance.hpp"
#include "inline_device.hpp"

namespace troupe::stages {
namespace {

struct CpuBackend {
  static std::unique_ptr<Device> make() { return make_cpu_device(); }
};
struct InlineBackend {
  static std::unique_ptr<Device> make() { return std::make_unique<InlineDevice>(); }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, DeviceConformance, CpuBackend);
INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, ThreadedDeviceConformance, CpuBackend);
INSTANTIATE_TYPED_TEST_SUITE_P(Inline, DeviceConformance, InlineBackend);

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

TEST(InlineDevice, RefusesMemoryBeyondItsLimit) {
  InlineDevice device{100};
  EXPECT_TRUE(device.allocate(60, MemorySpace::host).has_value());
  EXPECT_EQ(device.allocate(60, MemorySpace::host).error().code, Errc::out_of_memory);
}

}  // namespace
}  // namespace troupe::stages
