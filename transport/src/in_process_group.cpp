#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>

#include "troupe/transport/in_process.hpp"

#include "collective_request.hpp"
#include "rank_order_sum.hpp"

namespace troupe::transport {

namespace {

/// What the members of a group share.
///
/// Members may run ahead of each other, so several operations can be gathering members at once; the
/// n-th operation of one member is the n-th of all. An operation gathers, then every member's queue
/// settles one part, and whoever finishes the last part completes it for all.
class Group : public std::enable_shared_from_this<Group> {
public:
  Group(std::uint32_t size, WireFormat wire) : size_{size}, wire_{wire}, posted_count_(size, 0) {}

  [[nodiscard]] std::uint32_t size() const noexcept { return size_; }

  void post(std::uint32_t rank, WorkQueue& queue, CollectiveRequest request, CollectiveDone done) {
    Operation* operation = nullptr;
    {
      const std::scoped_lock lock{mutex_};
      if (!closed_) {
        operation = &operation_of(posted_count_[rank]++);
        auto& member = operation->members[rank];
        member.request = request;
        member.queue = &queue;
        member.done = std::move(done);
      }
    }
    if (operation == nullptr) return done(Errc::cancelled);
    queue.enqueue([self = shared_from_this(), operation] { self->arrive(*operation); });
  }

  void close() {
    std::vector<CollectiveDone> cancelled;
    {
      const std::scoped_lock lock{mutex_};
      closed_ = true;
      for (auto& operation : operations_) {
        if (operation->arrived_count == size_) continue;  // Its parts are on their way.
        for (auto& member : operation->members) {
          if (member.done) cancelled.push_back(std::move(member.done));
        }
      }
    }
    for (auto& done : cancelled) done(Errc::cancelled);
  }

private:
  struct Member {
    CollectiveRequest request;
    WorkQueue* queue = nullptr;
    CollectiveDone done;
    std::vector<const float*> sources;  ///< Of the part that the member owns; kept for its memory.
    std::vector<float*> targets;
  };
  struct Operation {
    std::uint64_t number = 0;
    bool in_use = false;
    std::vector<Member> members;
    std::uint32_t arrived_count = 0;
    std::atomic<std::uint32_t> settled_count = 0;
  };

  /// The record of operation `number`: the one that other members opened, or a free or new one.
  Operation& operation_of(std::uint64_t number) {
    Operation* free = nullptr;
    for (auto& operation : operations_) {
      if (operation->in_use && operation->number == number) return *operation;
      if (!operation->in_use) free = operation.get();
    }
    if (free == nullptr) {
      free = operations_.emplace_back(std::make_unique<Operation>()).get();
      free->members.resize(size_);
    }
    free->in_use = true;
    free->number = number;
    free->arrived_count = 0;
    free->settled_count = 0;
    return *free;
  }

  void arrive(Operation& operation) {
    {
      const std::scoped_lock lock{mutex_};
      if (closed_ || ++operation.arrived_count < size_) return;
    }
    const auto& first = operation.members[0].request;
    TROUPE_ASSERT(std::ranges::all_of(operation.members, [&](const Member& member) {
      return member.request.kind == first.kind && member.request.root == first.root
             && member.request.array.size_bytes == first.array.size_bytes;
    }));
    for (std::uint32_t rank = 0; rank < size_; ++rank) {
      operation.members[rank].queue->enqueue([self = shared_from_this(), &operation, rank] {
        self->settle(operation, rank);
        if (operation.settled_count.fetch_add(1, std::memory_order_acq_rel) + 1 == self->size_)
          self->complete(operation);
      });
    }
  }

  /// Brings the part that `owner` owns to what the operation makes of it, on whoever takes it.
  void settle(Operation& operation, std::uint32_t owner) {
    auto& [request, queue, done, sources, targets] = operation.members[owner];
    const auto part = request.part(size_, owner);
    if (part.size_bytes == 0) return;
    const auto copied = request.kind == CollectiveRequest::Kind::broadcast ? request.root : owner;
    sources.clear();
    targets.clear();
    for (std::uint32_t r = 0; r < size_; ++r) {
      auto* values =
          reinterpret_cast<float*>(operation.members[r].request.array.data + part.begin_bytes);
      if (request.adds() ? request.gives(r) : r == copied) sources.push_back(values);
      if (request.adds() ? r == owner || request.takes(r) : r != copied) targets.push_back(values);
    }
    const auto count = part.size_bytes / sizeof(float);
    if (request.adds() && wire_ == WireFormat::bf16) {
      return add_bf16_in_rank_order(sources, targets, count);
    }
    if (request.adds()) return add_in_rank_order(sources, targets, count);
    for (auto* target : targets) std::memcpy(target, sources[0], part.size_bytes);
  }

  void complete(Operation& operation) {
    for (auto& member : operation.members) std::exchange(member.done, {})(Errc::none);
    const std::scoped_lock lock{mutex_};
    operation.in_use = false;
  }

  const std::uint32_t size_;
  const WireFormat wire_;
  std::mutex mutex_;
  bool closed_ = false;
  std::vector<std::uint64_t> posted_count_;             ///< By rank.
  std::vector<std::unique_ptr<Operation>> operations_;  ///< Stable addresses, reused.
};

class GroupMember final : public RequestedCollective {
public:
  GroupMember(std::shared_ptr<Group> group, std::uint32_t rank)
      : group_{std::move(group)}, rank_{rank} {}
  ~GroupMember() override { group_->close(); }

  [[nodiscard]] std::uint32_t rank() const noexcept override { return rank_; }
  [[nodiscard]] std::uint32_t size() const noexcept override { return group_->size(); }
  void close() override { group_->close(); }

protected:
  void post(WorkQueue& queue, CollectiveRequest request, CollectiveDone done) override {
    group_->post(rank_, queue, request, std::move(done));
  }

private:
  std::shared_ptr<Group> group_;
  std::uint32_t rank_;
};

}  // namespace

std::vector<std::unique_ptr<Collective>> make_in_process_group(std::uint32_t size,
                                                               WireFormat wire) {
  TROUPE_ASSERT(size >= 1);
  const auto group = std::make_shared<Group>(size, wire);
  std::vector<std::unique_ptr<Collective>> members;
  for (std::uint32_t r = 0; r < size; ++r)
    members.push_back(std::make_unique<GroupMember>(group, r));
  return members;
}

}  // namespace troupe::transport
