// transport/src/rank_order_sum.hpp -- the one order in which members' values are added.
#pragma once

#include <cstddef>
#include <span>

namespace troupe::transport {

/// Writes the sum `((s0 + s1) + s2) + ...` of `sources` to each of `targets`. Each points to
/// `count` floats; a target may be a source, but they overlap in no other way.
void add_in_rank_order(std::span<const float* const> sources, std::span<float* const> targets,
                       std::size_t count);

}  // namespace troupe::transport
