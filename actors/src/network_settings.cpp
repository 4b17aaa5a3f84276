#include "network_settings.hpp"

#include <caf/io/all.hpp>
#include <caf/io/basp_broker.hpp>
#include <caf/openssl/manager.hpp>

#include "troupe/actors/node_messages.hpp"

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(caf::actor_clock::time_point)

namespace troupe::actors {

NetworkSettings::NetworkSettings(const std::optional<transport::TlsFiles>& tls) {
  load<caf::io::middleman>();
  if (tls) {  // Without all three, CAF would speak TLS with anybody.
    load<caf::openssl::manager>();
    openssl_certificate = tls->certificate_path;
    openssl_key = tls->key_path;
    openssl_cafile = tls->authority_path;
  }
  set("middleman.heartbeat-interval", caf::timespan{0});  // See begin_heartbeat.
  add_message_type<StepWanted>("troupe.StepWanted");
  add_message_type<StepReported>("troupe.StepReported");
  add_message_type<UpdateStarted>("troupe.UpdateStarted");
  add_message_type<UpdateSkipped>("troupe.UpdateSkipped");
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

/// Sends CAF's broker the message by which it would begin by itself if settings asked for it.
void begin_heartbeat(caf::actor_system& system, const Heartbeat& heartbeat) {
  const auto broker = system.middleman().named_broker<caf::io::basp_broker>(caf::atom("BASP"));
  caf::anon_send(broker, caf::tick_atom_v, system.clock().now(), caf::timespan{heartbeat.interval},
                 caf::timespan{heartbeat.timeout});
}

}  // namespace troupe::actors
