// transport/src/rank_order_sum.hpp -- the one order in which members' values are added.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace troupe::transport {

/// Writes the sum `((s0 + s1) + s2) + ...` of `sources` to each of `targets`. Each points to
/// `count` floats; a target may be a source, but they overlap in no other way.
void add_in_rank_order(std::span<const float* const> sources, std::span<float* const> targets,
                       std::size_t count);

/// The same of members that exchange bf16: each addend is rounded to it, and so is the fp32 sum.
void add_bf16_in_rank_order(std::span<const float* const> sources, std::span<float* const> targets,
                            std::size_t count);

/// The same of addends that have been rounded. `target` may be one of `sources`.
void add_bf16_in_rank_order(std::span<const std::uint16_t* const> sources, std::uint16_t* target,
                            std::size_t count);

void pack_bf16(const float* values, std::uint16_t* packed, std::size_t count);
void unpack_bf16(const std::uint16_t* packed, float* values, std::size_t count);

}  // namespace troupe::transport
