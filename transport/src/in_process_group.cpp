#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "troupe/transport/in_process.hpp"

namespace troupe::transport {

namespace {

/// What the members of a group share.
///
/// Members may run ahead of each other, so several operations can be gathering members at once; the
/// n-th operation of one member is the n-th of all. An operation gathers, then every member's queue
/// adds up one part, and whoever finishes the last part completes it for all.
class Group : public std::enable_shared_from_this<Group> {
public:
  explicit Group(std::uint32_t size) : size_{size}, posted_count_(size, 0) {}

  [[nodiscard]] std::uint32_t size() const noexcept { return size_; }

  void post(std::uint32_t rank, WorkQueue& queue, BufferView values, CollectiveDone done) {
    Operation* operation = nullptr;
    {
      const std::scoped_lock lock{mutex_};
      if (!closed_) {
        operation = &operation_of(posted_count_[rank]++);
        operation->members[rank] = {values, &queue, std::move(done)};
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
    BufferView values;
    WorkQueue* queue = nullptr;
    CollectiveDone done;
  };
  struct Operation {
    std::uint64_t number = 0;
    bool in_use = false;
    std::vector<Member> members;
    std::uint32_t arrived_count = 0;
    std::atomic<std::uint32_t> reduced_count = 0;
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
    free->reduced_count = 0;
    return *free;
  }

  void arrive(Operation& operation) {
    {
      const std::scoped_lock lock{mutex_};
      if (closed_ || ++operation.arrived_count < size_) return;
    }
    const auto size_bytes = operation.members[0].values.size_bytes;
    const auto is_same = [&](const Member& m) { return m.values.size_bytes == size_bytes; };
    TROUPE_ASSERT(std::ranges::all_of(operation.members, is_same));
    for (std::uint32_t part = 0; part < size_; ++part) {
      operation.members[part].queue->enqueue(
          [self = shared_from_this(), &operation, part] { self->reduce(operation, part); });
    }
  }

  /// Adds up part `part` in rank order and writes it to every member.
  void reduce(Operation& operation, std::uint32_t part) {
    constexpr std::size_t line = 16;  // Floats of a cache line: no line is written by two threads.
    constexpr std::size_t block = 1024;  // Floats added up in the first-level cache.
    const auto count = operation.members[0].values.size_bytes / sizeof(float);
    const auto bound = [&](std::size_t p) {
      return p == size_ ? count : count * p / size_ / line * line;
    };
    const auto values = [&](std::size_t r) {
      return reinterpret_cast<float*>(operation.members[r].values.data);
    };
    std::array<float, block> sum;
    for (auto begin = bound(part); begin < bound(part + 1); begin += block) {
      const auto length = std::min(block, bound(part + 1) - begin);
      std::copy_n(values(0) + begin, length, sum.begin());
      for (std::size_t r = 1; r < size_; ++r) {
        const auto* addend = values(r) + begin;
        for (std::size_t i = 0; i < length; ++i) sum[i] += addend[i];
      }
      for (std::size_t r = 0; r < size_; ++r) std::copy_n(sum.begin(), length, values(r) + begin);
    }
    if (operation.reduced_count.fetch_add(1, std::memory_order_acq_rel) + 1 == size_)
      complete(operation);
  }

  void complete(Operation& operation) {
    for (auto& member : operation.members) std::exchange(member.done, {})(Errc::none);
    const std::scoped_lock lock{mutex_};
    operation.in_use = false;
  }

  const std::uint32_t size_;
  std::mutex mutex_;
  bool closed_ = false;
  std::vector<std::uint64_t> posted_count_;             ///< By rank.
  std::vector<std::unique_ptr<Operation>> operations_;  ///< Stable addresses, reused.
};

class GroupMember final : public Collective {
public:
  GroupMember(std::shared_ptr<Group> group, std::uint32_t rank)
      : group_{std::move(group)}, rank_{rank} {}
  ~GroupMember() override { group_->close(); }

  [[nodiscard]] std::uint32_t rank() const noexcept override { return rank_; }
  [[nodiscard]] std::uint32_t size() const noexcept override { return group_->size(); }

  void all_reduce(WorkQueue& queue, BufferView values, CollectiveDone done) override {
    group_->post(rank_, queue, values, std::move(done));
  }
  void close() override { group_->close(); }

private:
  std::shared_ptr<Group> group_;
  std::uint32_t rank_;
};

}  // namespace

std::vector<std::unique_ptr<Collective>> make_in_process_group(std::uint32_t size) {
  TROUPE_ASSERT(size >= 1);
  const auto group = std::make_shared<Group>(size);
  std::vector<std::unique_ptr<Collective>> members;
  for (std::uint32_t r = 0; r < size; ++r)
    members.push_back(std::make_unique<GroupMember>(group, r));
  return members;
}

}  // namespace troupe::transport
