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
#include "launch.hpp"

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
  explicit OtherProcesses(std::unique_ptr<actors::Cluster> cluster)
      : cluster_{std::move(cluster)} {}

  [[nodiscard]] Expected<Done> start(std::vector<ChildProgram> programs) {
    auto children = ChildProcesses::start(
        std::move(programs),
        {.on_line = pass_lines_through(), .on_end = [this](const ChildEnd& end) {
           cluster_->tell_process_ended(static_cast<std::uint32_t>(end.pid), end.how);
         }});
    if (!children) return children.error();
    children_ = std::move(*children);
    return Done{};
  }

  Expected<std::unique_ptr<Trainer>> make_trainer(
      const Plan& plan, const std::shared_ptr<const CorpusBatches>& /*batches*/) override {
    // Nodes read the corpus themselves, and may have another working directory.
    auto theirs = plan;
    std::error_code ignored;
    theirs.config.data.text =
        std::filesystem::absolute(plan.config.data.text, ignored).lexically_normal().string();
    return Trainer::make_on(*cluster_, theirs);
  }

  /// The cluster says goodbye, the children leave, and what they say of their ends reaches nobody.
  ~OtherProcesses() override {
    cluster_->close();
    if (children_) (void)children_->wait_for_all(ChildProcesses::patience);
    children_.reset();
  }

private:
  std::unique_ptr<actors::Cluster> cluster_;
  std::unique_ptr<ChildProcesses> children_;
};

std::chrono::milliseconds milliseconds_of(double seconds) {
  return std::chrono::milliseconds{static_cast<std::int64_t>(seconds * 1e3)};
}

actors::ClusterOptions cluster_options(const PerformerArguments& arguments,
                                       std::uint32_t node_count, const Endpoint& listen,
                                       std::string secret) {
  const auto timeout = milliseconds_of(arguments.heartbeat_seconds);
  return {.node_count = node_count,
          .listen_host = listen.host,
          .listen_port = listen.port,
          .secret = std::move(secret),
          .network_interface = arguments.network_interface,
          .shared_memory = arguments.shared_memory,
          .heartbeat = {.interval = timeout / 10, .timeout = timeout},
          .on_refused = [](const std::string& sentence) {
            fmt::print(stderr, "troupe: {}\n", sentence);
          }};
}

/// A node of this machine that joins the director of this process.
ChildProgram node_program(const PerformerArguments& arguments, std::uint32_t index,
                          std::uint16_t port, const std::string& secret) {
  std::vector<std::string> words{"node",
                                 "--join",
                                 to_string(Endpoint{"127.0.0.1", port}),
                                 "--secret-fd",
                                 std::to_string(inherited_secret_fd),
                                 "--interface",
                                 arguments.network_interface,
                                 "--heartbeat",
                                 fmt::format("{}", arguments.heartbeat_seconds)};
  if (!arguments.shared_memory) words.emplace_back("--no-shared-memory");
  return {fmt::format("node {}", index), "/proc/self/exe", std::move(words), secret};
}

Expected<std::unique_ptr<Performers>> start_processes(const PerformerArguments& arguments) {
  const auto secret = transport::make_secret();
  if (!secret) return secret.error();
  auto cluster = actors::Cluster::listen(
      cluster_options(arguments, arguments.process_count, {"127.0.0.1", 0}, *secret));
  if (!cluster) return cluster.error();
  const auto port = (*cluster)->port();
  std::vector<ChildProgram> programs;
  for (std::uint32_t i = 0; i < arguments.process_count; ++i) {
    programs.push_back(node_program(arguments, i, port, *secret));
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
  auto cluster = actors::Cluster::listen(
      cluster_options(arguments, arguments.node_count, *listen, std::move(*secret)));
  if (!cluster) return cluster.error();
  fmt::print("waiting for {} node{}: troupe node --join {} --secret FILE\n", arguments.node_count,
             arguments.node_count == 1 ? "" : "s",
             to_string(Endpoint{listen->host, (*cluster)->port()}));
  std::fflush(stdout);
  return std::unique_ptr<Performers>{std::make_unique<OtherProcesses>(std::move(*cluster))};
}

}  // namespace

Expected<std::unique_ptr<Performers>> Performers::make(const PerformerArguments& arguments,
                                                       const Plan& plan) {
  if (arguments.process_count > 0 && arguments.node_count > 0) {
    return Error{Errc::invalid_config,
                 "--processes and --nodes: give one of them; --processes starts them on this "
                 "machine, --nodes waits for those that you start"};
  }
  const auto rank_count = plan.config.parallel.rank_count();
  const auto count = std::max(arguments.process_count, arguments.node_count);
  if (count > rank_count) {
    return Error{Errc::invalid_config,
                 fmt::format("{} {}: the grid has {} rank{}, and each process needs one; ask for "
                             "fewer, or enlarge parallel.data or parallel.pipeline",
                             arguments.process_count > 0 ? "--processes" : "--nodes", count,
                             rank_count, rank_count == 1 ? "" : "s")};
  }
  if (arguments.process_count > 0) return start_processes(arguments);
  if (arguments.node_count > 0) return wait_for_nodes(arguments);
  return std::unique_ptr<Performers>{std::make_unique<ThisProcess>()};
}

}  // namespace troupe::cli
