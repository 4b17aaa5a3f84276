// What every device promises about streams, events and memory, whatever it is made of.
//
// To instantiate for a backend: a type with `static std::unique_ptr<Device> make()`.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/stages/device.hpp"
#include "troupe/stages/kernels.hpp"

namespace troupe::stages {

template <class Backend>
class DeviceConformance : public testing::Test {
protected:
  std::unique_ptr<Device> device_ = Backend::make();
};

TYPED_TEST_SUITE_P(DeviceConformance);

TYPED_TEST_P(DeviceConformance, AStreamRunsWorkInTheOrderOfEnqueueing) {
  const auto stream = this->device_->make_stream("order", 1);
  std::vector<int> ran;
  std::vector<int> expected;
  for (int i = 0; i < 5000; ++i) {
    stream->enqueue([&ran, i] { ran.push_back(i); });
    expected.push_back(i);
  }
  stream->synchronize();
  EXPECT_EQ(ran, expected);
}

TYPED_TEST_P(DeviceConformance, SynchronizeOfAnEmptyStreamReturns) {
  const auto stream = this->device_->make_stream("empty", 1);
  stream->synchronize();
  stream->synchronize();
}

TYPED_TEST_P(DeviceConformance, AWaitHoldsBackWhatFollowsUntilTheRecordedWorkIsDone) {
  const auto first = this->device_->make_stream("first", 1);
  const auto second = this->device_->make_stream("second", 1);
  const auto ready = this->device_->make_event();
  const auto consumed = this->device_->make_event();
  std::vector<float> values(1U << 16U);
  int mismatches = 0;
  for (int round = 0; round < 50; ++round) {
    first->wait(*consumed);
    first->enqueue([&values, round] {
      for (float& value : values) value = static_cast<float>(round);
    });
    first->record(*ready);
    second->wait(*ready);
    second->enqueue([&values, &mismatches, round] {
      for (const float value : values) mismatches += value == static_cast<float>(round) ? 0 : 1;
    });
    second->record(*consumed);
  }
  second->synchronize();
  first->synchronize();
  EXPECT_EQ(mismatches, 0);
}

TYPED_TEST_P(DeviceConformance, AnEventThatWasNeverRecordedHoldsNothingBack) {
  const auto event = this->device_->make_event();
  const auto stream = this->device_->make_stream("never", 1);
  bool ran = false;
  stream->wait(*event);
  stream->enqueue([&ran] { ran = true; });
  stream->synchronize();
  EXPECT_TRUE(ran);
}

TYPED_TEST_P(DeviceConformance, NoWorkIsLeakedAtShutdown) {
  const auto token = std::make_shared<int>(0);
  {
    const auto stream = this->device_->make_stream("leak", 1);
    for (int i = 0; i < 2000; ++i) stream->enqueue([token] { ++*token; });
  }
  EXPECT_EQ(token.use_count(), 1);
}

TYPED_TEST_P(DeviceConformance, MemoryIsZeroedAlignedAndWritable) {
  for (const std::size_t size_bytes : {std::size_t{1}, std::size_t{100}, std::size_t{5} << 20U}) {
    const auto memory = this->device_->allocate(size_bytes, MemorySpace::host);
    ASSERT_TRUE(memory.has_value());
    auto* bytes = memory.value().data;
    EXPECT_EQ(memory.value().size_bytes, size_bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(bytes) % 64, 0U);
    EXPECT_TRUE(
        std::all_of(bytes, bytes + size_bytes, [](std::byte b) { return b == std::byte{}; }));
    std::fill_n(bytes, size_bytes, std::byte{1});
  }
}

TYPED_TEST_P(DeviceConformance, WhatIsUploadedAndCopiedComesBackInTheDownload) {
  constexpr std::size_t count = 10'007;
  const auto floats = [this](MemorySpace space) {
    const auto memory = this->device_->allocate(count * sizeof(float), space);
    return std::span{reinterpret_cast<float*>(memory.value().data), count};
  };
  const auto space = this->device_->memory_space();
  const auto sent = floats(MemorySpace::host_pinned);
  const auto received = floats(MemorySpace::host_pinned);
  const auto first = floats(space);
  const auto second = floats(space);
  std::iota(sent.begin(), sent.end(), 1.0F);
  const auto stream = this->device_->make_stream("copies", 1);
  auto& kernels = this->device_->kernels();
  kernels.download(*stream, second.data(), received.data(), received.size_bytes());
  stream->synchronize();
  EXPECT_EQ(std::ranges::count(received, 0.0F), count) << "device memory comes zeroed";
  kernels.upload(*stream, sent.data(), first.data(), sent.size_bytes());
  kernels.copy(*stream, first.data(), second.data(), count);
  kernels.download(*stream, second.data(), received.data(), received.size_bytes());
  bool had_arrived = false;
  stream->enqueue([&] { had_arrived = std::ranges::equal(sent, received); });
  stream->synchronize();
  EXPECT_TRUE(had_arrived);
}

TYPED_TEST_P(DeviceConformance, CopiesOnStreamsOfTheirOwnKeepTheOrderThatEventsGive) {
  constexpr std::size_t count = 10'007;
  constexpr std::size_t round_count = 20;
  const auto floats = [this](MemorySpace space) {
    const auto memory = this->device_->allocate(count * sizeof(float), space);
    return std::span{reinterpret_cast<float*>(memory.value().data), count};
  };
  const auto work = this->device_->make_stream("work", 1);
  const auto out = this->device_->make_stream("out", 1);
  const auto in = this->device_->make_stream("in", 1);
  const auto worked = this->device_->make_event();
  const auto stored = this->device_->make_event();
  const auto fetched = this->device_->make_event();
  auto& kernels = this->device_->kernels();
  const auto ones = floats(MemorySpace::host_pinned);
  std::ranges::fill(ones, 1.0F);
  const auto one = floats(this->device_->memory_space());
  kernels.upload(*work, ones.data(), one.data(), one.size_bytes());
  // A sum that is counted up in one place of the device, kept in host memory, and brought back to
  // the other.
  const auto kept = floats(MemorySpace::host_pinned);
  const std::array sums{floats(this->device_->memory_space()),
                        floats(this->device_->memory_space())};
  for (std::size_t round = 0; round < round_count; ++round) {
    const auto sum = sums[round % 2];
    work->wait(*fetched);
    kernels.add(*work, sum.data(), one.data(), sum.data(), count);
    work->record(*worked);
    out->wait(*worked);
    kernels.download(*out, sum.data(), kept.data(), kept.size_bytes());
    out->record(*stored);
    in->wait(*stored);
    kernels.upload(*in, kept.data(), sums[(round + 1) % 2].data(), kept.size_bytes());
    in->record(*fetched);
  }
  in->synchronize();
  EXPECT_EQ(std::ranges::count(kept, static_cast<float>(round_count)), count);
}

TYPED_TEST_P(DeviceConformance, ThePeakIsAPositiveNumber) {
  EXPECT_GT(this->device_->measure_peak_flops(2, 1, Precision::fp32), 0.0);
}

REGISTER_TYPED_TEST_SUITE_P(DeviceConformance, AStreamRunsWorkInTheOrderOfEnqueueing,
                            SynchronizeOfAnEmptyStreamReturns,
                            AWaitHoldsBackWhatFollowsUntilTheRecordedWorkIsDone,
                            AnEventThatWasNeverRecordedHoldsNothingBack, NoWorkIsLeakedAtShutdown,
                            MemoryIsZeroedAlignedAndWritable,
                            WhatIsUploadedAndCopiedComesBackInTheDownload,
                            CopiesOnStreamsOfTheirOwnKeepTheOrderThatEventsGive,
                            ThePeakIsAPositiveNumber);

/// For devices whose streams are shared between threads.
template <class Backend>
class ThreadedDeviceConformance : public DeviceConformance<Backend> {};

TYPED_TEST_SUITE_P(ThreadedDeviceConformance);

TYPED_TEST_P(ThreadedDeviceConformance, EveryThreadMayEnqueueAndKeepsItsOwnOrder) {
  constexpr int thread_count = 4;
  constexpr int work_count = 2000;
  const auto stream = this->device_->make_stream("many", 1);
  std::vector<std::vector<int>> ran(thread_count);
  std::vector<std::thread> threads;
  for (int t = 0; t < thread_count; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < work_count; ++i) {
        stream->enqueue(
            [&of_thread = ran[static_cast<std::size_t>(t)], i] { of_thread.push_back(i); });
      }
    });
  }
  for (auto& thread : threads) thread.join();
  stream->synchronize();
  for (const auto& order : ran) {
    EXPECT_EQ(order.size(), std::size_t{work_count});
    EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  }
}

TYPED_TEST_P(ThreadedDeviceConformance, EnqueueingDoesNotRunTheWorkOnTheCaller) {
  const auto stream = this->device_->make_stream("elsewhere", 1);
  std::thread::id ran_on;
  stream->enqueue([&ran_on] { ran_on = std::this_thread::get_id(); });
  stream->synchronize();
  EXPECT_NE(ran_on, std::this_thread::get_id());
}

REGISTER_TYPED_TEST_SUITE_P(ThreadedDeviceConformance, EveryThreadMayEnqueueAndKeepsItsOwnOrder,
                            EnqueueingDoesNotRunTheWorkOnTheCaller);

}  // namespace troupe::stages
