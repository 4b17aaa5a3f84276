// engine/src/instruction_walk.hpp -- how far a schedule gets, and when everything in it happens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "troupe/engine/communication.hpp"

#include "rejection.hpp"

namespace troupe {

/// How an output gets to another rank: by itself, or by its transfer under one of `Matching`.
enum class Handover : std::uint8_t { direct, tagged, ordered };

[[nodiscard]] constexpr Handover handover_of(Matching matching) noexcept {
  return matching == Matching::tagged ? Handover::tagged : Handover::ordered;
}

/// What a rank waits for, and on which other rank that is.
struct Awaited {
  Instruction instruction;
  std::uint32_t rank;
};

struct InstructionWalk {
  std::vector<std::size_t> stopped;  ///< By rank: where in its row, at the end if all is well.
  std::vector<std::optional<Awaited>> awaited;    ///< By rank, if it waits for another one.
  std::vector<std::vector<std::int64_t>> begins;  ///< By rank, for each instruction that ran: when
                                                  ///< it begins. Each takes one unit of time,
                                                  ///< passes that overlap take two.
};

/// Lets every rank go on as far as it can, but not beyond one of `stops`. Linear time.
/// @param passes `rows` without communication; they name stages, ranks and microbatches that there
///        are, and are as many as that needs.
[[nodiscard]] InstructionWalk walk(const std::vector<std::vector<Instruction>>& rows,
                                   const Schedule& passes, Handover handover,
                                   std::span<const Stop> stops);

}  // namespace troupe
