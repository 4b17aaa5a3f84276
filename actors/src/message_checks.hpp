// actors/src/message_checks.hpp -- whether what another process sent can be acted upon.
//
// A process that has the run's secret sends what its code makes it send, so that what these refuse
// is a bug, there or on the way. It ends the run with a sentence, not with a crash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "troupe/actors/node_messages.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"

namespace troupe::actors {

/// What is wrong with a message, for the end of a sentence; nothing if it can be acted upon.
using Misfit = std::optional<std::string>;

/// More than the clock of a machine shows that has run for 18 years. Ten causes' times of an
/// account add up without overflow, and so does what one clock shows and another's lead.
inline constexpr std::int64_t clock_max_ns = std::int64_t{1} << 59U;

// To the director. A report's losses and squares may be any, its indices, times and classes may
// not.
[[nodiscard]] Misfit misfit_of(const ClockTold& message);
/// @param kind Of the step that is reported.
[[nodiscard]] Misfit misfit_of(const Plan& plan, StepKind kind, const StepReported& message);
[[nodiscard]] Misfit misfit_of(const Plan& plan, const RankFinished& message);
[[nodiscard]] Misfit misfit_of(const Plan& plan, const RankFailed& message);
/// @param rank_count Of the node that was asked.
[[nodiscard]] Misfit misfit_of(const RanksReady& message, std::size_t rank_count);

// To a node.
[[nodiscard]] Misfit misfit_of(const Plan& plan, const StepWanted& message);

/// The plan that a node is given. The schedule travels as it is, so that one from a file needs no
/// file here.
/// @param custom_layer that this process has, for a model that has one; may be null.
/// @returns what is wrong with the configuration or the schedule, `invalid_config` if the director
///          has another layer, or `internal` if the ranks are not placed on the nodes that are
///          named.
[[nodiscard]] Expected<Plan> plan_of(const RanksGiven& message,
                                     const std::shared_ptr<const CustomLayer>& custom_layer);

}  // namespace troupe::actors
