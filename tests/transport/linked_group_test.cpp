#include "troupe/transport/linked_group.hpp"

#include "troupe/transport/in_process.hpp"

#include "../scope.hpp"
#include "seeded_group_world.hpp"
#include "threaded_world.hpp"

namespace troupe::transport {

template <std::uint64_t seed>
class WorldOfSeed : public SeededGroupWorld {
public:
  WorldOfSeed() : SeededGroupWorld{seed} {}
};
using SeededWorlds = testing::Types<WorldOfSeed<1>, WorldOfSeed<2>, WorldOfSeed<3>, WorldOfSeed<4>,
                                    WorldOfSeed<5>, WorldOfSeed<6>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Seeded, CollectiveConformance, SeededWorlds);

/// A completion that calls `done` with the buffer that was posted and the code that `settle` makes
/// of the delivery.
template <class Settle>
TransferDone giving_back(BufferView posted, TransferDone done, Settle settle) {
  return
      [posted, settle, done = std::make_unique<TransferDone>(std::move(done))](Delivery delivery) {
        (*done)({Buffer{posted}, settle(delivery)});
      };
}

/// Makes of a link that swaps buffers one that copies and gives back what was posted.
class CopyingLink final : public Link {
public:
  explicit CopyingLink(std::unique_ptr<Link> link) : link_{std::move(link)} {}

  void post_send(Tag tag, Buffer source, TransferDone done) override {
    const auto posted = source.view();
    link_->post_send(
        tag, std::move(source),
        giving_back(posted, std::move(done), [](auto& delivery) { return delivery.code; }));
  }
  void post_receive(Tag tag, Buffer target, TransferDone done) override {
    const auto posted = target.view();
    const auto copy = [posted](const Delivery& delivery) {
      if (delivery.code == Errc::none)
        std::memcpy(posted.data, delivery.buffer.data(), posted.size_bytes);
      return delivery.code;
    };
    link_->post_receive(tag, std::move(target), giving_back(posted, std::move(done), copy));
  }
  void close() override { link_->close(); }

private:
  std::unique_ptr<Link> link_;
};

class ThreadedLinkedWorld : public ThreadedWorld {
public:
  static Members make_group(std::uint32_t size, WireFormat wire) {
    return make_members(size, small_limits, wire, [](auto, auto) -> LinkPair {
      auto [left, right] = make_in_process_link();
      return {std::make_unique<CopyingLink>(std::move(left)),
              std::make_unique<CopyingLink>(std::move(right))};
    });
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(Threaded, CollectiveConformance, ThreadedLinkedWorld);

// -- the same bits as the in-process group --------------------------------------------------------

/// An operation drawn at random, and every member's array.
struct Drawn {
  std::uint64_t kind = 0;
  std::uint32_t root = 0;
  std::vector<Floats> arrays;
};

std::vector<Drawn> draw_operations(Random& random, std::uint32_t size, std::uint64_t count) {
  std::vector<Drawn> operations;
  for (std::uint64_t i = 0; i < count; ++i) {
    auto& drawn = operations.emplace_back();
    drawn.kind = random.below(size > 1 ? 6 : 5);
    drawn.root = static_cast<std::uint32_t>(random.below(size));
    const auto length = random.below(2) == 0 ? random.below(40) : random.below(1500);
    for (std::uint32_t r = 0; r < size; ++r)
      drawn.arrays.push_back(random_floats(length, random.next()));
  }
  return operations;
}

void begin(Collective& member, WorkQueue& queue, Drawn& drawn, CollectiveDone done) {
  const auto array = view_of(drawn.arrays[member.rank()]);
  switch (drawn.kind) {
    case 0:
      return member.all_reduce(queue, array, std::move(done));
    case 1:
      return member.reduce_scatter(queue, array, std::move(done));
    case 2:
      return member.all_gather(queue, array, std::move(done));
    case 3:
      return member.broadcast(queue, array, drawn.root, std::move(done));
    case 4:
      return member.barrier(queue, std::move(done));
    default:
      return member.reduce(queue, array, drawn.root, std::move(done));
  }
}

LinkedLimits draw_limits(Random& random) {
  return {.segment_bytes = 64 * (1 + random.below(20)),
          .segments_in_flight = static_cast<std::uint32_t>(1 + random.below(3)),
          .operations_in_flight = static_cast<std::uint32_t>(1 + random.below(3))};
}

WireFormat draw_wire(Random& random) {
  return random.below(2) == 0 ? WireFormat::fp32 : WireFormat::bf16;
}

/// Has every member do all operations; in between happens what the seed says.
void do_all(SeededGroupWorld& world, Members& members, std::vector<Drawn>& operations) {
  std::vector<std::size_t> begun(members.size(), 0);
  std::size_t left = members.size() * operations.size();
  std::size_t left_to_begin = left;
  while (left_to_begin > 0) {
    const auto r = world.random().below(members.size());
    if (begun[r] < operations.size()) {
      begin(*members[r], world.queue(static_cast<std::uint32_t>(r)), operations[begun[r]++],
            [&left](Errc code) {
              EXPECT_EQ(code, Errc::none);
              --left;
            });
      --left_to_begin;
    }
    for (auto steps = world.random().below(10); steps > 0; --steps) world.step();
  }
  world.progress_until([&] { return left == 0; });
}

TEST(LinkedGroup, GivesTheBitsOfTheInProcessGroupWhateverHappensWhen) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    SeededGroupWorld world{seed};
    const auto size = static_cast<std::uint32_t>(1 + world.random().below(5));
    auto linked = draw_operations(world.random(), size, 1 + world.random().below(6));
    auto in_process = linked;
    const auto limits = draw_limits(world.random());
    const auto wire = draw_wire(world.random());
    auto linked_members =
        make_members(size, limits, wire, [&](auto, auto) { return world.network().make_link(); });
    auto in_process_members = make_in_process_group(size, wire);
    do_all(world, linked_members, linked);
    do_all(world, in_process_members, in_process);
    for (std::size_t i = 0; i < linked.size(); ++i)
      ASSERT_EQ(linked[i].arrays, in_process[i].arrays) << "operation " << i;
    if (testing::Test::HasFailure()) return;
  }
}

// -- failure --------------------------------------------------------------------------------------

/// A link that can be lost: whoever sets `is_lost` and closes it ends everything pending, and what
/// is posted later, with `peer_unreachable`.
class LosableLink final : public Link {
  auto code_of() {
    return [is_lost = is_lost_](const Delivery& delivery) {
      return delivery.code == Errc::cancelled && *is_lost ? Errc::peer_unreachable : delivery.code;
    };
  }

public:
  LosableLink(std::unique_ptr<Link> link, std::shared_ptr<bool> is_lost)
      : link_{std::move(link)}, is_lost_{std::move(is_lost)} {}

  void post_send(Tag tag, Buffer source, TransferDone done) override {
    const auto posted = source.view();
    link_->post_send(tag, std::move(source), giving_back(posted, std::move(done), code_of()));
  }
  void post_receive(Tag tag, Buffer target, TransferDone done) override {
    const auto posted = target.view();
    link_->post_receive(tag, std::move(target), giving_back(posted, std::move(done), code_of()));
  }
  void close() override { link_->close(); }

private:
  std::unique_ptr<Link> link_;
  std::shared_ptr<bool> is_lost_;  ///< Of both ends.
};

/// Members that do three operations, and lose the link between two of them on the way.
class LossyRun {
public:
  explicit LossyRun(std::uint64_t seed) : world_{seed}, size_{draw(2, 4)} {
    left_ = draw(0, size_ - 1);
    right_ = (left_ + draw(1, size_ - 1)) % size_;
    operations_ = draw_operations(world_.random(), size_, 3);
    expected_ = operations_;
    const auto limits = draw_limits(world_.random());
    const auto wire = draw_wire(world_.random());
    auto reference = make_in_process_group(size_, wire);
    do_all(world_, reference, expected_);
    members_ = make_members(size_, limits, wire, [&](auto p, auto q) { return make_link(p, q); });
    codes_.resize(size_, std::vector<std::optional<Errc>>(operations_.size()));
    for (std::uint32_t r = 0; r < size_; ++r) {
      for (std::size_t i = 0; i < operations_.size(); ++i) begin_operation(r, i);
    }
  }

  /// Returns whether something happened in each of `count` steps.
  bool step(std::size_t count) {
    for (; count > 0; --count) {
      if (!world_.step()) return false;
    }
    return true;
  }

  void lose_and_finish() {
    *is_lost_ = true;
    lossy_end_->close();
    world_.progress();
  }

  /// One of the two that lost each other says so; the others may hear of it from those first. They
  /// may even complete a first barrier, but not the second.
  void expect_that_all_members_fail_from_now_on() {
    failures_.resize(size_);
    for (std::uint32_t round = 0; round < 2; ++round) {
      for (std::uint32_t r = 0; r < size_; ++r)
        members_[r]->barrier(world_.queue(r), [&code = failures_[r]](Errc c) { code = c; });
      world_.progress();
    }
    for (std::uint32_t r = 0; r < size_; ++r) {
      const bool may_say_so = r == left_ || r == right_;
      EXPECT_TRUE(failures_[r] == Errc::cancelled
                  || (may_say_so && failures_[r] == Errc::peer_unreachable))
          << "member " << r;
    }
    EXPECT_TRUE(failures_[left_] == Errc::peer_unreachable
                || failures_[right_] == Errc::peer_unreachable);
    std::optional<Errc> late;
    members_[left_]->barrier(world_.queue(left_), [&](Errc code) { late = code; });
    EXPECT_EQ(late, failures_[left_]) << "at once";
  }

  void expect_that_every_operation_ended_once_and_left_its_array_alone() const {
    for (std::uint32_t r = 0; r < size_; ++r) {
      for (std::size_t i = 0; i < operations_.size(); ++i) {
        SCOPED_TRACE(testing::Message() << "operation " << i << " of member " << r);
        ASSERT_TRUE(codes_[r][i]) << "never ended";
        EXPECT_TRUE(codes_[r][i] == Errc::none || codes_[r][i] == failures_[r])
            << to_string(*codes_[r][i]);
        const auto& array = operations_[i].arrays[r];
        EXPECT_EQ(array, Floats(array.size(), poison)) << "was written to after it had ended";
      }
    }
  }

private:
  static constexpr float poison = 1e30F;

  std::uint32_t draw(std::uint32_t least, std::uint32_t most) {
    return least + static_cast<std::uint32_t>(world_.random().below(most - least + 1));
  }

  LinkPair make_link(std::uint32_t p, std::uint32_t q) {
    auto [end_p, end_q] = world_.network().make_link();
    if (std::minmax(p, q) != std::minmax(left_, right_))
      return {std::move(end_p), std::move(end_q)};
    auto lossy_p = std::make_unique<LosableLink>(std::move(end_p), is_lost_);
    lossy_end_ = lossy_p.get();
    return {std::move(lossy_p), std::make_unique<LosableLink>(std::move(end_q), is_lost_)};
  }

  /// When the operation ends, checks its result and overwrites it: what is sent from there later is
  /// wrong, and what is received there is seen.
  void begin_operation(std::uint32_t r, std::size_t i) {
    begin(*members_[r], world_.queue(r), operations_[i], [this, r, i](Errc code) {
      EXPECT_FALSE(codes_[r][i]) << "operation " << i << " of member " << r << " ended twice";
      codes_[r][i] = code;
      auto& array = operations_[i].arrays[r];
      if (code == Errc::none) {
        EXPECT_EQ(array, expected_[i].arrays[r]) << "operation " << i << " of member " << r;
      }
      std::ranges::fill(array, poison);
    });
  }

  SeededGroupWorld world_;
  std::uint32_t size_;
  std::uint32_t left_ = 0;
  std::uint32_t right_ = 0;
  std::shared_ptr<bool> is_lost_ = std::make_shared<bool>(false);
  Link* lossy_end_ = nullptr;
  std::vector<Drawn> operations_, expected_;
  std::vector<std::vector<std::optional<Errc>>> codes_;  ///< By member and operation.
  std::vector<std::optional<Errc>> failures_;            ///< By member.
  Members members_;
};

TEST(LinkedGroup, ALinkLostAtAnyPointEndsEveryOperationOnceAndLeavesItsArrayAlone) {
  for (std::uint64_t seed = 1; seed <= scope(25U, 5U); ++seed) {
    bool is_over = false;
    for (std::size_t steps = 0; !is_over; ++steps) {
      SCOPED_TRACE(testing::Message() << "seed=" << seed << " steps=" << steps);
      LossyRun run{seed};
      is_over = !run.step(steps);
      run.lose_and_finish();
      run.expect_that_all_members_fail_from_now_on();
      run.expect_that_every_operation_ended_once_and_left_its_array_alone();
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(LinkedGroup, MembersThatDisagreeAboutTheSizeAreToldSo) {
  SeededGroupWorld world{1};
  auto members = world.make_group(2, WireFormat::fp32);
  Floats left(100), right(200);
  std::optional<Errc> left_code, right_code;
  members[0]->all_reduce(world.queue(0), view_of(left), [&](Errc code) { left_code = code; });
  members[1]->all_reduce(world.queue(1), view_of(right), [&](Errc code) { right_code = code; });
  world.progress();
  EXPECT_EQ(left_code, Errc::message_truncated);
  EXPECT_EQ(right_code, Errc::message_truncated);
}

TEST(LinkedGroup, AMemberThatGoesCancelsTheOthers) {
  SeededGroupWorld world{1};
  auto members = world.make_group(3, WireFormat::fp32);
  Floats values(5000);
  std::optional<Errc> code;
  members[0]->all_reduce(world.queue(0), view_of(values), [&](Errc c) { code = c; });
  world.progress();
  members[2].reset();
  world.progress();
  EXPECT_EQ(code, Errc::cancelled);
}

TEST(LinkedGroup, StagingInBf16IsHalfASegmentOfEveryMemberAndOneOfEachOtherPart) {
  EXPECT_EQ(linked_staging_bytes(
                4, {.segment_bytes = 1024, .segments_in_flight = 5, .operations_in_flight = 2},
                WireFormat::bf16),
            std::size_t{512} * (4 + 3) * 5 * 2);
}

TEST(LinkedGroup, StagingIsASegmentOfEveryOtherMemberForEachInFlight) {
  EXPECT_EQ(linked_staging_bytes(1, {}), 0U);
  EXPECT_EQ(linked_staging_bytes(
                4, {.segment_bytes = 1000, .segments_in_flight = 5, .operations_in_flight = 2}),
            std::size_t{1000} * 3 * 5 * 2);
}

/// A link that counts what is sent over it.
class CountingLink final : public Link {
public:
  CountingLink(std::unique_ptr<Link> link, std::size_t& sent_bytes)
      : link_{std::move(link)}, sent_bytes_{sent_bytes} {}

  void post_send(Tag tag, Buffer source, TransferDone done) override {
    sent_bytes_ += source.size_bytes();
    link_->post_send(tag, std::move(source), std::move(done));
  }
  void post_receive(Tag tag, Buffer target, TransferDone done) override {
    link_->post_receive(tag, std::move(target), std::move(done));
  }
  void close() override { link_->close(); }

private:
  std::unique_ptr<Link> link_;
  std::size_t& sent_bytes_;
};

TEST(LinkedGroup, InBf16SumsTravelInHalfTheBytesAndNothingElseDoes) {
  constexpr std::size_t length = 10'000;
  constexpr std::uint32_t size = 4;
  const auto bytes_of = [&](WireFormat wire, auto begin_one) {
    SeededGroupWorld world{7};
    std::size_t sent_bytes = 0;
    auto members = make_members(size, small_limits, wire, [&](auto, auto) -> LinkPair {
      auto [left, right] = world.network().make_link();
      return {std::make_unique<CountingLink>(std::move(left), sent_bytes),
              std::make_unique<CountingLink>(std::move(right), sent_bytes)};
    });
    std::vector<Floats> arrays(size, Floats(length));
    std::uint32_t over_count = 0;
    for (std::uint32_t r = 0; r < size; ++r) {
      begin_one(*members[r], world.queue(r), view_of(arrays[r]), [&](Errc) { ++over_count; });
    }
    world.progress_until([&] { return over_count == size; });
    return sent_bytes;
  };
  const auto all_reduce = [](Collective& member, auto& queue, auto array, auto done) {
    member.all_reduce(queue, array, std::move(done));
  };
  const auto reduce_scatter = [](Collective& member, auto& queue, auto array, auto done) {
    member.reduce_scatter(queue, array, std::move(done));
  };
  const auto all_gather = [](Collective& member, auto& queue, auto array, auto done) {
    member.all_gather(queue, array, std::move(done));
  };
  const auto reduce = [](Collective& member, auto& queue, auto array, auto done) {
    member.reduce(queue, array, 1, std::move(done));
  };
  constexpr std::size_t once_around = length * sizeof(float) * (size - 1);
  EXPECT_EQ(bytes_of(WireFormat::fp32, all_reduce), 2 * once_around);
  EXPECT_EQ(bytes_of(WireFormat::bf16, all_reduce), once_around);
  EXPECT_EQ(bytes_of(WireFormat::fp32, reduce_scatter), once_around);
  EXPECT_EQ(bytes_of(WireFormat::bf16, reduce_scatter), once_around / 2);
  EXPECT_EQ(bytes_of(WireFormat::fp32, reduce), once_around);
  EXPECT_EQ(bytes_of(WireFormat::bf16, reduce), once_around / 2);
  EXPECT_EQ(bytes_of(WireFormat::fp32, all_gather), once_around);
  EXPECT_EQ(bytes_of(WireFormat::bf16, all_gather), once_around);
}

TEST(LinkedGroupDeathTest, LinksThatSwapBuffersAbort) {
  const auto swap = [] {
    SeededGroupWorld world{1};
    auto members = make_members(2, small_limits, WireFormat::fp32,
                                [](auto, auto) { return make_in_process_link(); });
    std::vector<Floats> values(2, Floats(100));
    for (std::uint32_t r = 0; r < 2; ++r)
      members[r]->all_reduce(world.queue(r), view_of(values[r]), [](Errc) {});
    world.progress();
  };
  EXPECT_DEATH(swap(), "delivery.buffer.data");
}

}  // namespace troupe::transport
