// transport/src/collective_request.hpp -- a group's operations, told apart by what moves.
#pragma once

#include <utility>

#include "troupe/transport/collective.hpp"

namespace troupe::transport {

/// One operation as a member asked for it. Every kind is made of two rounds over the parts of the
/// array, of which some kinds leave one out: what the owner of a part needs comes to it, and what
/// it has then goes to the others.
struct CollectiveRequest {
  enum class Kind : std::uint8_t {
    all_reduce,
    reduce_scatter,
    reduce,
    all_gather,
    broadcast,
    barrier
  };

  Kind kind = Kind::barrier;
  BufferView array;        ///< Empty in a barrier.
  std::uint32_t root = 0;  ///< Of a reduction to one, or a broadcast.

  /// The part of the array that `member` of `count` owns. What only the root is to have, it owns.
  [[nodiscard]] Part part(std::uint32_t count, std::uint32_t member) const {
    if (kind != Kind::reduce) return part_of(array.size_bytes, count, member);
    return {0, member == root ? array.size_bytes : 0};
  }

  /// Whether the owner of a part adds up the values of all members that give them.
  [[nodiscard]] bool adds() const noexcept {
    return kind == Kind::all_reduce || kind == Kind::reduce_scatter || kind == Kind::reduce;
  }

  /// Whether `member` gives its bytes of a part to the part's owner, be it itself.
  [[nodiscard]] bool gives(std::uint32_t member) const noexcept {
    if (kind == Kind::reduce) return member != root;
    return adds() || (kind == Kind::broadcast && member == root);
  }

  /// Whether `member` takes the bytes of a part from the part's owner.
  [[nodiscard]] bool takes(std::uint32_t member) const noexcept {
    if (kind == Kind::reduce_scatter || kind == Kind::reduce) return false;
    return !(kind == Kind::broadcast && member == root);
  }
};

/// A `Collective` whose operations all go one way.
class RequestedCollective : public Collective {
public:
  void all_reduce(WorkQueue& queue, BufferView values, CollectiveDone done) final {
    check_floats(values);
    post(queue, {CollectiveRequest::Kind::all_reduce, values}, std::move(done));
  }
  void reduce_scatter(WorkQueue& queue, BufferView values, CollectiveDone done) final {
    check_floats(values);
    post(queue, {CollectiveRequest::Kind::reduce_scatter, values}, std::move(done));
  }
  void reduce(WorkQueue& queue, BufferView values, std::uint32_t root, CollectiveDone done) final {
    check_floats(values);
    TROUPE_ASSERT(root < size() && size() > 1);
    post(queue, {CollectiveRequest::Kind::reduce, values, root}, std::move(done));
  }
  void all_gather(WorkQueue& queue, BufferView bytes, CollectiveDone done) final {
    post(queue, {CollectiveRequest::Kind::all_gather, bytes}, std::move(done));
  }
  void broadcast(WorkQueue& queue, BufferView bytes, std::uint32_t root,
                 CollectiveDone done) final {
    TROUPE_ASSERT(root < size());
    post(queue, {CollectiveRequest::Kind::broadcast, bytes, root}, std::move(done));
  }
  void barrier(WorkQueue& queue, CollectiveDone done) final {
    post(queue, {CollectiveRequest::Kind::barrier, {}}, std::move(done));
  }

protected:
  virtual void post(WorkQueue& queue, CollectiveRequest request, CollectiveDone done) = 0;

private:
  static void check_floats(const BufferView& values) {
    TROUPE_ASSERT(values.space != MemorySpace::device);
    TROUPE_ASSERT(values.size_bytes % sizeof(float) == 0);
    TROUPE_ASSERT(reinterpret_cast<std::uintptr_t>(values.data) % alignof(float) == 0);
  }
};

}  // namespace troupe::transport
