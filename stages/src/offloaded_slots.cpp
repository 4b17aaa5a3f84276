#include "offloaded_slots.hpp"

#include <algorithm>

#include "troupe/engine/check.hpp"
#include "troupe/stages/kernels.hpp"

namespace troupe::stages {

OffloadedSlots::OffloadedSlots(Device& device, Stream& passes, std::span<const BufferView> places,
                               std::span<const BufferView> slots)
    : kernels_{device.kernels()},
      passes_{passes},
      out_{device.make_stream("offload", 1)},
      in_{device.make_stream("fetch", 1)} {
  TROUPE_ASSERT(!places.empty());
  for (const auto& memory : places) {
    places_.push_back(std::make_unique<Place>(
        Place{.memory = memory, .worked = device.make_event(), .fetched = device.make_event()}));
  }
  for (const auto& memory : slots) {
    TROUPE_ASSERT(memory.size_bytes == places.front().size_bytes);
    slots_.push_back({.memory = memory, .stored = device.make_event()});
  }
}

OffloadedSlots::Places::iterator OffloadedSlots::find(std::uint32_t slot) {
  return std::ranges::find_if(places_, [slot](const auto& place) { return place->slot == slot; });
}

OffloadedSlots::Place& OffloadedSlots::place_of(std::uint32_t slot) {
  const auto found = find(slot);
  TROUPE_ASSERT(found != places_.end());
  return **found;
}

OffloadedSlots::Place& OffloadedSlots::claim(std::uint32_t slot, Stream& user) {
  std::ranges::rotate(places_, places_.begin() + 1);
  auto& place = *places_.back();
  user.wait(*place.worked);
  if (place.slot) user.wait(*slots_[*place.slot].stored);
  place.slot = slot;
  return place;
}

void OffloadedSlots::copy_out_others(std::uint32_t slot) {
  if (!left_ || *left_ == slot) return;
  const auto& place = place_of(*left_);
  const auto& [host, stored] = slots_[*left_];
  out_->wait(*place.worked);
  kernels_.download(*out_, place.memory.data, host.data, host.size_bytes);
  out_->record(*stored);
  left_.reset();
}

BufferView OffloadedSlots::begin(std::uint32_t slot) {
  TROUPE_ASSERT(find(slot) == places_.end());
  copy_out_others(slot);
  return claim(slot, passes_).memory;
}

void OffloadedSlots::fetch(std::uint32_t slot) {
  copy_out_others(slot);
  if (find(slot) != places_.end()) return;
  auto& place = claim(slot, *in_);
  const auto& [host, stored] = slots_[slot];
  in_->wait(*stored);
  kernels_.upload(*in_, host.data, place.memory.data, host.size_bytes);
  in_->record(*place.fetched);
}

/// If the place has had the slot all the while, it may be on its way out still: the pass may write
/// where the copy reads.
BufferView OffloadedSlots::resume(std::uint32_t slot) {
  fetch(slot);
  left_.reset();
  const auto found = find(slot);
  std::rotate(found, found + 1, places_.end());
  const auto& place = *places_.back();
  passes_.wait(*place.fetched);
  passes_.wait(*slots_[slot].stored);
  return place.memory;
}

void OffloadedSlots::store(std::uint32_t slot) {
  passes_.record(*place_of(slot).worked);
  left_ = slot;
}

void OffloadedSlots::drop(std::uint32_t slot) {
  auto& place = place_of(slot);
  passes_.record(*place.worked);
  place.slot.reset();
}

}  // namespace troupe::stages
