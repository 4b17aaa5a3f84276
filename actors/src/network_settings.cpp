#include "network_settings.hpp"

#include <caf/io/all.hpp>

#include "troupe/actors/node_messages.hpp"

namespace troupe::actors {

NetworkSettings::NetworkSettings(const Heartbeat& heartbeat) {
  load<caf::io::middleman>();
  set("middleman.heartbeat-interval", caf::timespan{heartbeat.interval});
  set("middleman.connection-timeout", caf::timespan{heartbeat.timeout});
  add_message_type<StepWanted>("troupe.StepWanted");
  add_message_type<StepReported>("troupe.StepReported");
  add_message_type<UpdateStarted>("troupe.UpdateStarted");
  add_message_type<RankFinished>("troupe.RankFinished");
  add_message_type<RankFailed>("troupe.RankFailed");
  add_message_type<LoadFailed>("troupe.LoadFailed");
  add_message_type<RanksGiven>("troupe.RanksGiven");
  add_message_type<RanksReady>("troupe.RanksReady");
  add_message_type<ClockAsked>("troupe.ClockAsked");
  add_message_type<ClockTold>("troupe.ClockTold");
  add_message_type<PeakAsked>("troupe.PeakAsked");
  add_message_type<PeakTold>("troupe.PeakTold");
  add_message_type<ParameterAsked>("troupe.ParameterAsked");
  add_message_type<RunEnded>("troupe.RunEnded");
  add_message_type<JoinAsked>("troupe.JoinAsked");
  add_message_type<JoinAnswered>("troupe.JoinAnswered");
  add_message_type<PeerGone>("troupe.PeerGone");
}

}  // namespace troupe::actors
