// troupe/engine/counterexample.hpp -- pictures of schedules that break a rule.
#pragma once

#include <optional>

#include "troupe/engine/communication_validation.hpp"
#include "troupe/engine/draw.hpp"
#include "troupe/engine/schedule.hpp"

namespace troupe {

/// Shows how far the ranks get until they stop in front of what `validate` rejects, each action in
/// one nanosecond as soon as it can. A stopped rank waits until the end of the picture; what
/// offends is marked as `>1B1<`, also on a rank that waits for ever before it gets there. The rule
/// is noted.
/// @returns nothing for a valid schedule, and for one that breaks a rule of shape, range, copy,
///          placement, kind or transfer, or lacks so many passes that it cannot be walked.
[[nodiscard]] std::optional<Picture> make_counterexample(const Schedule& schedule);

/// The same with sends and receives, unless the passes alone break a rule: then without.
[[nodiscard]] std::optional<Picture> make_counterexample(const CommunicationSchedule& schedule,
                                                         Matching matching);

}  // namespace troupe
