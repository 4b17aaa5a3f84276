#include "troupe/transport/linked_group.hpp"

#include <algorithm>
#include <mutex>

#include "collective_request.hpp"
#include "rank_order_sum.hpp"

namespace troupe::transport {

namespace {

/// The sum follows less at once. Of more, the peer is told before, and posts its receive meanwhile.
constexpr std::size_t answered_max_bytes = std::size_t{64} << 10U;

/// Memory in cache lines, so that every segment begins at one.
struct alignas(64) Line {
  std::byte bytes[64];
};

std::byte* bytes_of(std::vector<Line>& lines) {
  return reinterpret_cast<std::byte*>(lines.data());
}

/// Carries some segments of one part of an operation's array, one after the other: the lane's
/// first, the one `segments_in_flight` further on, and so on. In the first round this member gives
/// the segment to the part's owner, or, being the owner, gets it from the others; in the second it
/// takes the segment from the owner, or, being the owner, sends it to the others.
///
/// A lane with pending transfers is moved by nobody; the last of them hands it back.
struct Lane {
  enum class Next : std::uint8_t { first_round, second_round, landing };

  std::uint32_t part = 0;
  std::uint32_t first_segment = 0;
  std::vector<std::byte*> staging;  ///< By member: where the owner gets addends. Else empty.
  std::byte* packed = nullptr;      ///< Where what is added travels in bf16: the segment as such.

  std::uint32_t segment = 0;
  Next next = Next::first_round;
  std::uint32_t pending_count = 0;

  // Of an addition; kept for their memory.
  std::vector<const float*> sources;
  std::vector<const std::uint16_t*> packed_sources;
};

std::uint16_t* halves(std::byte* bytes) {
  return reinterpret_cast<std::uint16_t*>(bytes);
}
float* floats(const BufferView& view) {
  return reinterpret_cast<float*>(view.data);
}

/// An operation that has not begun.
struct Waiting {
  WorkQueue* queue = nullptr;
  CollectiveRequest request;
  CollectiveDone done;
};

/// An operation under way. Only its queue moves it, and only its queue touches `busy_lane_count`.
struct Operation {
  bool in_use = false;
  std::uint64_t number = 0;
  WorkQueue* queue = nullptr;
  CollectiveRequest request;
  CollectiveDone done;

  std::vector<Lane> lanes;
  std::vector<Line> tokens;  ///< The array of a barrier: a line for each member.
  std::size_t busy_lane_count = 0;
  std::vector<Lane*> ready;   ///< Lanes without pending transfers, not yet moved on.
  std::vector<Lane*> moving;  ///< Those which the queue is moving on now.
};

/// A member of a group, kept alive by the work and the transfers that refer to it.
///
/// A transfer's completion only counts down; the last one of a lane enqueues `move_on`, which posts
/// what comes next: links are never called from a completion. A part's owner and the others take
/// its segments in the same order, and operations too, so the oldest segment that somebody lacks
/// never waits for a younger one.
class Member : public std::enable_shared_from_this<Member> {
public:
  Member(std::uint32_t rank, std::vector<std::unique_ptr<Link>> links, const LinkedLimits& limits,
         WireFormat wire)
      : rank_{rank},
        size_{static_cast<std::uint32_t>(links.size())},
        limits_{limits},
        wire_{wire},
        links_{std::move(links)},
        staging_((linked_staging_bytes(size_, limits, wire) + sizeof(Line) - 1) / sizeof(Line)),
        operations_(limits.operations_in_flight) {
    auto* free_staging = bytes_of(staging_);
    for (auto& operation : operations_) {
      operation.tokens.resize(size_);
      for (std::uint32_t p = 0; p < size_; ++p) {
        for (std::uint32_t i = 0; i < limits_.segments_in_flight; ++i) {
          auto& lane = operation.lanes.emplace_back();
          lane.part = (rank_ + p) % size_;  // Members begin with different ones.
          lane.first_segment = i;
          free_staging = give_staging(lane, free_staging);
        }
      }
      operation.ready.reserve(operation.lanes.size());
      operation.moving.reserve(operation.lanes.size());
    }
  }

  [[nodiscard]] std::uint32_t rank() const noexcept { return rank_; }
  [[nodiscard]] std::uint32_t size() const noexcept { return size_; }

  void post(WorkQueue& queue, CollectiveRequest request, CollectiveDone done) {
    {
      const std::scoped_lock lock{mutex_};
      waiting_.push_back({&queue, request, std::move(done)});
    }
    serve_waiting();
  }

  void close() {
    (void)is_first_failure(Errc::cancelled);
    close_links();
    serve_waiting();
  }

private:
  std::byte* give_staging(Lane& lane, std::byte* free_staging) {
    const auto take_segment = [&] {
      return std::exchange(free_staging, free_staging + on_the_wire(limits_.segment_bytes));
    };
    if (wire_ == WireFormat::bf16) lane.packed = take_segment();
    if (lane.part != rank_) return free_staging;
    lane.staging.resize(size_);
    for (std::uint32_t p = 0; p < size_; ++p) {
      if (p != rank_) lane.staging[p] = take_segment();
    }
    lane.sources.reserve(size_);
    lane.packed_sources.reserve(size_);
    return free_staging;
  }

  /// What floats that are added take there.
  [[nodiscard]] std::size_t on_the_wire(std::size_t size_bytes) const {
    return size_bytes / sizeof(float) * bytes_per_number(wire_);
  }
  [[nodiscard]] bool packs(const CollectiveRequest& request) const {
    return wire_ == WireFormat::bf16 && request.adds();
  }

  // -- beginning and ending operations ------------------------------------------------------------

  /// Begins the operations for which there is a place; after a failure, completes all that wait.
  void serve_waiting() {
    for (;;) {
      Operation* begun = nullptr;
      CollectiveDone failed;
      auto failure = Errc::none;
      {
        const std::scoped_lock lock{mutex_};
        failure = failure_;
        if (waiting_.empty()) return;
        if (failure != Errc::none) {
          failed = std::move(waiting_.front().done);
          waiting_.erase(waiting_.begin());
        } else {
          begun = begin_next();
          if (begun == nullptr) return;
        }
      }
      if (begun != nullptr) enqueue_move(*begun);
      if (failed) failed(failure);
    }
  }

  /// Gives the first that waits a place, if one is free. Operations begin in the same order on all
  /// members: otherwise two could hold their places for different ones, and wait for each other.
  Operation* begin_next() {
    const auto free = std::ranges::find(operations_, false, &Operation::in_use);
    if (free == operations_.end()) return nullptr;
    auto& next = waiting_.front();
    free->in_use = true;
    free->number = begun_count_++;
    free->queue = next.queue;
    free->request = next.request;
    free->done = std::move(next.done);
    waiting_.erase(waiting_.begin());
    if (free->request.kind == CollectiveRequest::Kind::barrier)
      free->request.array = {bytes_of(free->tokens), size_ * sizeof(Line), MemorySpace::host};
    for (auto& lane : free->lanes) {
      lane.segment = lane.first_segment;
      lane.next = Lane::Next::first_round;
      free->ready.push_back(&lane);
    }
    free->busy_lane_count = free->lanes.size();
    return &*free;
  }

  void finish(Operation& operation, Errc code) {
    auto done = std::move(operation.done);
    {
      const std::scoped_lock lock{mutex_};
      operation.in_use = false;
    }
    done(code);
    serve_waiting();
  }

  // -- moving lanes on, on the operation's queue --------------------------------------------------

  void enqueue_move(Operation& operation) {
    operation.queue->enqueue([self = shared_from_this(), &operation] { self->move_on(operation); });
  }

  void move_on(Operation& operation) {
    auto failure = Errc::none;
    {
      const std::scoped_lock lock{mutex_};
      failure = failure_;
      std::swap(operation.ready, operation.moving);
    }
    for (auto* lane : operation.moving) {
      const bool is_busy = failure == Errc::none && post_next(operation, *lane);
      if (!is_busy) --operation.busy_lane_count;
    }
    operation.moving.clear();
    if (operation.busy_lane_count == 0) finish(operation, failure);
  }

  /// Posts the lane's next transfers. Returns false when its segments are through.
  bool post_next(Operation& operation, Lane& lane) {
    const auto part = operation.request.part(size_, lane.part);
    while (lane.segment * limits_.segment_bytes < part.size_bytes) {
      const auto bytes = segment_of(operation.request.array, part, lane.segment);
      const auto tag = make_collective_tag(operation.number, lane.part, lane.segment);
      switch (lane.next) {
        case Lane::Next::first_round:
          lane.next = Lane::Next::second_round;
          if (post_first_round(operation, lane, tag, bytes)) return true;
          break;
        case Lane::Next::second_round:
          if (lane.part == rank_ && operation.request.adds()) add(operation.request, lane, bytes);
          lane.next = Lane::Next::landing;
          if (post_second_round(operation, lane, tag, bytes)) return true;
          break;
        case Lane::Next::landing:
          if (packs(operation.request)) land(operation.request, lane, bytes);
          lane.next = Lane::Next::first_round;
          lane.segment += limits_.segments_in_flight;
          break;
      }
    }
    return false;
  }

  /// What travels of the segment `bytes` of this member's array, or comes for it.
  [[nodiscard]] BufferView travelling(const CollectiveRequest& request, const Lane& lane,
                                      const BufferView& bytes) const {
    if (!packs(request)) return bytes;
    return {lane.packed, on_the_wire(bytes.size_bytes), MemorySpace::host};
  }

  void land(const CollectiveRequest& request, Lane& lane, const BufferView& bytes) const {
    if (lane.part == rank_ || !request.takes(rank_)) return;
    unpack_bf16(halves(lane.packed), floats(bytes), bytes.size_bytes / sizeof(float));
  }

  [[nodiscard]] BufferView segment_of(const BufferView& array, const Part& part,
                                      std::size_t segment) const {
    const auto begin = segment * limits_.segment_bytes;
    return {array.data + part.begin_bytes + begin,
            std::min(limits_.segment_bytes, part.size_bytes - begin), array.space};
  }

  bool post_first_round(Operation& operation, Lane& lane, Tag tag, const BufferView& bytes) {
    const auto& request = operation.request;
    const auto wire = travelling(request, lane, bytes);
    if (lane.part != rank_) {
      if (!request.gives(rank_)) return false;
      if (packs(request)) {
        pack_bf16(floats(bytes), halves(wire.data), bytes.size_bytes / sizeof(float));
      }
      return send(operation, lane, tag, wire, [&](std::uint32_t p) { return p == lane.part; });
    }
    const auto target = [&](std::uint32_t p) {
      auto* data = request.adds() ? lane.staging[p] : bytes.data;
      return BufferView{data, wire.size_bytes, MemorySpace::host};
    };
    const auto gives = [&](std::uint32_t p) { return request.gives(p); };
    const auto is_answered = [&](std::uint32_t p) {
      return wire.size_bytes <= answered_max_bytes && request.takes(p);
    };
    return receive(operation, lane, tag, target, gives, is_answered);
  }

  bool post_second_round(Operation& operation, Lane& lane, Tag tag, const BufferView& bytes) {
    const auto& request = operation.request;
    const auto wire = travelling(request, lane, bytes);
    if (lane.part == rank_) {
      const auto takes = [&](std::uint32_t p) { return request.takes(p); };
      return send(operation, lane, tag, wire, takes);
    }
    const auto target = [&](std::uint32_t) { return wire; };
    const auto is_owner = [&](std::uint32_t p) { return p == lane.part; };
    const auto is_answered = [](std::uint32_t) { return false; };
    return request.takes(rank_) && receive(operation, lane, tag, target, is_owner, is_answered);
  }

  void add(const CollectiveRequest& request, Lane& lane, const BufferView& own) {
    if (wire_ == WireFormat::bf16) return add_packed(request, lane, own);
    auto* const own_values = floats(own);
    lane.sources.clear();
    for (std::uint32_t p = 0; p < size_; ++p) {
      if (!request.gives(p)) continue;
      lane.sources.push_back(p == rank_ ? own_values
                                        : reinterpret_cast<const float*>(lane.staging[p]));
    }
    add_in_rank_order(lane.sources, {&own_values, 1}, own.size_bytes / sizeof(float));
  }

  /// Leaves the sum as floats in the array, and as bf16 where it is sent from.
  void add_packed(const CollectiveRequest& request, Lane& lane, const BufferView& own) {
    const auto count = own.size_bytes / sizeof(float);
    auto* const sum = halves(lane.packed);
    if (request.gives(rank_)) pack_bf16(floats(own), sum, count);
    lane.packed_sources.clear();
    for (std::uint32_t p = 0; p < size_; ++p) {
      if (!request.gives(p)) continue;
      lane.packed_sources.push_back(p == rank_ ? sum : halves(lane.staging[p]));
    }
    add_bf16_in_rank_order(lane.packed_sources, sum, count);
    unpack_bf16(sum, floats(own), count);
  }

  // -- transfers ----------------------------------------------------------------------------------

  template <class Predicate>
  bool send(Operation& operation, Lane& lane, Tag tag, const BufferView& source, Predicate wants) {
    return to_each(lane, wants, [&](std::uint32_t p) {
      links_[p]->post_send(tag, Buffer{source}, counting_down(operation, lane, source));
    });
  }

  template <class Target, class Wanted, class Answered>
  bool receive(Operation& operation, Lane& lane, Tag tag, Target target, Wanted is_wanted,
               Answered is_answered) {
    return to_each(lane, is_wanted, [&](std::uint32_t p) {
      const auto post = is_answered(p) ? &Link::post_receive_to_answer : &Link::post_receive;
      (links_[p].get()->*post)(tag, Buffer{target(p)}, counting_down(operation, lane, target(p)));
    });
  }

  /// Calls `post` for every other member that `wants` is true of. Returns whether there is one.
  /// Counts first: completions may come before `post` returns.
  template <class Predicate, class Post>
  bool to_each(Lane& lane, Predicate wants, Post post) {
    const auto is_wanted = [&](std::uint32_t p) { return p != rank_ && wants(p); };
    std::uint32_t count = 0;
    for (std::uint32_t p = 0; p < size_; ++p) {
      if (is_wanted(p)) ++count;
    }
    lane.pending_count = count;
    for (std::uint32_t p = 0; p < size_; ++p) {
      if (is_wanted(p)) post(p);
    }
    return count > 0;
  }

  TransferDone counting_down(Operation& operation, Lane& lane, const BufferView& posted) {
    return [self = shared_from_this(), &operation, &lane, data = posted.data](Delivery delivery) {
      // A link that swaps buffers cannot carry a collective.
      TROUPE_ASSERT(delivery.code != Errc::none || delivery.buffer.data() == data);
      if (self->is_first_failure(delivery.code)) return self->enqueue_failure(operation, lane);
      self->count_down(operation, lane);
    };
  }

  void count_down(Operation& operation, Lane& lane) {
    {
      const std::scoped_lock lock{mutex_};
      if (--lane.pending_count > 0) return;
      operation.ready.push_back(&lane);
      if (operation.ready.size() > 1) return;  // Whoever enqueued the move for the first takes all.
    }
    enqueue_move(operation);
  }

  // -- failure ------------------------------------------------------------------------------------

  [[nodiscard]] bool is_first_failure(Errc code) {
    if (code == Errc::none) return false;
    const std::scoped_lock lock{mutex_};
    if (failure_ != Errc::none) return false;
    failure_ = code;
    return true;
  }

  /// The transfer that failed counts as pending until the links are closed, so that the operation
  /// and its queue last until then.
  void enqueue_failure(Operation& operation, Lane& lane) {
    operation.queue->enqueue([self = shared_from_this(), &operation, &lane] {
      self->close_links();
      self->count_down(operation, lane);
      self->serve_waiting();
    });
  }

  void close_links() {
    for (const auto& link : links_) {
      if (link) link->close();
    }
  }

  const std::uint32_t rank_;
  const std::uint32_t size_;
  const LinkedLimits limits_;
  const WireFormat wire_;
  const std::vector<std::unique_ptr<Link>> links_;  ///< By member.
  std::vector<Line> staging_;

  std::mutex mutex_;  ///< Guards what follows, and every lane's count and operation's ready lanes.
  Errc failure_ = Errc::none;
  std::uint64_t begun_count_ = 0;
  std::vector<Waiting> waiting_;       ///< First come, first served.
  std::vector<Operation> operations_;  ///< The places of operations under way.
};

class LinkedMember final : public RequestedCollective {
public:
  explicit LinkedMember(std::shared_ptr<Member> member) : member_{std::move(member)} {}
  ~LinkedMember() override { member_->close(); }

  [[nodiscard]] std::uint32_t rank() const noexcept override { return member_->rank(); }
  [[nodiscard]] std::uint32_t size() const noexcept override { return member_->size(); }
  void close() override { member_->close(); }

protected:
  void post(WorkQueue& queue, CollectiveRequest request, CollectiveDone done) override {
    TROUPE_ASSERT(request.array.space != MemorySpace::device);
    member_->post(queue, request, std::move(done));
  }

private:
  std::shared_ptr<Member> member_;
};

}  // namespace

std::unique_ptr<Collective> make_linked_member(std::uint32_t rank,
                                               std::vector<std::unique_ptr<Link>> links,
                                               LinkedLimits limits, WireFormat wire) {
  TROUPE_ASSERT(rank < links.size());
  for (std::size_t p = 0; p < links.size(); ++p)
    TROUPE_ASSERT((links[p] == nullptr) == (p == rank));
  TROUPE_ASSERT(limits.segment_bytes > 0 && limits.segment_bytes % sizeof(Line) == 0);
  TROUPE_ASSERT(limits.segments_in_flight > 0 && limits.operations_in_flight > 0);
  return std::make_unique<LinkedMember>(
      std::make_shared<Member>(rank, std::move(links), limits, wire));
}

}  // namespace troupe::transport
