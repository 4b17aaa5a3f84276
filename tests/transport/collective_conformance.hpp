// tests/transport/collective_conformance.hpp -- what every Collective must do, whatever carries it.
//
// A backend joins with a world of members, the last first to go:
//   make_group(size, wire)     the members of a group, 1 to 5; segments, if any, of at most 4 KiB
//   queue(rank)                the queue of one of them
//   post(change)               runs `change` where `progress_until` sees it; completions call it
//   progress()                 lets happen what can, if the world can tell
//   progress_until(condition)  waits
// `tests/transport/threaded_world.hpp` has all but the first for queues with threads.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/bf16.hpp"
#include "troupe/engine/random.hpp"
#include "troupe/transport/collective.hpp"

namespace troupe::transport {

using Members = std::vector<std::unique_ptr<Collective>>;
using Floats = std::vector<float>;
using Bytes = std::vector<std::uint8_t>;

inline constexpr std::array<std::uint32_t, 5> group_sizes{1, 2, 3, 4, 5};
inline constexpr std::array<std::size_t, 5> array_lengths{0, 1, 17, 5000, 40'000};

template <class Element>
BufferView view_of(std::vector<Element>& elements) {
  return {reinterpret_cast<std::byte*>(elements.data()), elements.size() * sizeof(Element),
          MemorySpace::host};
}

/// Floats of very different magnitudes, whose sum depends on the order of additions.
inline Floats random_floats(std::size_t count, std::uint64_t seed) {
  Random random{seed};
  Floats values(count);
  for (auto& value : values) {
    value = std::ldexp(static_cast<float>(random.below(1U << 20U)),
                       static_cast<int>(random.below(30)) - 30);
  }
  return values;
}

inline Bytes random_bytes(std::size_t count, std::uint64_t seed) {
  Random random{seed};
  Bytes bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random.below(256));
  return bytes;
}

/// `make(length, rank)` for every rank.
template <class Make>
auto one_each(std::uint32_t size, std::size_t length, Make make) {
  std::vector<decltype(make(length, 0))> arrays;
  for (std::uint32_t r = 0; r < size; ++r) arrays.push_back(make(length, r));
  return arrays;
}

inline Floats sum_in_rank_order(const std::vector<Floats>& values, WireFormat wire) {
  const auto travelled = [&](float value) {
    return wire == WireFormat::bf16 ? from_bf16(to_bf16(value)) : value;
  };
  auto sum = values[0];
  for (std::size_t i = 0; i < sum.size(); ++i) {
    sum[i] = travelled(sum[i]);
    for (std::size_t r = 1; r < values.size(); ++r) sum[i] += travelled(values[r][i]);
    sum[i] = travelled(sum[i]);
  }
  return sum;
}

/// Copies the part of `from` that `owner` owns to the same place of `to`.
template <class Element>
void copy_part(std::vector<Element>& from, std::vector<Element>& to, std::uint32_t size,
               std::uint32_t owner) {
  const auto part = part_of(view_of(from).size_bytes, size, owner);
  if (part.size_bytes == 0) return;
  std::memcpy(view_of(to).data + part.begin_bytes, view_of(from).data + part.begin_bytes,
              part.size_bytes);
}

template <class World>
class CollectiveConformance : public testing::Test {
protected:
  /// A completion that stores its code in `slot` and rejects a second call.
  CollectiveDone into(std::optional<Errc>& slot) {
    return [this, &slot](Errc code) {
      world_.post([&] {
        EXPECT_FALSE(slot.has_value()) << "a completion ran twice";
        slot = code;
      });
    };
  }

  void wait_for(const std::vector<std::optional<Errc>>& codes) {
    world_.progress_until([&] {
      return std::ranges::all_of(codes, [](const auto& code) { return code.has_value(); });
    });
  }

  /// Has every member begin `operation(member, queue, rank, done)`, the last rank first.
  template <class Operation>
  void run(Members& members, Operation operation) {
    std::vector<std::optional<Errc>> codes(members.size());
    for (auto r = static_cast<std::uint32_t>(members.size()); r-- > 0;)
      operation(*members[r], world_.queue(r), r, into(codes[r]));
    wait_for(codes);
    for (const auto& code : codes) EXPECT_EQ(code, Errc::none);
  }

  /// Calls `check(size, length, members, wire)` for all sizes and lengths.
  template <class Check>
  void for_every_size_and_length(Check check) {
    for (const auto size : group_sizes) {
      for (const auto wire : {WireFormat::fp32, WireFormat::bf16}) {
        auto members = world_.make_group(size, wire);
        for (const auto length : array_lengths) {
          SCOPED_TRACE(testing::Message() << "size=" << size << " length=" << length << " wire="
                                          << wire_format_names[static_cast<std::size_t>(wire)]);
          check(size, length, members, wire);
        }
      }
    }
  }

  World world_;
};
TYPED_TEST_SUITE_P(CollectiveConformance);

TYPED_TEST_P(CollectiveConformance, AllReduceAddsInRankOrderOnEveryMember) {
  this->for_every_size_and_length([&](auto size, auto length, auto& members, auto wire) {
    auto values = one_each(size, length, random_floats);
    const auto expected = sum_in_rank_order(values, wire);
    this->run(members, [&](auto& member, auto& queue, auto r, auto done) {
      member.all_reduce(queue, view_of(values[r]), std::move(done));
    });
    for (std::uint32_t r = 0; r < size; ++r) EXPECT_EQ(values[r], expected) << "member " << r;
  });
}

TYPED_TEST_P(CollectiveConformance, ReduceScatterAddsTheOwnPartAndLeavesTheOthers) {
  this->for_every_size_and_length([&](auto size, auto length, auto& members, auto wire) {
    auto values = one_each(size, length, random_floats);
    auto sum = sum_in_rank_order(values, wire);
    auto expected = values;
    for (std::uint32_t r = 0; r < size; ++r) copy_part(sum, expected[r], size, r);
    this->run(members, [&](auto& member, auto& queue, auto r, auto done) {
      member.reduce_scatter(queue, view_of(values[r]), std::move(done));
    });
    for (std::uint32_t r = 0; r < size; ++r) EXPECT_EQ(values[r], expected[r]) << "member " << r;
  });
}

TYPED_TEST_P(CollectiveConformance, ReduceAddsTheOthersValuesAtAnyRootAndLeavesThem) {
  this->for_every_size_and_length([&](auto size, auto length, auto& members, auto wire) {
    for (std::uint32_t root = 0; size > 1 && root < size; ++root) {
      auto values = one_each(size, length, random_floats);
      auto expected = values;
      auto addends = values;
      addends.erase(addends.begin() + root);
      expected[root] = sum_in_rank_order(addends, wire);
      this->run(members, [&](auto& member, auto& queue, auto r, auto done) {
        member.reduce(queue, view_of(values[r]), root, std::move(done));
      });
      for (std::uint32_t r = 0; r < size; ++r)
        EXPECT_EQ(values[r], expected[r]) << "member " << r << ", root " << root;
    }
  });
}

TYPED_TEST_P(CollectiveConformance, AllGatherBringsEveryPartFromItsOwner) {
  this->for_every_size_and_length([&](auto size, auto length, auto& members, auto /*wire*/) {
    auto bytes = one_each(size, length, random_bytes);
    auto expected = bytes[0];
    for (std::uint32_t r = 0; r < size; ++r) copy_part(bytes[r], expected, size, r);
    this->run(members, [&](auto& member, auto& queue, auto r, auto done) {
      member.all_gather(queue, view_of(bytes[r]), std::move(done));
    });
    for (std::uint32_t r = 0; r < size; ++r) EXPECT_EQ(bytes[r], expected) << "member " << r;
  });
}

TYPED_TEST_P(CollectiveConformance, BroadcastBringsTheBytesOfAnyRoot) {
  this->for_every_size_and_length([&](auto size, auto length, auto& members, auto /*wire*/) {
    for (std::uint32_t root = 0; root < size; ++root) {
      auto bytes = one_each(size, length, random_bytes);
      const auto expected = bytes[root];
      this->run(members, [&](auto& member, auto& queue, auto r, auto done) {
        member.broadcast(queue, view_of(bytes[r]), root, std::move(done));
      });
      for (std::uint32_t r = 0; r < size; ++r)
        EXPECT_EQ(bytes[r], expected) << "member " << r << ", root " << root;
    }
  });
}

TYPED_TEST_P(CollectiveConformance, ABarrierWaitsForWhoeverComesLast) {
  for (const auto size : group_sizes) {
    for (std::uint32_t last = 0; last < size; ++last) {
      auto members = this->world_.make_group(size, WireFormat::fp32);
      std::vector<std::optional<Errc>> codes(size);
      bool has_last_come = false;
      const auto enter = [&](std::uint32_t r) {
        members[r]->barrier(this->world_.queue(r), [&, r](Errc code) {
          this->world_.post([&, r, code] {
            EXPECT_TRUE(has_last_come) << "member " << r << " did not wait";
            codes[r] = code;
          });
        });
      };
      for (std::uint32_t r = 0; r < size; ++r) {
        if (r != last) enter(r);
      }
      this->world_.progress();
      this->world_.post([&] { has_last_come = true; });
      enter(last);
      this->wait_for(codes);
      for (const auto& code : codes) EXPECT_EQ(code, Errc::none);
    }
  }
}

TYPED_TEST_P(CollectiveConformance, AnOperationStartsAfterTheWorkEnqueuedBefore) {
  auto members = this->world_.make_group(3, WireFormat::fp32);
  std::vector<Floats> values(3, Floats(5000));
  this->run(members, [&](auto& member, auto& queue, auto r, auto done) {
    queue.enqueue([&array = values[r]] { std::iota(array.begin(), array.end(), 1.0F); });
    member.all_reduce(queue, view_of(values[r]), std::move(done));
  });
  for (const auto& array : values) {
    for (std::size_t i = 0; i < array.size(); ++i)
      ASSERT_EQ(array[i], 3.0F * static_cast<float>(i + 1));
  }
}

TYPED_TEST_P(CollectiveConformance, AMemberMayRunAhead) {
  constexpr std::uint32_t round_count = 5;
  constexpr std::size_t length = 3000;
  for (const std::uint32_t size : {2U, 3U}) {
    auto members = this->world_.make_group(size, WireFormat::fp32);
    std::vector<std::vector<Floats>> sums, gathered, expected;
    for (std::uint32_t i = 0; i < round_count; ++i) {
      const auto make = [&](std::size_t n, std::uint64_t r) {
        return random_floats(n, 10 * i + r);
      };
      sums.push_back(one_each(size, length + i, make));
      gathered.push_back(one_each(size, length + i, make));
      expected.push_back({sum_in_rank_order(sums[i], WireFormat::fp32), gathered[i][0]});
      for (std::uint32_t r = 0; r < size; ++r) copy_part(gathered[i][r], expected[i][1], size, r);
    }
    std::vector<std::optional<Errc>> codes(std::size_t{2} * size * round_count);
    auto code = codes.begin();
    for (std::uint32_t r = 0; r < size; ++r) {
      for (std::uint32_t i = 0; i < round_count; ++i) {
        auto& queue = this->world_.queue(r);
        members[r]->all_reduce(queue, view_of(sums[i][r]), this->into(*code++));
        members[r]->all_gather(queue, view_of(gathered[i][r]), this->into(*code++));
      }
      this->world_.progress();
    }
    this->wait_for(codes);
    for (std::uint32_t i = 0; i < round_count; ++i) {
      for (std::uint32_t r = 0; r < size; ++r) {
        EXPECT_EQ(sums[i][r], expected[i][0]) << "round " << i << ", member " << r;
        EXPECT_EQ(gathered[i][r], expected[i][1]) << "round " << i << ", member " << r;
      }
    }
  }
}

TYPED_TEST_P(CollectiveConformance, CloseCancelsWhoWaitsAndWhoComesLater) {
  Floats values(100, 1.0F);
  std::vector<std::optional<Errc>> codes(7);
  auto members = this->world_.make_group(2, WireFormat::fp32);
  auto& queue = this->world_.queue(0);
  members[0]->all_reduce(queue, view_of(values), this->into(codes[0]));
  members[0]->reduce_scatter(queue, view_of(values), this->into(codes[1]));
  members[0]->all_gather(queue, view_of(values), this->into(codes[2]));
  members[0]->broadcast(queue, view_of(values), 1, this->into(codes[3]));
  members[0]->barrier(queue, this->into(codes[4]));
  members[0]->reduce(queue, view_of(values), 0, this->into(codes[6]));
  this->world_.progress();
  members[1]->close();
  members[1]->close();
  members[1]->all_reduce(this->world_.queue(1), view_of(values), this->into(codes[5]));
  this->wait_for(codes);
  for (const auto& code : codes) EXPECT_EQ(code, Errc::cancelled);
}

TYPED_TEST_P(CollectiveConformance, CloseAmidOperationsEndsEachOnce) {
  constexpr std::uint32_t size = 3;
  for (std::uint32_t round = 0; round < 20; ++round) {
    std::vector<std::optional<Errc>> codes(std::size_t{4} * size);
    std::vector<std::vector<Floats>> values;
    auto members = this->world_.make_group(size, WireFormat::fp32);
    for (std::uint32_t i = 0; i < 4; ++i) {
      values.push_back(one_each(size, 3000, random_floats));
      for (std::uint32_t r = 0; r < size; ++r) {
        members[r]->all_reduce(this->world_.queue(r), view_of(values[i][r]),
                               this->into(codes[i * size + r]));
      }
    }
    this->world_.progress_until([&] { return codes[round % size].has_value(); });
    members[round % size]->close();
    this->wait_for(codes);
    for (const auto& code : codes) EXPECT_TRUE(code == Errc::none || code == Errc::cancelled);
  }
}

REGISTER_TYPED_TEST_SUITE_P(CollectiveConformance, AllReduceAddsInRankOrderOnEveryMember,
                            ReduceScatterAddsTheOwnPartAndLeavesTheOthers,
                            ReduceAddsTheOthersValuesAtAnyRootAndLeavesThem,
                            AllGatherBringsEveryPartFromItsOwner, BroadcastBringsTheBytesOfAnyRoot,
                            ABarrierWaitsForWhoeverComesLast,
                            AnOperationStartsAfterTheWorkEnqueuedBefore, AMemberMayRunAhead,
                            CloseCancelsWhoWaitsAndWhoComesLater, CloseAmidOperationsEndsEachOnce);

}  // namespace troupe::transport
