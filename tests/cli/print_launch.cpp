// Prints the part of this process in one line, or why it has none: what a launcher starts in
// launchers_test.cpp.

#include <cstdio>

#include "launch.hpp"

int main() {
  using namespace troupe::cli;
  const auto launch = find_launch(process_environment(), {});
  if (!launch) {
    std::printf("refused: %s\n", launch.error().context.c_str());
    return 2;
  }
  const auto* launcher = launch->launcher == Launcher::slurm      ? "slurm"
                         : launch->launcher == Launcher::open_mpi ? "open_mpi"
                         : launch->launcher == Launcher::torchrun ? "torchrun"
                                                                  : "none";
  std::printf("%s %u of %u, director %s, listens on %s, run '%s'\n", launcher, launch->task,
              launch->task_count, to_string(launch->director).c_str(), launch->listen_host.c_str(),
              launch->run_name.c_str());
  return 0;
}
