#include "launch.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

namespace troupe::cli {

namespace {

constexpr std::uint32_t task_count_max = 1U << 20U;

/// What one launcher says.
struct Task {
  Launcher launcher;
  std::uint32_t task;
  std::uint32_t task_count;
  std::string run_name;
  bool one_machine;
  Expected<std::string> host;         ///< Of task 0. An error matters only if it is needed.
  std::optional<std::uint16_t> port;  ///< If the launcher names one.
};

Error invalid(std::string sentence) {
  return {Errc::invalid_config, std::move(sentence)};
}

Expected<std::uint32_t> parse_number(std::string_view name, std::string_view text,
                                     std::uint32_t max) {
  std::uint32_t number = 0;
  const auto* end = text.data() + text.size();
  const auto [rest, failure] = std::from_chars(text.data(), end, number);
  if (failure != std::errc{} || rest != end || number > max) {
    return invalid(
        fmt::format("{} is '{}', expected a whole number of at most {}", name, text, max));
  }
  return number;
}

/// Reads variables of one launcher, which are set together or not at all.
class Variables {
public:
  Variables(const Environment& environment, std::string launcher)
      : environment_{environment}, launcher_{std::move(launcher)} {}

  [[nodiscard]] Expected<std::string> text(const std::string& name) const {
    auto value = environment_(name);
    if (value && !value->empty()) return *std::move(value);
    return invalid(
        fmt::format("the environment is half that of {}: {} is not set; start every "
                    "task with its whole environment, or unset the rest",
                    launcher_, name));
  }
  [[nodiscard]] Expected<std::uint32_t> number(const std::string& name, std::uint32_t max) const {
    auto value = text(name);
    if (!value) return value.error();
    return parse_number(name, *value, max);
  }
  [[nodiscard]] std::string text_or(const std::string& name, std::string otherwise) const {
    return environment_(name).value_or(std::move(otherwise));
  }
  [[nodiscard]] bool has(const std::string& name) const { return environment_(name).has_value(); }

  /// Reads the task's number and how many there are.
  [[nodiscard]] Expected<std::pair<std::uint32_t, std::uint32_t>> task_of(
      const std::string& task_name, const std::string& count_name) const {
    const auto task = number(task_name, task_count_max);
    if (!task) return task.error();
    const auto count = number(count_name, task_count_max);
    if (!count) return count.error();
    if (*task >= *count) {
      return invalid(
          fmt::format("{}={} and {}={} contradict each other: tasks count from 0; the "
                      "two come from different launches, start every task anew",
                      task_name, *task, count_name, *count));
    }
    return std::pair{*task, *count};
  }

private:
  const Environment& environment_;
  std::string launcher_;
};

/// Makes a name that a file can bear.
std::string name_for_files(std::string text) {
  constexpr std::size_t length_max = 128;
  constexpr std::string_view kept =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
  std::ranges::replace_if(
      text, [&](char c) { return kept.find(c) == std::string_view::npos; }, '-');
  return text.substr(0, length_max);
}

// -- Slurm ----------------------------------------------------------------------------------------

/// The first host of the step's list. Task 0 runs there, unless tasks were laid out by hand.
Expected<std::string> slurm_host(const Variables& variables, std::uint32_t task) {
  const auto list = variables.text("SLURM_STEP_NODELIST");
  if (!list) return list.error();
  auto host = first_host(*list);
  if (!host || task != 0) return host;
  const auto here = variables.text_or("SLURMD_NODENAME", *host);
  if (here == *host) return host;
  return invalid(
      fmt::format("task 0 runs on {}, but the others look for it on {}, the first of "
                  "SLURM_STEP_NODELIST={}; give every task --listen {}:PORT",
                  here, *host, *list, here));
}

/// A step of several tasks. `srun` alone sets SLURM_STEP_NUM_TASKS: the batch script has a
/// SLURM_PROCID too, and the allocation's SLURM_NTASKS.
Expected<std::optional<Task>> slurm_task(const Environment& environment) {
  const Variables variables{environment, "srun"};
  if (!variables.has("SLURM_STEP_NUM_TASKS")) return std::optional<Task>{};
  const auto task = variables.task_of("SLURM_PROCID", "SLURM_STEP_NUM_TASKS");
  if (!task) return task.error();
  const auto job = variables.text("SLURM_JOB_ID");
  if (!job) return job.error();
  const auto step = variables.text("SLURM_STEP_ID");
  if (!step) return step.error();
  const auto restart = variables.text_or("SLURM_RESTART_COUNT", "0");
  const bool one_machine = variables.text_or("SLURM_STEP_NUM_NODES", "") == "1";
  return std::optional{Task{
      .launcher = Launcher::slurm,
      .task = task->first,
      .task_count = task->second,
      .run_name = name_for_files(fmt::format("slurm-{}.{}-{}", *job, *step, restart)),
      .one_machine = one_machine,
      .host = one_machine ? Expected<std::string>{"127.0.0.1"} : slurm_host(variables, task->first),
      .port = {}}};
}

// -- Open MPI -------------------------------------------------------------------------------------

/// Takes the host out of "NAME;tcp://HOST[,HOST...]:PORT;...".
std::optional<std::string> host_of_contact(std::string_view contact) {
  constexpr std::string_view scheme = "tcp://";
  const auto begin = contact.find(scheme);
  if (begin == std::string_view::npos) return std::nullopt;
  contact.remove_prefix(begin + scheme.size());
  const auto host = contact.substr(0, contact.find_first_of(",:;"));
  if (host.empty()) return std::nullopt;
  return std::string{host};
}

/// The address of `mpirun` itself, whose machine runs task 0 if it is the first of the hosts.
Expected<std::string> open_mpi_host(const Variables& variables, std::uint32_t task) {
  const auto contact = variables.text_or("OMPI_MCA_orte_hnp_uri", "");
  auto host = host_of_contact(contact);
  if (!host) {
    return invalid(
        "mpirun does not say where task 0 runs; give every task --listen HOST:PORT with "
        "the host of task 0, the first that mpirun was given");
  }
  if (task == 0 && variables.text_or("OMPI_MCA_orte_local_daemon_uri", contact) != contact) {
    return invalid(
        fmt::format("task 0 does not run on {}, the machine of mpirun, where the others "
                    "look for it; give every task --listen HOST:PORT with the host of "
                    "task 0, or start mpirun on the first host",
                    *host));
  }
  return *std::move(host);
}

Expected<std::optional<Task>> open_mpi_task(const Environment& environment) {
  const Variables variables{environment, "mpirun"};
  constexpr const char* rank_name = "OMPI_COMM_WORLD_RANK";
  constexpr const char* size_name = "OMPI_COMM_WORLD_SIZE";
  if (!variables.has(rank_name) && !variables.has(size_name)) return std::optional<Task>{};
  const auto task = variables.task_of(rank_name, size_name);
  if (!task) return task.error();
  const auto job = variables.text("PMIX_NAMESPACE");
  if (!job) return job.error();
  const auto size = std::to_string(task->second);
  const bool one_machine = variables.text_or("OMPI_COMM_WORLD_LOCAL_SIZE", "") == size;
  return std::optional{Task{.launcher = Launcher::open_mpi,
                            .task = task->first,
                            .task_count = task->second,
                            .run_name = name_for_files("mpirun-" + *job),
                            .one_machine = one_machine,
                            .host = one_machine ? Expected<std::string>{"127.0.0.1"}
                                                : open_mpi_host(variables, task->first),
                            .port = {}}};
}

// -- torchrun -------------------------------------------------------------------------------------

/// The port is torchrun's own store if its agent serves one: then another follows from the name.
Expected<std::optional<Task>> torchrun_task(const Environment& environment) {
  const Variables variables{environment, "torchrun"};
  if (!variables.has("RANK") && !variables.has("WORLD_SIZE")) return std::optional<Task>{};
  const auto task = variables.task_of("RANK", "WORLD_SIZE");
  if (!task) return task.error();
  Task result{.launcher = Launcher::torchrun,
              .task = task->first,
              .task_count = task->second,
              .run_name = {},
              .one_machine = false,
              .host = std::string{},
              .port = {}};
  if (task->second == 1) return std::optional{std::move(result)};
  result.host = variables.text("MASTER_ADDR");
  if (!result.host) return result.host.error();
  const auto port = variables.number("MASTER_PORT", 65535);
  if (!port) return port.error();
  if (variables.text_or("TORCHELASTIC_USE_AGENT_STORE", "") != "True") {
    result.port = static_cast<std::uint16_t>(*port);
  }
  const auto size = std::to_string(task->second);
  result.one_machine = variables.text_or("LOCAL_WORLD_SIZE", "") == size;
  result.run_name = name_for_files(fmt::format(
      "torchrun-{}-{}-{}-{}", *port, variables.text_or("TORCHELASTIC_RESTART_COUNT", "0"),
      *result.host, variables.text_or("TORCHELASTIC_RUN_ID", "")));
  return std::optional{std::move(result)};
}

// -- all of them ----------------------------------------------------------------------------------

/// Variables of torchrun that were set by hand, or left over, must agree with who set the rest.
Expected<Done> check_agreement(const Environment& environment, const Task& by_hand,
                               const std::optional<Task>& other) {
  if (environment("TORCHELASTIC_RUN_ID") || !other || other->task_count == 1) return Done{};
  if (by_hand.task == other->task && by_hand.task_count == other->task_count) return Done{};
  return invalid(fmt::format(
      "RANK={} and WORLD_SIZE={} contradict {}, which says task {} of {}; unset RANK and "
      "WORLD_SIZE, "
      "or set both for each task",
      by_hand.task, by_hand.task_count, other->launcher == Launcher::slurm ? "srun" : "mpirun",
      other->task, other->task_count));
}

/// Launchers that would start as many whole trainings in one folder as there are tasks.
Expected<Done> refuse_unknown_launchers(const Environment& environment) {
  const auto size = environment("PMI_SIZE");
  if (!size || *size == "1") return Done{};
  return invalid(
      fmt::format("PMI_SIZE={} says that this is one of several tasks, but not by a "
                  "launcher that is known; use srun, Open MPI's mpirun or torchrun, or "
                  "set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each task",
                  *size));
}

/// What the innermost launcher says.
Expected<std::optional<Task>> innermost_task(const Environment& environment) {
  auto torchrun = torchrun_task(environment);
  if (!torchrun) return torchrun;
  auto other = open_mpi_task(environment);
  if (!other) return other;
  if (!*other) other = slurm_task(environment);
  if (!other) return other;
  if (*torchrun) {
    if (auto agreed = check_agreement(environment, **torchrun, *other); !agreed) {
      return agreed.error();
    }
    return torchrun;
  }
  if (!*other) {
    if (auto known = refuse_unknown_launchers(environment); !known) return known.error();
  }
  return other;
}

bool is_every_interface(std::string_view host) {
  return host == "0.0.0.0" || host == "::";
}

std::string every_interface_for(std::string_view host) {
  return host.find(':') == std::string_view::npos ? "0.0.0.0" : "::";
}

Expected<Launch> place_director(Task task, const std::optional<Endpoint>& listen) {
  Launch launch{.launcher = task.launcher,
                .task = task.task,
                .task_count = task.task_count,
                .director = {},
                .listen_host = {},
                .run_name = std::move(task.run_name)};
  if (listen && listen->port == 0) {
    return invalid("--listen has port 0, but the other tasks must know the port: give another");
  }
  if (listen && !is_every_interface(listen->host)) {
    launch.director = *listen;
    launch.listen_host = listen->host;
    return launch;
  }
  if (!task.host) return task.host.error();
  launch.director.host = std::move(task.host).value();
  launch.director.port = listen ? listen->port : task.port.value_or(port_of(launch.run_name));
  if (listen) {
    launch.listen_host = listen->host;
  } else if (task.one_machine) {
    launch.director.host = launch.listen_host = "127.0.0.1";
  } else {
    launch.listen_host = every_interface_for(launch.director.host);
  }
  return launch;
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return value;
  };
}

Expected<Endpoint> parse_endpoint(std::string_view option, std::string_view text) {
  const auto colon = text.rfind(':');
  auto host = text.substr(0, colon);
  const bool bracketed = host.starts_with('[') && host.ends_with(']');
  if (bracketed) host = host.substr(1, host.size() - 2);
  const bool ambiguous = !bracketed && host.find(':') != std::string_view::npos;
  if (colon == std::string_view::npos || host.empty() || ambiguous) {
    return invalid(
        fmt::format("{} is '{}', expected HOST:PORT, for example 10.0.0.1:29500 or "
                    "[fd00::1]:29500",
                    option, text));
  }
  const auto port =
      parse_number(fmt::format("the port of {}", option), text.substr(colon + 1), 65535);
  if (!port) return port.error();
  return Endpoint{std::string{host}, static_cast<std::uint16_t>(*port)};
}

std::string to_string(const Endpoint& endpoint) {
  const bool is_ipv6 = endpoint.host.find(':') != std::string::npos;
  const auto host = is_ipv6 ? '[' + endpoint.host + ']' : endpoint.host;
  return fmt::format("{}:{}", host, endpoint.port);
}

Expected<Launch> find_launch(const Environment& environment,
                             const std::optional<Endpoint>& listen) {
  auto task = innermost_task(environment);
  if (!task) return task.error();
  if (!*task || (*task)->task_count == 1) {
    return Launch{.launcher = *task ? (*task)->launcher : Launcher::none,
                  .director = {},
                  .listen_host = {},
                  .run_name = {}};
  }
  return place_director(*std::move(*task), listen);
}

Expected<std::string> first_host(std::string_view node_list) {
  const auto malformed = [&] {
    return invalid(
        fmt::format("'{}' is not a list of nodes as Slurm writes it, for example "
                    "n[01-03,7],other; give every task --listen HOST:PORT with the host "
                    "of task 0",
                    node_list));
  };
  std::string host;
  for (std::size_t at = 0; at < node_list.size() && node_list[at] != ','; ++at) {
    if (node_list[at] == ']') return malformed();
    if (node_list[at] != '[') {
      host += node_list[at];
      continue;
    }
    const auto close = node_list.find(']', at);
    if (close == std::string_view::npos) return malformed();
    const auto range = node_list.substr(at + 1, close - at - 1);
    const auto number = range.substr(0, range.find_first_of("-,"));
    if (number.empty() || number.find_first_not_of("0123456789") != std::string_view::npos) {
      return malformed();
    }
    host += number;
    at = close;
  }
  if (host.empty()) return malformed();
  return host;
}

std::uint16_t port_of(std::string_view run_name) noexcept {
  constexpr std::uint64_t first_port = 20000;
  constexpr std::uint64_t port_count = 10000;
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : run_name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  }
  return static_cast<std::uint16_t>(first_port + hash % port_count);
}

}  // namespace troupe::cli
