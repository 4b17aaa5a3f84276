// stages/src/offloaded_slots.hpp -- slots that lie in host memory, few of them on the device too.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "troupe/stages/device.hpp"

namespace troupe::stages {

/// Moves slots between the device and page-locked host memory, beside the passes of a stage. Copies
/// run on two streams of their own, one out and one in; events order them with the passes, and
/// the host waits for nothing.
///
/// A pass works in a place on the device. What it leaves for a later pass is copied out behind it,
/// once the stage's next pass is known to be one on another slot; the place still has it until
/// another slot needs one, which takes the place used longest ago.
///
/// Thread safety: as a stage. The calls come in the order of the passes.
class OffloadedSlots {
public:
  /// All pieces are of one size. What is referred to outlives the object.
  OffloadedSlots(Device& device, Stream& passes, std::span<const BufferView> places,
                 std::span<const BufferView> slots);

  /// Where the first pass on a slot works, which is enqueued next.
  [[nodiscard]] BufferView begin(std::uint32_t slot);
  /// Begins to bring a stored slot back, unless a place still has it: the next pass resumes it.
  void fetch(std::uint32_t slot);
  /// Where a later pass on a slot works, which is enqueued next.
  [[nodiscard]] BufferView resume(std::uint32_t slot);

  /// The pass just enqueued on the slot leaves something in it for another.
  void store(std::uint32_t slot);
  /// The pass just enqueued on the slot was its last.
  void drop(std::uint32_t slot);

private:
  struct Place {
    BufferView memory;
    std::optional<std::uint32_t> slot{};  ///< Whose content it has.
    std::unique_ptr<Event> worked;        ///< The last pass in it.
    std::unique_ptr<Event> fetched;       ///< The last copy into it.
  };
  struct Stored {
    BufferView memory;
    std::unique_ptr<Event> stored;  ///< The last copy out of a place.
  };

  using Places = std::vector<std::unique_ptr<Place>>;

  /// Where the slot is, or the end.
  [[nodiscard]] Places::iterator find(std::uint32_t slot);
  [[nodiscard]] Place& place_of(std::uint32_t slot);
  /// The next pass is one on `slot`.
  void copy_out_others(std::uint32_t slot);
  /// The place used longest ago, for `user` to fill: once what it has is no longer needed there.
  Place& claim(std::uint32_t slot, Stream& user);

  Kernels& kernels_;
  Stream& passes_;
  Places places_;  ///< The one used longest ago first.
  std::vector<Stored> slots_;
  std::optional<std::uint32_t> left_;  ///< The slot to be copied out, unless it is used next.
  std::unique_ptr<Stream> out_;
  std::unique_ptr<Stream> in_;
};

}  // namespace troupe::stages
