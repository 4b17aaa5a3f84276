// tests/transport/collective_conformance.hpp -- what every Collective must do, whatever carries it.
//
// A backend joins with a world: `make_group(size)` returns members, `queue(rank)` the queue of one,
// and `progress_until(condition)` waits.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/random.hpp"
#include "troupe/transport/collective.hpp"

namespace troupe::transport {

template <class World>
class CollectiveConformance : public testing::Test {
protected:
  World world_;
};
TYPED_TEST_SUITE_P(CollectiveConformance);

inline BufferView view_of(std::vector<float>& values) {
  return {reinterpret_cast<std::byte*>(values.data()), values.size() * sizeof(float),
          MemorySpace::host};
}

inline std::vector<float> random_floats(std::size_t count, std::uint64_t seed) {
  Random random{seed};
  std::vector<float> values(count);
  for (auto& value : values) {
    value = std::ldexp(static_cast<float>(random.below(1U << 20U)),
                       static_cast<int>(random.below(30)) - 30);
  }
  return values;
}

TYPED_TEST_P(CollectiveConformance, AllReduceAddsInRankOrderOnEveryMember) {
  for (const std::uint32_t size : {1U, 2U, 3U, 4U}) {
    for (const std::size_t count : {std::size_t{1}, std::size_t{17}, std::size_t{5000}}) {
      SCOPED_TRACE(testing::Message() << "size=" << size << " count=" << count);
      auto members = this->world_.make_group(size);
      std::vector<std::vector<float>> values;
      for (std::uint32_t r = 0; r < size; ++r) values.push_back(random_floats(count, r));
      auto expected = values[0];
      for (std::uint32_t r = 1; r < size; ++r) {
        for (std::size_t i = 0; i < count; ++i) expected[i] += values[r][i];
      }
      std::vector<std::optional<Errc>> done(size);
      for (std::uint32_t r = size; r-- > 0;) {
        members[r]->all_reduce(this->world_.queue(r), view_of(values[r]),
                               [&slot = done[r]](Errc code) { slot = code; });
      }
      this->world_.progress_until([&] {
        return std::ranges::all_of(done, [](const auto& slot) { return slot.has_value(); });
      });
      for (std::uint32_t r = 0; r < size; ++r) {
        EXPECT_EQ(*done[r], Errc::none);
        EXPECT_EQ(values[r], expected) << "the same bits, member " << r;
      }
    }
  }
}

TYPED_TEST_P(CollectiveConformance, AMemberMayRunAhead) {
  constexpr std::uint32_t operation_count = 5;
  auto members = this->world_.make_group(2);
  std::vector<std::vector<float>> left, right;
  std::uint32_t done_count = 0;
  for (std::uint32_t i = 0; i < operation_count; ++i) {
    left.push_back({static_cast<float>(i), 1.0F});
    right.push_back({static_cast<float>(10 * i), 2.0F});
  }
  const auto post = [&](std::uint32_t rank, std::vector<float>& values) {
    members[rank]->all_reduce(this->world_.queue(rank), view_of(values),
                              [this, &done_count](Errc) { this->world_.count(done_count); });
  };
  for (auto& values : left) post(0, values);
  for (auto& values : right) post(1, values);
  this->world_.progress_until([&] { return done_count == 2 * operation_count; });
  for (std::uint32_t i = 0; i < operation_count; ++i) {
    EXPECT_EQ(left[i], (std::vector<float>{static_cast<float>(11 * i), 3.0F}));
    EXPECT_EQ(right[i], left[i]);
  }
}

TYPED_TEST_P(CollectiveConformance, CloseCancelsWhoWaitsAndWhoComesLater) {
  auto members = this->world_.make_group(2);
  std::vector<float> values{1.0F};
  std::optional<Errc> waiting, late;
  members[0]->all_reduce(this->world_.queue(0), view_of(values),
                         [&](Errc code) { waiting = code; });
  members[1]->close();
  members[1]->close();
  members[1]->all_reduce(this->world_.queue(1), view_of(values), [&](Errc code) { late = code; });
  this->world_.progress_until([&] { return waiting && late; });
  EXPECT_EQ(*waiting, Errc::cancelled);
  EXPECT_EQ(*late, Errc::cancelled);
  EXPECT_EQ(values[0], 1.0F);
}

REGISTER_TYPED_TEST_SUITE_P(CollectiveConformance, AllReduceAddsInRankOrderOnEveryMember,
                            AMemberMayRunAhead, CloseCancelsWhoWaitsAndWhoComesLater);

}  // namespace troupe::transport
