// troupe/engine/communication_validation.hpp -- says whether the sends and receives of a schedule
// can be trusted, or where not.
#pragma once

#include <cstdint>

#include "troupe/engine/communication.hpp"
#include "troupe/engine/expected.hpp"

namespace troupe {

/// How a send and a receive find each other.
enum class Matching : std::uint8_t {
  tagged,   ///< By stage and microbatch. Sends and receives are posted and hold nothing up; a pass
            ///< waits for what it receives, a wait until what was sent is received. So does troupe.
  ordered,  ///< By their turn. A rank does one thing after the other, and a send is over when the
            ///< receive is, which must be the other rank's turn. That is the strictest reading of
            ///< NCCL: one queue on each rank for all it sends and receives.
};

/// Checks, in this order, the rules that make `schedule` safe to execute:
///
///   - those of `validate` in schedule_validation.hpp for its passes, but for the weight order,
///   which is a rule of troupe's.
///   - for every instruction, in the order of rows:
///     - range: its stage and microbatch exist. copy: they belong together.
///     - placement: it is on the rank that holds its stage.
///     - kind: an evaluation step has no gradients.
///     - transfer: it leads to another rank.
///     - once: nothing is sent, received, waited for or reduced a second time.
///     - order: what is sent was made, what a pass needs was received, what is waited for was
///       begun, and no gradient comes behind their reduction. Passes that overlap do not need each
///       other.
///     - shard: a stage that is ever unsharded is so while its passes run, and is not unsharded or
///       resharded twice in a row. It may stay unsharded.
///   - completeness: everything that passes need from another rank is sent and received.
///   - deadlock: under `matching` no ranks wait for each other in a circle.
///
/// @returns `invalid_schedule` as the other `validate` does, the offending instruction marked.
[[nodiscard]] Expected<Done> validate(const CommunicationSchedule& schedule, Matching matching);

}  // namespace troupe
