#include "performers.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "troupe/actors/cluster.hpp"
#include "troupe/transport/secret.hpp"

#include "child_processes.hpp"
#include "network_interface.hpp"
#include "open_files.hpp"
#include "shared_secret.hpp"
#include "tls_options.hpp"

namespace troupe::cli {

namespace {

using actors::Trainer;

class ThisProcess final : public Performers {
public:
  Expected<std::unique_ptr<Trainer>> make_trainer(
      const Plan& plan, const std::shared_ptr<const CorpusBatches>& batches) override {
    return Trainer::make(plan, CorpusBatches::source(batches));
  }
};

/// Processes of this machine or of others, some of which this one started.
class OtherProcesses final : public Performers {
public:
  /// @param shared_secret Lies there for those who join as long as this lives; or nothing.
  explicit OtherProcesses(std::unique_ptr<actors::Cluster> cluster,
                          std::unique_ptr<SharedSecret> shared_secret = nullptr)
      : shared_secret_{std::move(shared_secret)}, cluster_{std::move(cluster)} {}

  [[nodiscard]] Expected<Done> start(std::vector<ChildProgram> programs) {
    auto children = ChildProcesses::start(
        std::move(programs),
        {.on_line = pass_lines_through(), .on_end = [this](const ChildEnd& end) {
           cluster_->tell_process_ended(static_cast<std::uint32_t>(end.pid), end.how,
                                        end.last_line);
         }});
    if (!children) return children.error();
    children_ = std::move(*children);
    return Done{};
  }

  Expected<std::unique_ptr<Trainer>> make_trainer(
      const Plan& plan, const std::shared_ptr<const CorpusBatches>& batches) override {
    // Nodes read the corpus themselves, and may have another working directory, or another corpus.
    auto theirs = plan;
    theirs.config.data.fingerprint = batches->fingerprint();
    std::error_code ignored;
    theirs.config.data.text =
        std::filesystem::absolute(plan.config.data.text, ignored).lexically_normal().string();
    return Trainer::make_on(*cluster_, theirs);
  }

  /// The cluster says goodbye, the children leave, and what they say of their ends reaches nobody.
  ~OtherProcesses() override {
    cluster_->close();
    // They have left the run by now, if they can: what remains is the end of their processes.
    constexpr std::chrono::milliseconds farewell{500};
    if (children_) (void)children_->wait_for_all(farewell);
    children_.reset();
  }

private:
  std::unique_ptr<SharedSecret> shared_secret_;
  std::unique_ptr<actors::Cluster> cluster_;
  std::unique_ptr<ChildProcesses> children_;
};

std::chrono::milliseconds milliseconds_of(double seconds) {
  return std::chrono::milliseconds{static_cast<std::int64_t>(seconds * 1e3)};
}

actors::ClusterOptions cluster_options(const PerformerArguments& arguments,
                                       std::uint32_t node_count, const Endpoint& listen,
                                       std::string secret, std::string network_interface) {
  const auto timeout = milliseconds_of(arguments.heartbeat_seconds);
  return {.node_count = node_count,
          .listen_host = listen.host,
          .listen_port = listen.port,
          .secret = std::move(secret),
          .tls = tls_of(arguments.tls).value(),
          .network_interface = std::move(network_interface),
          .shared_memory = arguments.shared_memory,
          .heartbeat = {.interval = timeout / 10, .timeout = timeout},
          .on_refused = [](const std::string& sentence) {
            fmt::print(stderr, "troupe: {}\n", sentence);
          }};
}

/// A node of this machine that joins the director of this process.
ChildProgram node_program(const PerformerArguments& arguments, std::uint32_t index,
                          const Endpoint& director, const std::string& secret,
                          const std::string& network_interface) {
  std::vector<std::string> words{"node",
                                 "--join",
                                 to_string(director),
                                 "--secret-fd",
                                 std::to_string(inherited_secret_fd),
                                 "--interface",
                                 network_interface,
                                 "--heartbeat",
                                 fmt::format("{}", arguments.heartbeat_seconds)};
  if (!arguments.shared_memory) words.emplace_back("--no-shared-memory");
  const auto tls = to_options(arguments.tls);
  words.insert(words.end(), tls.begin(), tls.end());
  return {fmt::format("node {}", index), "/proc/self/exe", std::move(words), secret};
}

Expected<std::unique_ptr<Performers>> start_processes(const PerformerArguments& arguments) {
  const auto secret = transport::make_secret();
  if (!secret) return secret.error();
  const auto network = network_interface_or(arguments.network_interface, "127.0.0.1");
  if (!network) return network.error();
  auto cluster = actors::Cluster::listen(
      cluster_options(arguments, arguments.process_count, {"127.0.0.1", 0}, *secret, *network));
  if (!cluster) return cluster.error();
  const Endpoint director{"127.0.0.1", (*cluster)->port()};
  std::vector<ChildProgram> programs;
  for (std::uint32_t i = 0; i < arguments.process_count; ++i) {
    programs.push_back(node_program(arguments, i, director, *secret, *network));
  }
  auto others = std::make_unique<OtherProcesses>(std::move(*cluster));
  if (auto started = others->start(std::move(programs)); !started) return started.error();
  return std::unique_ptr<Performers>{std::move(others)};
}

Expected<std::unique_ptr<Performers>> wait_for_nodes(const PerformerArguments& arguments) {
  if (arguments.listen.empty() || arguments.secret_path.empty()) {
    return Error{Errc::invalid_config,
                 "--nodes: needs --listen HOST:PORT, where the nodes join, and --secret FILE, the "
                 "same file on every node"};
  }
  const auto listen = parse_endpoint("--listen", arguments.listen);
  if (!listen) return listen.error();
  auto secret = transport::read_secret(arguments.secret_path);
  if (!secret) return secret.error();
  const auto network = network_interface_or(arguments.network_interface, listen->host);
  if (!network) return network.error();
  auto cluster = actors::Cluster::listen(
      cluster_options(arguments, arguments.node_count, *listen, std::move(*secret), *network));
  if (!cluster) return cluster.error();
  const bool has_tls = !to_options(arguments.tls).empty();
  fmt::print("waiting for {} node{}: troupe node --join {} --secret FILE{}\n", arguments.node_count,
             arguments.node_count == 1 ? "" : "s",
             to_string(Endpoint{listen->host, (*cluster)->port()}),
             has_tls ? " --tls-certificate FILE --tls-key FILE --tls-authority FILE" : "");
  std::fflush(stdout);
  return std::unique_ptr<Performers>{std::make_unique<OtherProcesses>(std::move(*cluster))};
}

/// Task 0 of a launch: leads, and starts a node of its own, so that N tasks are N nodes.
Expected<std::unique_ptr<Performers>> lead_tasks(const PerformerArguments& arguments,
                                                 const Plan& plan) {
  const auto& launch = arguments.launch;
  const auto network = network_interface_or(arguments.network_interface, launch.director.host);
  if (!network) return network.error();
  std::unique_ptr<SharedSecret> shared;
  std::string secret;
  if (arguments.secret_path.empty()) {
    auto published =
        SharedSecret::publish(shared_secret_path(plan.config.run.output, launch.run_name));
    if (!published) return published.error();
    shared = std::move(*published);
    secret = shared->secret();
  } else {
    auto read = transport::read_secret(arguments.secret_path);
    if (!read) return read.error();
    secret = std::move(*read);
  }
  auto cluster = actors::Cluster::listen(cluster_options(
      arguments, launch.task_count, {launch.listen_host, launch.director.port}, secret, *network));
  if (!cluster) return cluster.error();
  fmt::print("task 0 of {} is the director, at {}\n", launch.task_count,
             to_string(launch.director));
  std::fflush(stdout);
  auto others = std::make_unique<OtherProcesses>(std::move(*cluster), std::move(shared));
  auto started = others->start({node_program(arguments, 0, launch.director, secret, *network)});
  if (!started) return started.error();
  return std::unique_ptr<Performers>{std::move(others)};
}

}  // namespace

Expected<Done> Performers::check(const PerformerArguments& arguments, const Plan& plan) {
  const bool is_launched = !arguments.launch.is_alone();
  if (is_launched && (arguments.process_count > 0 || arguments.node_count > 0)) {
    return Error{Errc::invalid_config,
                 fmt::format("{}: a launcher has started {} tasks, and each becomes a node; leave "
                             "the option out, or start troupe without the launcher",
                             arguments.process_count > 0 ? "--processes" : "--nodes",
                             arguments.launch.task_count)};
  }
  if (arguments.process_count > 0 && arguments.node_count > 0) {
    return Error{Errc::invalid_config,
                 "--processes and --nodes: give one of them; --processes starts them on this "
                 "machine, --nodes waits for those that you start"};
  }
  if (auto tls = tls_of(arguments.tls); !tls) return tls.error();
  const auto rank_count = plan.config.parallel.rank_count();
  const auto count = is_launched ? arguments.launch.task_count
                                 : std::max(arguments.process_count, arguments.node_count);
  if (count > rank_count) {
    return Error{Errc::invalid_config,
                 fmt::format("{} {}: the grid has {} rank{}, and each process needs one; ask for "
                             "fewer, or enlarge parallel.data or parallel.pipeline",
                             is_launched                   ? "the launcher's tasks,"
                             : arguments.process_count > 0 ? "--processes"
                                                           : "--nodes",
                             count, rank_count, rank_count == 1 ? "" : "s")};
  }
  return Done{};
}

Expected<std::unique_ptr<Performers>> Performers::make(const PerformerArguments& arguments,
                                                       const Plan& plan) {
  raise_open_files_limit();
  if (!arguments.launch.is_alone()) return lead_tasks(arguments, plan);
  if (arguments.process_count > 0) return start_processes(arguments);
  if (arguments.node_count > 0) return wait_for_nodes(arguments);
  return std::unique_ptr<Performers>{std::make_unique<ThisProcess>()};
}

}  // namespace troupe::cli
