#include "node_processes.hpp"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tiny_training.hpp"

namespace troupe::actors {

namespace {

constexpr std::string_view node_argument = "--perform-as-node";

}  // namespace

NodeProcesses::NodeProcesses(std::uint32_t count, const Cluster& cluster,
                             const ClusterOptions& options) {
  for (std::uint32_t i = 0; i < count; ++i) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
    std::vector<std::string> arguments{"node",
                                       std::string{node_argument},
                                       std::to_string(cluster.port()),
                                       options.secret,
                                       options.shared_memory ? "shared-memory" : "tcp",
                                       std::to_string(options.heartbeat.interval.count()),
                                       std::to_string(options.heartbeat.timeout.count())};
    if (options.tls) {
      arguments.insert(arguments.end(), {options.tls->certificate_path, options.tls->key_path,
                                         options.tls->authority_path});
    }
    std::vector<char*> pointers;
    for (auto& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    auto& child = children_.emplace_back();
    EXPECT_EQ(::posix_spawn(&child.process, "/proc/self/exe", &actions, nullptr, pointers.data(),
                            environ),
              0);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    child.output = ends[0];
  }
}

NodeProcesses::~NodeProcesses() {
  for (std::size_t i = 0; i < children_.size(); ++i) {
    if (children_[i].has_ended) continue;
    send_signal(i, SIGKILL);
    const auto end = wait(i);
    if (testing::Test::HasFailure()) std::fprintf(stderr, "node %zu: %s\n", i, end.said.c_str());
  }
}

void NodeProcesses::send_signal(std::size_t index, int number) const {
  ::kill(children_.at(index).process, number);
}

ProcessEnd NodeProcesses::wait(std::size_t index) {
  auto& child = children_.at(index);
  ProcessEnd end;
  char bytes[4096];
  for (ssize_t count = 0; (count = ::read(child.output, bytes, sizeof bytes)) > 0;) {
    end.said.append(bytes, static_cast<std::size_t>(count));
  }
  ::close(child.output);
  int status = 0;
  ::waitpid(child.process, &status, 0);
  child.has_ended = true;
  if (WIFEXITED(status)) end.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) end.signal_number = WTERMSIG(status);
  return end;
}

void perform_if_node(int argc, char** argv) {
  if (argc < 7 || argv[1] != node_argument) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  NodeOptions options{.director_port = static_cast<std::uint16_t>(std::atoi(argv[2])),
                      .secret = argv[3],
                      .shared_memory = argv[4] == std::string_view{"shared-memory"}};
  options.heartbeat = {.interval = std::chrono::milliseconds{std::atoi(argv[5])},
                       .timeout = std::chrono::milliseconds{std::atoi(argv[6])}};
  options.custom_layer = parallel_block();
  if (argc == 10) options.tls = transport::TlsFiles{argv[7], argv[8], argv[9]};
  const auto outcome = perform_as_node(
      options, [](const Plan& plan) -> Expected<BatchSource> { return source_of(plan.config); },
      parts_of_tests());
  if (!outcome) std::fprintf(stderr, "%s\n", outcome.error().context.c_str());
  std::exit(outcome ? 0 : 1);
}

}  // namespace troupe::actors
