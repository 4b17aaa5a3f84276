// cli/src/launch.hpp -- which part of a run this process plays, as its launcher's environment says.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "troupe/engine/expected.hpp"

namespace troupe::cli {

/// Looks up an environment variable; nothing if it is not set.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;

/// Returns the environment of this process.
[[nodiscard]] Environment process_environment();

/// A place in the network.
struct Endpoint {
  std::string host;  ///< A name or an address; an IPv6 address without brackets.
  std::uint16_t port = 0;

  friend bool operator==(const Endpoint&, const Endpoint&) = default;
};

/// Reads "HOST:PORT" or "[IPV6]:PORT". Fails with `invalid_config` and a sentence that names
/// `option`, what it was given and what it expects.
[[nodiscard]] Expected<Endpoint> parse_endpoint(std::string_view option, std::string_view text);

/// Writes what `parse_endpoint` reads.
[[nodiscard]] std::string to_string(const Endpoint& endpoint);

enum class Launcher : std::uint8_t {
  none,      ///< Started by hand.
  slurm,     ///< By `srun`.
  open_mpi,  ///< By Open MPI's `mpirun`.
  torchrun,  ///< By torchrun, or by anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and
             ///< MASTER_PORT.
};

/// One of `task_count` equal processes. Task 0 becomes the director and starts a node of its own;
/// the others become nodes and join it.
struct Launch {
  Launcher launcher = Launcher::none;
  std::uint32_t task = 0;
  std::uint32_t task_count = 1;
  Endpoint director;        ///< Where every node finds the director.
  std::string listen_host;  ///< What the director listens on: 127.0.0.1 if all tasks run on one
                            ///< machine; else every interface, as names lead elsewhere from inside.
  std::string run_name;     ///< Equal in all tasks of a run and in no two runs at a time; letters,
                            ///< digits, '.', '-' and '_', at most 128.

  /// Without a launcher, or as its only task: the fields after `task_count` are empty.
  [[nodiscard]] bool is_alone() const noexcept { return task_count == 1; }
};

/// Decides the part of this process. The innermost launcher decides: torchrun before mpirun before
/// srun. A batch script and a shell inside an allocation are alone, as is the only task of a step.
/// @param listen What `--listen` says, if it is given: a host and port instead of those that follow
///        from the environment, or, with 0.0.0.0 or [::] as host, another port alone.
/// Fails with `invalid_config` where variables are missing, contradict each other, or do not tell
/// where task 0 runs; the sentence names them and says what to do.
[[nodiscard]] Expected<Launch> find_launch(const Environment& environment,
                                           const std::optional<Endpoint>& listen);

/// Returns the first host of a list in Slurm's notation: "n01" of "n[01-03,7],other". Fails with
/// `invalid_config` if it is not in that notation.
[[nodiscard]] Expected<std::string> first_host(std::string_view node_list);

/// Returns the port of a run whose launcher names none: 20000 to 29999, below those that Linux
/// hands out by itself, and equal for equal names (FNV-1a, 64 bits, modulo 10000).
[[nodiscard]] std::uint16_t port_of(std::string_view run_name) noexcept;

}  // namespace troupe::cli
