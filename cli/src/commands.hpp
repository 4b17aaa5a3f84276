// cli/src/commands.hpp -- the subcommands of `troupe`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "troupe/engine/expected.hpp"

#include "exit_code.hpp"
#include "performers.hpp"

namespace troupe::cli {

/// A configuration, and who performs it.
struct RunArguments {
  std::string config_path;
  std::vector<std::string> overrides;  ///< key=value
  PerformerArguments performers{};     ///< Of `troupe train`.
};

struct NodeArguments {
  std::string join;               ///< HOST:PORT of the director.
  std::string secret_path;        ///< Or:
  int secret_descriptor = -1;     ///< An inherited pipe to read the secret from; -1: none. Or:
  std::string secret;             ///< Itself.
  transport::TlsFiles tls{};      ///< As `tls_of` reads it.
  std::string network_interface;  ///< Empty: the one that leads to the director.
  bool shared_memory = true;
  double heartbeat_seconds = 5.0;
};

struct PlanArguments {
  RunArguments run{};
  std::string profile_path;  ///< Empty: this machine is measured for a moment.
  std::uint32_t process_count = 1;
};

struct ScheduleArguments {
  std::string name;  ///< A known name, or the path of a CSV file.
  std::uint32_t ranks = 0;
  std::uint32_t microbatches = 0;
  std::uint32_t chunks = 1;
  bool split_backward = false;
  std::string format = "grid";      ///< grid, csv, csv-comms, svg, html
  std::string matching = "tagged";  ///< tagged, ordered
  std::string counterexample_path;  ///< Empty: none is drawn.
  std::uint32_t slots_max = 0;      ///< 0: as many as the schedule needs.
};

struct ProfileArguments {
  RunArguments run{};
  std::string out_path = "profile.json";
  double seconds = 10.0;
  std::string network_interface;  ///< Empty: the one that `troupe train` would use.
  bool shared_memory = true;
};

struct SimulateArguments {
  RunArguments run{};  ///< With a configuration, `profile_path` says what it costs.
  std::string profile_path;
  std::uint32_t process_count = 1;     ///< Over which a configuration's actors are spread.
  std::vector<std::string> schedules;  ///< Known names, or paths of CSV files.
  std::vector<std::uint32_t> stages;   ///< Pipeline ranks.
  std::vector<std::uint32_t> microbatches;
  std::vector<double> costs{1.0, 1.0, 1.0};  ///< F, I and W of one virtual stage, in any unit.
  std::vector<double> links{0.0};            ///< A hop between ranks, in that unit.
  double transfer = 0.0;             ///< For how long a message occupies its way, in that unit.
  std::uint32_t ranks_per_node = 0;  ///< Which share a network interface; 0: none do.
  bool no_overlap = false;           ///< Passes wait until what was made before has left.
  std::uint32_t replicas = 1;
  double reduction = 0.0;                ///< The all-reduce of a stage's gradients, in that unit.
  std::vector<double> jitter{0.0, 0.0};  ///< Deviation over mean, of passes and of transfers.
  std::uint64_t seed = 0;
  std::vector<std::string> stragglers;  ///< RANK:FACTOR, each.
  std::uint32_t chunks = 1;
  std::uint32_t memory_limit = 0;  ///< 0: as the schedule says.
  bool split_backward = false;
  bool json = false;
  bool csv = false;
  bool memory = false;     ///< Whether the objects say what is held over time.
  std::string svg_path;    ///< Empty: no picture.
  std::string trace_path;  ///< Empty: no trace.
};

struct CompareArguments {
  std::string run;                ///< The folder of a run.
  std::uint32_t step = 0;         ///< 0: the last that was recorded.
  std::uint32_t pass_count = 10;  ///< How many passes to list.
  bool json = false;
  std::string svg_path;   ///< Empty: no picture.
  std::string html_path;  ///< Empty: no page.
};

struct GenerateArguments {
  std::string weights_path;
  std::string prompt;
  std::uint32_t token_count = 300;
  double temperature = 0.8;
  std::uint64_t seed = 1;
  std::uint32_t heads = 0;  ///< 0: as the weights' metadata says.
};

struct ClassifyArguments {
  std::string weights_path;
  std::string texts_path;  ///< Empty: standard input.
  bool json = false;
  std::uint32_t heads = 0;  ///< 0: as the weights' metadata says.
};

struct DoctorArguments {
  std::string network_interface;  ///< Empty: the one that `troupe train` would use.
  bool shared_memory = true;
  bool json = false;
  bool is_self_test = false;  ///< One of the two processes that the test starts:
  std::string peer;           ///< the first, if this is empty, or its partner.
};

// Each runs a command to its end, printing to stdout.
[[nodiscard]] Expected<ExitCode> train(const RunArguments& arguments);
[[nodiscard]] Expected<ExitCode> node(const NodeArguments& arguments);
[[nodiscard]] Expected<ExitCode> plan(const PlanArguments& arguments);
[[nodiscard]] Expected<ExitCode> schedule(const ScheduleArguments& arguments);
[[nodiscard]] Expected<ExitCode> profile(const ProfileArguments& arguments);
[[nodiscard]] Expected<ExitCode> simulate(const SimulateArguments& arguments);
[[nodiscard]] Expected<ExitCode> compare(const CompareArguments& arguments);
[[nodiscard]] Expected<ExitCode> generate(const GenerateArguments& arguments);
[[nodiscard]] Expected<ExitCode> classify(const ClassifyArguments& arguments);
[[nodiscard]] Expected<ExitCode> doctor(const DoctorArguments& arguments);

}  // namespace troupe::cli
