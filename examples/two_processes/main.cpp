// Trains a tiny GPT on one sentence, as two pipeline stages in two processes, of one machine or of
// two machines.
//
//   two_processes direct HOST PORT INTERFACE SECRET    performs a stage, and directs the run
//   two_processes join   HOST PORT INTERFACE SECRET    performs the other
//   two_processes alone                                one process performs both, for comparison
//
// HOST and PORT are where the first listens, INTERFACE names the network that leads from each to
// the other, and SECRET a file that its owner alone can read, the same on both sides. A director
// may have a process of its own, too, and then outlives a stage that crashes.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>

#include "troupe/actors/cluster.hpp"
#include "troupe/actors/node.hpp"
#include "troupe/actors/trainer.hpp"
#include "troupe/transport/secret.hpp"

namespace {

using troupe::Expected;
using troupe::Plan;
using troupe::actors::BatchSource;
using troupe::actors::Cluster;
using troupe::actors::Trainer;

constexpr std::string_view text =
    "All the world's a stage, and all the men and women merely players. ";

/// Each sequence reads on from its own place in the sentence, which has no end.
void fill(troupe::StepKind, std::uint32_t step, std::uint32_t, troupe::stages::Batch& batch) {
  for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
    const std::size_t place = step + i + i / batch.sequence * 7;
    batch.tokens[i] = static_cast<unsigned char>(text[place % text.size()]);
    batch.targets[i] = static_cast<unsigned char>(text[(place + 1) % text.size()]);
  }
}

/// What both processes must agree on travels from the director to the nodes in the plan.
Expected<Plan> plan() {
  troupe::Config config;
  config.model = {.layers = 2, .heads = 2, .hidden = 32, .sequence = 32};
  config.parallel = {.data = 1, .tensor = 1, .pipeline = 2};
  config.schedule = {.name = "1f1b", .microbatches = 4, .microbatch_size = 4};
  config.train = {.steps = 100, .learning_rate = 1e-2, .warmup_steps = 10};
  return troupe::make_plan(config);
}

int fail(const troupe::Error& error) {
  std::fprintf(stderr, "two_processes: %s\n", error.context.c_str());
  return 1;
}

/// Prints every digit: the losses have the same bits wherever the stages are.
int train(const Expected<std::unique_ptr<Trainer>>& trainer) {
  if (!trainer) return fail(trainer.error());
  for (std::uint32_t step = 1; step <= (*trainer)->plan().config.train.steps; ++step) {
    const auto report = (*trainer)->train_step();
    if (!report) return fail(report.error());
    std::printf("step %3u  loss %.17g\n", report->step, report->loss);
  }
  return 0;
}

/// Where the processes meet.
struct Place {
  std::string host;
  std::uint16_t port;
  std::string network_interface;
  std::string secret;
};

int join(const Place& place) {
  const auto ended = troupe::actors::perform_as_node(
      {.director_host = place.host,
       .director_port = place.port,
       .secret = place.secret,
       .network_interface = place.network_interface},
      [](const Plan&) -> Expected<BatchSource> { return BatchSource{fill}; });
  return ended ? 0 : fail(ended.error());
}

int direct(const Place& place) {
  const auto planned = plan();
  if (!planned) return fail(planned.error());
  std::jthread node;  // Of this process; it ends when the cluster has told it to.
  const auto cluster = Cluster::listen({.node_count = 2,
                                        .listen_host = place.host,
                                        .listen_port = place.port,
                                        .secret = place.secret,
                                        .network_interface = place.network_interface});
  if (!cluster) return fail(cluster.error());
  std::fprintf(stderr, "listening at %s %u\n", place.host.c_str(), (*cluster)->port());
  node = std::jthread{join,
                      Place{place.host, (*cluster)->port(), place.network_interface, place.secret}};
  return train(Trainer::make_on(**cluster, *planned));
}

int alone() {
  const auto planned = plan();
  return planned ? train(Trainer::make(*planned, fill)) : fail(planned.error());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view part = argc > 1 ? argv[1] : "";
  if (part == "alone") return alone();
  if (argc != 6 || (part != "direct" && part != "join")) {
    std::fprintf(stderr, "usage: two_processes alone | direct|join HOST PORT INTERFACE SECRET\n");
    return 2;
  }
  const auto secret = troupe::transport::read_secret(argv[5]);
  if (!secret) return fail(secret.error());
  const Place place{argv[2], static_cast<std::uint16_t>(std::atoi(argv[3])), argv[4], *secret};
  return part == "direct" ? direct(place) : join(place);
}
