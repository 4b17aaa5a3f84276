// troupe/engine/policy.hpp -- in which order a rank runs the passes that its schedule gives it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace troupe {

/// A schedule fixes who holds what and how much memory that takes, in any case. A policy other than
/// `in_order` leaves the order to the moment: of the passes whose input is here and whose output
/// has room, the rank runs the one that it prefers. Every stage still goes forward, and adds to its
/// weight gradients, in microbatch order, so that results have the same bits.
enum class Policy : std::uint8_t {
  in_order,        ///< The program that the schedule lists.
  backward_first,  ///< Backward passes, oldest microbatch first; then forward passes, the later
                   ///< stage first; weight passes when there is nothing else.
  forward_first,  ///< Forward passes as far ahead as the slots reach, the earlier stage first; then
                  ///< backward passes; weight passes when there is nothing else.
};

/// By policy.
inline constexpr std::array<std::string_view, 3> policy_names{"in-order", "backward-first",
                                                              "forward-first"};

}  // namespace troupe
