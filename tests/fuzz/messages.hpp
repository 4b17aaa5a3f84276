// What the inputs of read_message are made of: messages, each behind its place in this list.
#pragma once

#include <tuple>

#include "troupe/actors/messages.hpp"
#include "troupe/actors/node_messages.hpp"

namespace troupe::actors {

using FuzzedMessages =
    std::tuple<StepReported, RankFinished, RankFailed, LoadFailed, JoinAsked, PeerGone, RanksGiven,
               RanksReady, StepWanted, ClockAsked, ClockTold, PeakAsked, PeakTold, RunEnded,
               JoinAnswered, ParameterAsked, UpdateStarted, UpdateSkipped>;

}  // namespace troupe::actors
