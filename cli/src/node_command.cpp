#include <atomic>
#include <csignal>

#include <fmt/format.h>
#include <unistd.h>

#include "troupe/actors/node.hpp"
#include "troupe/transport/secret.hpp"

#include "child_processes.hpp"
#include "commands.hpp"
#include "corpus_batches.hpp"
#include "launch.hpp"
#include "machine.hpp"
#include "network_interface.hpp"
#include "open_files.hpp"
#include "tls_options.hpp"

namespace troupe::cli {

namespace {

Expected<actors::BatchSource> open_source(const Plan& plan) {
  auto batches = CorpusBatches::open(plan);
  if (!batches) return batches.error();
  return CorpusBatches::source(std::move(*batches));
}

Expected<std::string> secret_of(const NodeArguments& arguments) {
  if (!arguments.secret.empty()) return arguments.secret;
  if (arguments.secret_descriptor >= 0) return read_inherited_secret(arguments.secret_descriptor);
  return transport::read_secret(arguments.secret_path);
}

/// Says why the run ended, and gives the rest, which may wait for a pass that is still computing, a
/// little time.
void tell(const Expected<Done>& outcome) {
  if (outcome) return;
  fmt::print(stderr, "troupe: {}\n", outcome.error().context);
  constexpr unsigned patience_s = 2;
  std::signal(SIGALRM, [](int) { ::_exit(exit_failure); });
  ::alarm(patience_s);
}

}  // namespace

Expected<ExitCode> node(const NodeArguments& arguments) {
  const auto director = parse_endpoint("--join", arguments.join);
  if (!director) return director.error();
  auto secret = secret_of(arguments);
  if (!secret) return secret.error();
  auto tls = tls_of(arguments.tls);
  if (!tls) return tls.error();
  const auto network = network_interface_or(arguments.network_interface, director->host);
  if (!network) return network.error();
  raise_open_files_limit();
  // Whoever started this process sends the director the same signal, which then ends the run.
  if (arguments.secret_path.empty()) {
    std::signal(SIGINT, SIG_IGN);
    std::signal(SIGTERM, SIG_IGN);
  }
  const auto timeout =
      std::chrono::milliseconds{static_cast<std::int64_t>(arguments.heartbeat_seconds * 1e3)};
  std::atomic<bool> is_told = false;
  const auto outcome = actors::perform_as_node(
      {.director_host = director->host,
       .director_port = director->port,
       .secret = std::move(*secret),
       .tls = std::move(*tls),
       .network_interface = *network,
       .shared_memory = arguments.shared_memory,
       .available_memory_bytes = look_at_machine().usable_memory_bytes(),
       .heartbeat = {.interval = timeout / 10, .timeout = timeout},
       // Those who hang up when the run has ended have heard of it: its cause is the last word.
       .on_refused =
           [&](const std::string& sentence) {
             if (!is_told) fmt::print(stderr, "troupe: {}\n", sentence);
           },
       .on_ended =
           [&](const Expected<Done>& how) {
             is_told = true;
             std::signal(SIGTERM, SIG_DFL);  // Whatever is left may be ended now.
             tell(how);
           }},
      open_source);
  if (!outcome && !is_told) return outcome.error();
  return outcome ? exit_success : exit_failure;
}

}  // namespace troupe::cli
