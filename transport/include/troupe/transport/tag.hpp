// troupe/transport/tag.hpp -- how a 64-bit tag names one transfer of one step.
//
//   63   60 59           40 39           20 19            0
//   +------+---------------+---------------+---------------+
//   | port | step (wraps)  |     stage     |  microbatch   |
//   +------+---------------+---------------+---------------+
//
// Within a collective the fields are (port, operation, part, segment).
#pragma once

#include <cstdint>

#include "troupe/engine/check.hpp"
#include "troupe/engine/index.hpp"

namespace troupe::transport {

/// Matches a receive with the send meant for it.
enum class Tag : std::uint64_t {};

/// What a transfer carries.
enum class Port : std::uint8_t {
  activation = 1,     ///< Towards the next virtual stage, which the tag names.
  gradient = 2,       ///< Towards the previous virtual stage, which the tag names.
  tied_gradient = 3,  ///< Between the first and the last virtual stage; the tag names the receiver.
  collective = 4,     ///< Between two members of a group; see `make_collective_tag`.
  choice = 5,         ///< To the shards that follow; see `make_choice_tag`.
};

inline constexpr std::uint32_t microbatch_bits = 20;
inline constexpr std::uint32_t stage_bits = 20;
inline constexpr std::uint32_t step_bits = 20;
static_assert(microbatch_bits + stage_bits + step_bits + 4 == 64, "the fields fill the tag");

/// Packs the four fields. Stage and microbatch must fit their bits; the step wraps, which is safe
/// because transfers of steps that far apart never coexist.
[[nodiscard]] constexpr Tag make_tag(Port port, std::uint32_t step, StageIndex receiver,
                                     MicrobatchIndex microbatch) {
  TROUPE_ASSERT(receiver.value() < (1U << stage_bits));
  TROUPE_ASSERT(microbatch.value() < (1U << microbatch_bits));
  const std::uint64_t wrapped_step = step & ((1U << step_bits) - 1U);
  return Tag{(std::uint64_t{static_cast<std::uint8_t>(port)} << 60U)
             | (wrapped_step << (stage_bits + microbatch_bits))
             | (std::uint64_t{receiver.value()} << microbatch_bits) | microbatch.value()};
}

/// Names the transfer of a segment of a part of a collective operation's array. A part moves at
/// most once in each direction between two members. The operation's number wraps, as the step does.
[[nodiscard]] constexpr Tag make_collective_tag(std::uint64_t operation, std::uint32_t part,
                                                std::uint32_t segment) {
  return make_tag(Port::collective, static_cast<std::uint32_t>(operation), StageIndex{part},
                  MicrobatchIndex{segment});
}

/// Names the transfer of the leader's choice number `index` of a step.
[[nodiscard]] constexpr Tag make_choice_tag(std::uint32_t step, std::uint32_t index) {
  return make_tag(Port::choice, step, StageIndex{index >> microbatch_bits},
                  MicrobatchIndex{index & ((1U << microbatch_bits) - 1U)});
}

}  // namespace troupe::transport
