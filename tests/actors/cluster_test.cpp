// Runs whose ranks are performed by other processes.

#include "troupe/actors/cluster.hpp"

#include <array>
#include <csignal>
#include <future>
#include <ostream>

#include <gtest/gtest.h>
#include <unistd.h>

#include "troupe/transport/gate.hpp"
#include "troupe/transport/tunnel.hpp"

#include "../storage/temporary_folder.hpp"
#include "../transport/authority.hpp"
#include "../transport/wire.hpp"
#include "cluster_impl.hpp"
#include "node_processes.hpp"
#include "tiny_training.hpp"

namespace troupe::actors {
namespace {

ClusterOptions options_of(std::uint32_t node_count, bool shared_memory) {
  return {.node_count = node_count,
          .secret = "a secret of sixteen characters and more",
          .shared_memory = shared_memory};
}

/// A cluster, its processes and their trainer, ended in the opposite order.
struct Ensemble {
  Ensemble(const Config& config, ClusterOptions with)
      : options{std::move(with)},
        cluster{Cluster::listen(options).value()},
        nodes{options.node_count, *cluster, options},
        trainer{Trainer::make_on(*cluster, make_plan(config).value())} {}

  void end() {
    trainer->reset();
    cluster.reset();
  }

  ClusterOptions options;
  std::unique_ptr<Cluster> cluster;
  NodeProcesses nodes;
  Expected<std::unique_ptr<Trainer>> trainer;
};

struct Case {
  const char* name;
  const char* schedule;
  GridExtent parallel;
  std::uint32_t chunks;
  bool tied;
  Policy policy = Policy::in_order;
  OptimizerSharding sharding = OptimizerSharding::none;
  Precision precision = Precision::fp32;
  WireFormat wire = WireFormat::fp32;
  double dropout = 0.0;
  std::shared_ptr<const CustomLayer> custom_layer{};
  Synchronization synchronization = Synchronization::all_reduce;
  std::uint32_t staleness = 0;

  friend void PrintTo(const Case& grid, std::ostream* out) { *out << grid.name; }
};

class SameBitsOfProcesses : public testing::TestWithParam<std::tuple<std::uint32_t, bool, Case>> {};

TEST_P(SameBitsOfProcesses, AsInOne) {
  const auto& [node_count, shared_memory, grid] = GetParam();
  auto config = tiny_config(grid.tied);
  config.parallel = grid.parallel;
  config.schedule.name = grid.schedule;
  config.schedule.chunks = grid.chunks;
  config.schedule.policy = grid.policy;
  config.train.optimizer_sharding = grid.sharding;
  config.train.synchronization = grid.synchronization;
  config.train.staleness = grid.staleness;
  config.train.validation_interval = 4;
  config.train.precision = grid.precision;
  config.train.loss_scale = overflowing_scale;
  config.train.gradient_wire = grid.wire;
  config.model.dropout = grid.dropout;
  config.model.attention_dropout = grid.dropout;
  if (grid.custom_layer) config.model.family = Family::custom;
  config.model.custom_layer = grid.custom_layer;
  config.schedule.microbatches /= grid.parallel.data;
  config.train.steps = grid.precision == Precision::fp16 ? 12 : 5;
  auto alone = Trainer::make(make_plan(config).value(), source_of(config), parts_of_tests());
  const auto expected = train(**alone);
  const auto evaluated = (*alone)->evaluate_step(1);
  if (grid.precision == Precision::fp16) {
    EXPECT_EQ(expected.norms.front(), 0.0) << "a step is skipped";
    EXPECT_GT(expected.norms.back(), 0.0) << "and another is not";
  }

  Ensemble run{config, options_of(node_count, shared_memory)};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  EXPECT_EQ(train(**run.trainer), expected);
  const auto report = (*run.trainer)->evaluate_step(1);
  ASSERT_TRUE(report) << report.error().context;
  EXPECT_EQ(report->loss, evaluated->loss);
  EXPECT_GT(*(*run.trainer)->measure_peak_flops(), 0.0);
  run.end();
  for (std::uint32_t node = 0; node < node_count; ++node) {
    const auto end = run.nodes.wait(node);
    EXPECT_EQ(end.exit_code, 0) << end.said;
  }
}

const Case cases[] = {
    {.name = "layer_of_ones_own",
     .schedule = "1f1b",
     .parallel = {.data = 1, .tensor = 2, .pipeline = 2},
     .chunks = 1,
     .tied = true,
     .custom_layer = parallel_block()},
    {"pipeline_of_4", "1f1b", {.data = 1, .tensor = 1, .pipeline = 4}, 1, true},
    {"two_by_two", "1f1b", {.data = 2, .tensor = 1, .pipeline = 2}, 1, true},
    {"interleaved", "interleaved-1f1b", {.data = 1, .tensor = 1, .pipeline = 4}, 2, false},
    {"zero_bubble_v", "zb-v", {.data = 1, .tensor = 1, .pipeline = 4}, 1, true},
    {"two_directions", "dualpipe", {.data = 1, .tensor = 1, .pipeline = 4}, 1, true},
    {"replicas", "1f1b", {.data = 4, .tensor = 1, .pipeline = 1}, 1, false},
    {"shards", "1f1b", {.data = 1, .tensor = 2, .pipeline = 2}, 1, true},
    {"leaders", "1f1b", {.data = 1, .tensor = 2, .pipeline = 2}, 1, true, Policy::backward_first},
    {"more_shards_first", "1f1b", {.data = 1, .tensor = {2, 1, 2}, .pipeline = 3}, 1, true},
    {"more_shards_last",
     "interleaved-1f1b",
     {.data = 2, .tensor = {1, 2}, .pipeline = 2},
     2,
     true,
     Policy::in_order,
     OptimizerSharding::zero2},
    {"leaders_of_unequal_shards",
     "1f1b",
     {.data = 1, .tensor = {2, 1, 2}, .pipeline = 3},
     1,
     false,
     Policy::backward_first},
    {"zero1",
     "1f1b",
     {.data = 2, .tensor = 1, .pipeline = 2},
     1,
     true,
     Policy::in_order,
     OptimizerSharding::zero1},
    {"zero2",
     "1f1b",
     {.data = 2, .tensor = 1, .pipeline = 2},
     1,
     true,
     Policy::in_order,
     OptimizerSharding::zero2},
    {"fp16",
     "1f1b",
     {.data = 2, .tensor = 1, .pipeline = 2},
     1,
     true,
     Policy::in_order,
     OptimizerSharding::zero1,
     Precision::fp16},
    {"wire_of_bf16",
     "zb-h1",
     {.data = 2, .tensor = 1, .pipeline = 2},
     1,
     true,
     Policy::in_order,
     OptimizerSharding::none,
     Precision::fp32,
     WireFormat::bf16},
    {"fp16_over_bf16",
     "1f1b",
     {.data = 4, .tensor = 1, .pipeline = 1},
     1,
     false,
     Policy::in_order,
     OptimizerSharding::zero2,
     Precision::fp16,
     WireFormat::bf16},
    {"dropout",
     "1f1b",
     {.data = 2, .tensor = 2, .pipeline = 1},
     1,
     true,
     Policy::in_order,
     OptimizerSharding::none,
     Precision::fp32,
     WireFormat::fp32,
     0.1},
    {"servers",
     "1f1b",
     {.data = 2, .tensor = {2, 1}, .pipeline = 2},
     1,
     true,
     Policy::in_order,
     OptimizerSharding::none,
     Precision::fp32,
     WireFormat::fp32,
     0.0,
     Synchronization::parameter_server},
    {"servers_of_fp16_over_bf16",
     "zb-h1",
     {.data = 2, .tensor = 1, .pipeline = 2},
     1,
     true,
     Policy::in_order,
     OptimizerSharding::none,
     Precision::fp16,
     WireFormat::bf16,
     0.0,
     Synchronization::parameter_server},
    {"stale",
     "1f1b",
     {.data = 2, .tensor = 1, .pipeline = 2},
     1,
     true,
     Policy::in_order,
     OptimizerSharding::none,
     Precision::fp32,
     WireFormat::fp32,
     0.1,
     Synchronization::parameter_server,
     2},
};

std::string name_of(const testing::TestParamInfo<SameBitsOfProcesses::ParamType>& instance) {
  const auto& [nodes, shared_memory, grid] = instance.param;
  return std::string{grid.name} + "_" + std::to_string(nodes)
         + (shared_memory ? "_shared_memory" : "_tcp");
}

/// The first case meets every number of processes over either transport, each other one two numbers
/// and both transports: in turns, so that numbers and transports meet all kinds of grids.
std::vector<SameBitsOfProcesses::ParamType> runs_of_processes() {
  std::vector<SameBitsOfProcesses::ParamType> runs;
  for (const std::uint32_t node_count : {1U, 2U, 4U}) {
    for (const bool shared_memory : {true, false}) {
      runs.emplace_back(node_count, shared_memory, cases[0]);
    }
  }
  for (std::size_t i = 1; i < std::size(cases); ++i) {
    const bool is_odd = i % 2 == 1;
    runs.emplace_back(2, is_odd, cases[i]);
    runs.emplace_back(4, !is_odd, cases[i]);
  }
  return runs;
}

INSTANTIATE_TEST_SUITE_P(Runs, SameBitsOfProcesses, testing::ValuesIn(runs_of_processes()),
                         name_of);

TEST(Cluster, ReportsEachPassOfEachRankByTheDirectorsClock) {
  auto config = tiny_config(false);
  config.parallel.pipeline = 2;
  const auto plan = make_plan(config).value();
  Ensemble run{config, options_of(2, true)};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  const auto report = (*run.trainer)->train_step();
  ASSERT_TRUE(report) << report.error().context;
  ASSERT_EQ(report->ranks.size(), 2U);
  constexpr std::int64_t inaccuracy_ns = 5'000'000;
  for (std::uint32_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(report->ranks[rank].coordinate.pipeline, RankIndex{rank});
    std::vector<Action> actions;
    for (const auto& entry : report->ranks[rank].trace) {
      if (entry.kind == TraceEntry::Kind::pass) actions.push_back(entry.action);
      EXPECT_LE(entry.begin_ns, entry.end_ns);
      EXPECT_GT(entry.begin_ns, report->begin_ns - inaccuracy_ns);
      EXPECT_LT(entry.end_ns, report->end_ns + inaccuracy_ns);
    }
    EXPECT_EQ(actions, plan.training.ranks[rank]);
    EXPECT_GT(report->ranks[rank].account.total_ns(), 0);
  }
}

TEST(Cluster, IsNotMadeOfNodesWithAnotherLayer) {
  auto config = tiny_config(true);
  config.model.family = Family::custom;
  config.model.custom_layer = tangle();
  Ensemble run{config, options_of(1, true)};
  ASSERT_FALSE(run.trainer);
  const auto& sentence = run.trainer.error().context;
  EXPECT_EQ(run.trainer.error().code, Errc::invalid_config);
  EXPECT_NE(sentence.find(": the model is made of the layer \"tangle "), std::string::npos)
      << sentence;
  EXPECT_NE(sentence.find("\", but this node's is \"parallel-block "), std::string::npos)
      << sentence;
  run.cluster.reset();
  EXPECT_EQ(run.nodes.wait(0).exit_code, 1);
}

TEST(Cluster, NamesTheNodeThatDied) {
  auto config = tiny_config(false);
  config.parallel.pipeline = 2;
  Ensemble run{config, options_of(2, true)};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  ASSERT_TRUE((*run.trainer)->train_step());
  run.nodes.send_signal(1, SIGKILL);
  run.cluster->tell_process_ended(static_cast<std::uint32_t>(run.nodes.process(1)),
                                  "was killed by signal 9 (Killed)");
  const auto report = [&]() -> Expected<StepReport> {
    while (true) {
      auto step = (*run.trainer)->train_step();
      if (!step) return step;
    }
  }();
  const auto process = std::to_string(run.nodes.process(1));
  EXPECT_NE(report.error().context.find("(process " + process), std::string::npos)
      << report.error().context;
  EXPECT_NE(report.error().context.find("was killed by signal 9 (Killed)"), std::string::npos)
      << report.error().context;
  run.end();
  const auto end = run.nodes.wait(0);
  EXPECT_EQ(end.exit_code, 1);
  EXPECT_NE(end.said.find("was killed by signal 9 (Killed)"), std::string::npos) << end.said;
}

struct Encrypted : testing::Test {
  storage::TemporaryFolder folder;
  transport::Authority authority{folder.path()};
  transport::TlsFiles files = authority.issue("node");
};

TEST_F(Encrypted, RunsHaveTheSameBits) {
  auto config = tiny_config(true);
  config.parallel = {.data = 2, .tensor = 1, .pipeline = 2};
  config.schedule.microbatches /= 2;
  auto alone = Trainer::make(make_plan(config).value(), source_of(config));
  const auto expected = train(**alone);
  auto options = options_of(2, true);
  options.tls = files;
  Ensemble run{config, options};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  EXPECT_EQ(train(**run.trainer), expected);
  run.end();
  for (std::uint32_t node = 0; node < 2; ++node) {
    const auto end = run.nodes.wait(node);
    EXPECT_EQ(end.exit_code, 0) << end.said;
  }
}

/// By CAF alone: there is no other node that would miss it.
TEST_F(Encrypted, ANodeThatStopsAnsweringIsLost) {
  const auto config = tiny_config(false);
  auto options = options_of(1, true);
  options.tls = files;
  options.heartbeat = {.interval = std::chrono::milliseconds{300},
                       .timeout = std::chrono::milliseconds{3000}};
  Ensemble run{config, options};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  run.nodes.send_signal(0, SIGSTOP);
  const auto report = (*run.trainer)->train_step();
  ASSERT_FALSE(report);
  EXPECT_NE(report.error().context.find("stopped answering"), std::string::npos)
      << report.error().context;
}

TEST_F(Encrypted, ANodeThatIsKilledIsLostAtOnce) {
  auto config = tiny_config(false);
  config.parallel.pipeline = 2;
  auto options = options_of(2, true);
  options.tls = files;
  options.heartbeat.timeout = std::chrono::hours{1};
  Ensemble run{config, options};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  run.nodes.send_signal(0, SIGKILL);
  const auto report = (*run.trainer)->train_step();
  ASSERT_FALSE(report);
  EXPECT_NE(report.error().context.find("is lost"), std::string::npos) << report.error().context;
  run.end();
  EXPECT_EQ(run.nodes.wait(1).exit_code, 1);
}

/// What a node and its director say to each other.
std::string overhear(const std::optional<transport::TlsFiles>& files) {
  auto options = options_of(1, true);
  options.tls = files;
  auto cluster = Cluster::listen(options).value();
  const transport::Server relay;
  auto node = std::async(std::launch::async, [&] {
    return perform_as_node(
        {.director_port = relay.port(), .secret = options.secret, .tls = files},
        [](const Plan& plan) -> Expected<BatchSource> { return source_of(plan.config); });
  });
  const auto to_node = relay.accept();
  const auto to_director = transport::Wire::connect(cluster->port());
  const auto copy = [](const transport::Wire& from, const transport::Wire& to) {
    std::string bytes;
    for (std::string byte; !(byte = from.receive(1)).empty() && to.send(byte);) bytes += byte;
    to.finish_sending();
    return bytes;
  };
  auto up = std::async(std::launch::async, copy, std::cref(to_node), std::cref(to_director));
  auto down = std::async(std::launch::async, copy, std::cref(to_director), std::cref(to_node));
  {
    const auto trainer = Trainer::make_on(*cluster, make_plan(tiny_config(false)).value());
    EXPECT_TRUE(trainer) << trainer.error().context;
  }
  cluster.reset();
  EXPECT_TRUE(node.get());
  return up.get() + down.get();
}

TEST_F(Encrypted, NobodyCanReadWhatTravels) {
  constexpr const char* message = "troupe.JoinAsked";
  EXPECT_NE(overhear(std::nullopt).find(message), std::string::npos);
  EXPECT_EQ(overhear(files).find(message), std::string::npos);
}

TEST_F(Encrypted, BadFilesStartNothing) {
  files.key_path = authority.issue("other").key_path;
  const auto sentence = "the TLS key " + files.key_path + " does not belong to the certificate "
                        + files.certificate_path + ": give the two that were made together";
  auto options = options_of(1, true);
  options.tls = files;
  const auto cluster = Cluster::listen(options);
  ASSERT_FALSE(cluster);
  EXPECT_EQ(cluster.error().context, sentence);
  const auto node = perform_as_node({.secret = options.secret, .tls = files}, {});
  ASSERT_FALSE(node);
  EXPECT_EQ(node.error().context, sentence);
}

/// Each of two kinds of misconfiguration is told at once, and the cluster still waits.
TEST_F(Encrypted, ADirectorAndANodeThatDoNotFitAreTold) {
  const transport::Authority stranger{folder.path(), "stranger"};
  const auto refusal_of = [&](const std::optional<transport::TlsFiles>& director,
                              const std::optional<transport::TlsFiles>& node) {
    auto options = options_of(1, true);
    options.tls = director;
    const auto cluster = Cluster::listen(options).value();
    const auto outcome = perform_as_node(
        {.director_port = cluster->port(), .secret = options.secret, .tls = node}, {});
    EXPECT_FALSE(outcome);
    const auto name = "the director at 127.0.0.1:" + std::to_string(cluster->port()) + " ";
    EXPECT_TRUE(outcome.error().context.starts_with(name)) << outcome.error().context;
    return outcome.error().context.substr(name.size());
  };
  EXPECT_TRUE(refusal_of(files, std::nullopt).starts_with("wants TLS, "));
  EXPECT_TRUE(refusal_of(std::nullopt, files).starts_with("runs without TLS, "));
  EXPECT_TRUE(refusal_of(files, stranger.issue("other")).starts_with("trusts another TLS "));
}

/// A director by its secret and its greeting, behind whose gate there is none.
TEST_F(Encrypted, ANodeThatGetsNoTlsSaysSo) {
  const auto options = options_of(1, true);
  const auto refusal_of = [&](bool speaks) {
    const transport::Server behind;
    const auto gate =
        transport::Gate::open(
            {.inner_port = behind.port(),
             .secret = options.secret,
             .version = TROUPE_VERSION,
             .tls_authority = check_tls_files(files, transport::TlsSide::director).value()})
            .value();
    auto node = std::async(std::launch::async, [&] {
      return perform_as_node({.director_port = gate->port(),
                              .secret = options.secret,
                              .tls = files,
                              .heartbeat = {.timeout = std::chrono::milliseconds{500}}},
                             {});
    });
    const auto wire = behind.accept();
    EXPECT_EQ(wire.receive(2), "\x16\x03") << "a handshake begins";
    if (speaks) wire.send("HTTP/1.1 400 Bad Request\r\n\r\n");
    const auto outcome = node.get();
    EXPECT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, Errc::peer_unreachable);
    auto sentence = outcome.error().context;
    const auto port = std::to_string(gate->port());
    sentence.replace(sentence.find(port), port.size(), "PORT");
    return sentence;
  };
  for (const bool speaks : {true, false}) {
    const auto sentence = refusal_of(speaks);
    EXPECT_TRUE(sentence.starts_with(
        "the director at 127.0.0.1:PORT let this node in, but no TLS came about ("))
        << sentence;
    EXPECT_TRUE(sentence.ends_with("): its log may say why; compare both clocks")) << sentence;
  }
}

/// CAF's own heartbeat closes a connection that is looked at before its first answer has come.
TEST(Cluster, ANodeThatLooksForSignsOfLifeAllTheTimeIsLetIn) {
  auto config = tiny_config(false);
  config.parallel.pipeline = 4;
  auto options = options_of(4, true);
  options.heartbeat = {.interval = std::chrono::milliseconds{1},
                       .timeout = std::chrono::milliseconds{20000}};
  options.patience = options.heartbeat.timeout;
  Ensemble run{config, options};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  run.end();
  for (std::uint32_t node = 0; node < options.node_count; ++node) {
    EXPECT_EQ(run.nodes.wait(node).exit_code, 0);
  }
}

TEST(Cluster, ANodeThatStopsBeforeItJoinsIsLost) {
  auto options = options_of(1, true);
  options.heartbeat.timeout = std::chrono::milliseconds{200};
  const auto cluster = Cluster::listen(options).value();
  const auto silent = transport::Tunnel::connect({.host = "127.0.0.1",
                                                  .port = cluster->port(),
                                                  .bind_host = {},
                                                  .secret = options.secret,
                                                  .version = TROUPE_VERSION});
  ASSERT_TRUE(silent) << silent.error().context;
  const auto trainer = Trainer::make_on(*cluster, make_plan(tiny_config(false)).value());
  ASSERT_FALSE(trainer);
  EXPECT_EQ(trainer.error().context,
            "a node on 127.0.0.1 is lost: it has the secret but did not join within 200 ms; see "
            "whether it still runs");
}

TEST(Cluster, AProcessThatEndsBeforeItJoinsIsQuoted) {
  const auto cluster = Cluster::listen(options_of(1, true)).value();
  cluster->tell_process_ended(1234, "exited with code 2", "troupe: there is no such network");
  const auto trainer = Trainer::make_on(*cluster, make_plan(tiny_config(false)).value());
  ASSERT_FALSE(trainer);
  EXPECT_EQ(trainer.error().context,
            "process 1234 exited with code 2 before it joined as a node; its last line: troupe: "
            "there is no such network");
}

/// Two of one process: each would answer for the other.
TEST(Cluster, AProcessJoinsOnce) {
  const auto options = options_of(2, true);
  auto cluster = Cluster::listen(options).value();
  const NodeOptions node{.director_port = cluster->port(), .secret = options.secret};
  const auto join = [&] {
    return perform_as_node(
        node, [](const Plan& plan) -> Expected<BatchSource> { return source_of(plan.config); });
  };
  auto first = std::async(std::launch::async, join);
  auto second = std::async(std::launch::async, join);
  while (first.wait_for(std::chrono::milliseconds{1}) != std::future_status::ready
         && second.wait_for(std::chrono::milliseconds{1}) != std::future_status::ready) {
  }
  cluster.reset();  // Tells the other that the run is over.
  const auto outcomes = std::array{first.get(), second.get()};
  const auto& refused = outcomes[0] ? outcomes[1] : outcomes[0];
  EXPECT_TRUE(outcomes[0] || outcomes[1]);
  ASSERT_FALSE(refused);
  EXPECT_NE(
      refused.error().context.find("refuses this node: process " + std::to_string(::getpid())),
      std::string::npos)
      << refused.error().context;
  EXPECT_NE(refused.error().context.find("has joined already"), std::string::npos);
}

TEST(Cluster, ANodeThatStopsAnsweringIsLost) {
  auto config = tiny_config(false);
  config.parallel.pipeline = 2;
  auto options = options_of(2, true);
  options.heartbeat = {.interval = std::chrono::milliseconds{300},
                       .timeout = std::chrono::milliseconds{3000}};
  Ensemble run{config, options};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  run.nodes.send_signal(0, SIGSTOP);
  const auto report = (*run.trainer)->train_step();
  ASSERT_FALSE(report);
  EXPECT_NE(report.error().context.find("stopped answering"), std::string::npos)
      << report.error().context;
  run.end();
  EXPECT_EQ(run.nodes.wait(1).exit_code, 1);
}

TEST(Cluster, ANodeThatIsAskedForWhatNoDirectorAsksForEndsWithASentence) {
  const auto expect_refused = [](const std::string& what, auto... questions) {
    Ensemble run{tiny_config(false), options_of(1, true)};
    ASSERT_TRUE(run.trainer) << run.trainer.error().context;
    const auto node = run.cluster->impl().gather()->nodes[0];
    (caf::anon_send(node, questions), ...);
    const auto end = run.nodes.wait(0);
    EXPECT_EQ(end.exit_code, 1) << what;
    EXPECT_EQ(end.said, "the director asks for " + what + ", which is a bug\n");
  };
  const ParameterAsked first{.stage = 0, .index = 0, .number = 1};
  expect_refused("a parameter by a transfer of the past", first, first);
  expect_refused("a parameter that this node does not hold", ParameterAsked{1, 0, 1});
  expect_refused("a parameter that this node does not hold", ParameterAsked{0, 9999, 1});
  expect_refused("a step of no kind", StepWanted{1, StepKind{2}});
  expect_refused("a step with a loss scale that is none", StepWanted{1, StepKind::training, 3.0});
}

/// The node has stopped, and its heartbeat would be waited for, for an hour: only the director's
/// own links can tell.
TEST(Cluster, ANodeThatTheDirectorsLinksNoLongerReachIsLost) {
  auto options = options_of(1, true);
  options.heartbeat.timeout = std::chrono::hours{1};
  Ensemble run{tiny_config(false), options};
  ASSERT_TRUE(run.trainer) << run.trainer.error().context;
  run.nodes.send_signal(0, SIGSTOP);
  auto& director = run.cluster->impl();
  const auto address = director.gather()->facts[0].fabric_address;
  director.fabric().give_up(address, "its machine is cut off");
  auto step = std::async(std::launch::async, [&] { return (*run.trainer)->train_step(); });
  if (step.wait_for(std::chrono::minutes{1}) != std::future_status::ready) {
    ADD_FAILURE() << "the step does not end";
    run.nodes.send_signal(0, SIGKILL);
  }
  const auto report = step.get();
  ASSERT_FALSE(report);
  const auto& sentence = report.error().context;
  EXPECT_TRUE(sentence.starts_with("the director cannot reach node 0 (process ")) << sentence;
  EXPECT_NE(sentence.find("): the process behind " + address + " is lost: its machine is cut off"),
            std::string::npos)
      << sentence;
}

}  // namespace
}  // namespace troupe::actors

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  troupe::actors::perform_if_node(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
