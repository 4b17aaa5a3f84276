// cli/src/performers.hpp -- who performs the ranks of a run: this process, or others.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/plan.hpp"
#include "troupe/transport/tls_files.hpp"

#include "corpus_batches.hpp"
#include "launch.hpp"

namespace troupe::cli {

/// What `troupe train` is told about processes and nodes.
struct PerformerArguments {
  std::uint32_t process_count = 0;  ///< To start on this machine; 0: none.
  std::uint32_t node_count = 0;     ///< To wait for; 0: none.
  std::string listen;               ///< HOST:PORT; empty: as follows from the rest.
  std::string secret_path;          ///< Empty: made by this process, where it can be.
  transport::TlsFiles tls{};        ///< As `tls_of` reads it.
  std::string network_interface;    ///< Empty: the one that leads to the director.
  bool shared_memory = true;
  double heartbeat_seconds = 5.0;
  Launch launch{};  ///< What the environment says.
};

/// Whoever performs ranks, from before the trainer is made until it is gone.
class Performers {
public:
  virtual ~Performers() = default;
  Performers(const Performers&) = delete;
  Performers& operator=(const Performers&) = delete;

  /// Checks the arguments against the plan. Every task of a launch comes to the same answer.
  /// @returns `invalid_config` with the option that is to be changed.
  [[nodiscard]] static Expected<Done> check(const PerformerArguments& arguments, const Plan& plan);

  /// Starts processes if the arguments, which `check` has found good, say so.
  [[nodiscard]] static Expected<std::unique_ptr<Performers>> make(
      const PerformerArguments& arguments, const Plan& plan);

  /// Blocks until everyone is ready.
  [[nodiscard]] virtual Expected<std::unique_ptr<actors::Trainer>> make_trainer(
      const Plan& plan, const std::shared_ptr<const CorpusBatches>& batches) = 0;

protected:
  Performers() = default;
};

}  // namespace troupe::cli
