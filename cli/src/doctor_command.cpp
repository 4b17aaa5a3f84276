#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "troupe/engine/memory.hpp"
#include "troupe/stages/cpu_device.hpp"
#include "troupe/transport/ucx_environment.hpp"

#include "child_processes.hpp"
#include "commands.hpp"
#include "counted.hpp"
#include "doctor_report.hpp"
#include "launch.hpp"
#include "link_test.hpp"
#include "machine.hpp"
#include "network_interface.hpp"

namespace troupe::cli {

namespace {

using Json = nlohmann::ordered_json;

/// What the examination is about.
struct Circumstances {
  Machine machine;
  std::vector<NetworkInterface> networks;
  Expected<Launch> launch;
  std::string network;       ///< The interface that links use.
  std::string network_why;   ///< And by whose decision.
  std::string network_lack;  ///< Why none follows for this launch; empty if one does.
  bool shared_memory = true;
  std::vector<transport::UcxVariable> ucx;
};

std::string listed(const std::vector<std::string>& words) {
  return words.empty() ? "none" : fmt::format("{}", fmt::join(words, ", "));
}

/// A number with one digit that counts: what is measured in passing is no more exact.
std::string about(double value, const char* unit) {
  if (!(value > 0.0)) return fmt::format("0 {}", unit);
  const auto power = std::pow(10.0, std::floor(std::log10(value)));
  return fmt::format("about {:g} {}", std::round(value / power) * power, unit);
}

std::string about_seconds(double ns) {
  if (ns < 1e3) return about(ns, "ns");
  return ns < 1e6 ? about(ns / 1e3, "us") : about(ns / 1e6, "ms");
}

std::string about_bandwidth(double bytes_per_second) {
  return bytes_per_second < 1e9 ? about(bytes_per_second / 1e6, "MB/s")
                                : about(bytes_per_second / 1e9, "GB/s");
}

template <class Value>
Json json_of(const std::optional<Value>& value) {
  return value ? Json(*value) : Json(nullptr);
}

// -- sections -------------------------------------------------------------------------------------

void examine_versions(DoctorReport& report) {
  report.begin("versions");
  report.add("troupe", TROUPE_VERSION);
  report.add("built with", TROUPE_COMPILER);
  report.add("CAF", TROUPE_CAF_VERSION);
  report.add("UCX", transport::ucx_version());
  report.add("oneDNN", stages::onednn_version());
  report.add("Boost", TROUPE_BOOST_VERSION);
}

void examine_processor(DoctorReport& report, const Machine& machine) {
  report.begin("processor");
  report.add("model", machine.processor.empty() ? "unknown" : machine.processor);
  const auto usable = machine.usable_core_count;
  report.add("cores",
             machine.core_quota
                 ? fmt::format("{} of {} may be used, for {:.1f} cores' worth of time", usable,
                               machine.core_count, *machine.core_quota)
                 : fmt::format("{} of {} may be used", usable, machine.core_count),
             Json{{"usable", usable},
                  {"installed", machine.core_count},
                  {"quota", json_of(machine.core_quota)}});
  const auto sets = stages::cpu_instruction_sets();
  report.add("kernels", fmt::format("{} of {}", sets.back(), listed(sets)),
             Json{{"used", sets.back()}, {"available", sets}});

  if (usable == 1 && machine.core_count > 1) {
    report.add({.what = fmt::format("this process may use 1 of {} cores", machine.core_count),
                .why = "whoever started it has bound it to one, which all its stages would share",
                .what_to_do = "give mpirun --bind-to none, srun --cpus-per-task, or look at "
                              "`taskset -p $$`"});
  }
  if (machine.core_quota && *machine.core_quota < usable) {
    report.add({.what = fmt::format("{} cores may be used, and the time of {:.1f}", usable,
                                    *machine.core_quota),
                .why = "its control group has a quota: the system stops the stages again and again",
                .what_to_do = "give the container as many cores as it sees (docker --cpus, "
                              "resources.limits on Kubernetes)"});
  }
#if defined(__x86_64__)
  if (sets.size() == 1) {
    report.add({.what = "kernels use the baseline instruction set",
                .why = "the processor, or the virtual machine's model of it, has no AVX2",
                .what_to_do = "expect slow runs, or let the virtual machine show its processor "
                              "(host-passthrough)"});
  }
#endif
}

void examine_memory(DoctorReport& report, const Machine& machine) {
  report.begin("memory");
  auto text = fmt::format("{} free of {}", format_bytes(machine.available_memory_bytes),
                          format_bytes(machine.memory_bytes));
  const auto& quota = machine.memory_quota_bytes;
  if (quota) text += fmt::format(", of which {} may be used", format_bytes(*quota));
  report.add("main", text,
             Json{{"bytes", machine.memory_bytes},
                  {"free_bytes", machine.available_memory_bytes},
                  {"quota_bytes", json_of(quota)}});
  if (quota && *quota < machine.memory_bytes) {
    report.add({.what = fmt::format("{} of {} of memory may be used", format_bytes(*quota),
                                    format_bytes(machine.memory_bytes)),
                .why = "the control group has a quota, at which the system kills the process, and "
                       "which `troupe train` does not look at",
                .what_to_do = "compare it with the bytes that `troupe plan` names"});
  }
}

void examine_devices(DoctorReport& report, const Machine& machine) {
  report.begin("devices");
  report.add("cpu", counted(machine.usable_core_count, "core"), machine.usable_core_count);
  report.add("cuda", "built without", nullptr);
}

void examine_networks(DoctorReport& report, const Circumstances& found) {
  report.begin("network interfaces");
  for (const auto& one : found.networks) {
    auto text = one.is_up ? listed(one.addresses) : listed(one.addresses) + " (down)";
    if (one.name == found.network) text += "  <- used: " + found.network_why;
    report.add(
        one.name, text,
        Json{{"addresses", one.addresses}, {"up", one.is_up}, {"used", one.name == found.network}});
  }
  if (!found.network_lack.empty()) {
    report.add({.what = "this task does not find the network of its launch",
                .why = found.network_lack,
                .what_to_do = "see whether this machine knows the director's host: getent hosts",
                .prevents_runs = true});
  }
}

/// What this process would become, started in this environment as `troupe train`.
void examine_launch(DoctorReport& report, const Expected<Launch>& launch) {
  report.begin("launch");
  if (!launch) {
    report.add("environment", launch.error().context, nullptr);
    report.add({.what = "`troupe train` refuses to start in this environment",
                .why = launch.error().context,
                .what_to_do = "see docs/deploy.md, When it does not start",
                .prevents_runs = true});
    return;
  }
  constexpr std::array names{"none", "srun", "mpirun", "torchrun, or variables set by hand"};
  const std::string launcher = names[static_cast<std::size_t>(launch->launcher)];
  report.add("launcher", launcher);
  if (launch->is_alone()) {
    report.add("troupe train", "trains alone, with --processes N in N processes of this machine");
    return;
  }
  report.add("task", fmt::format("{} of {}", launch->task, launch->task_count),
             Json{{"task", launch->task}, {"tasks", launch->task_count}});
  const auto director = to_string(launch->director);
  report.add("troupe train", launch->task == 0
                                 ? fmt::format("directs the run at {}, and starts a node", director)
                                 : fmt::format("becomes a node of the director at {}", director));
}

/// The user's settings that replace ours, or stand beside them.
void examine_ucx(DoctorReport& report, const Circumstances& found) {
  report.begin("UCX settings");
  for (const auto& [name, ours, users] : found.ucx) {
    auto text = users.value_or(ours.value_or(""));
    if (users && ours) text += fmt::format("  <- yours, in place of {}", *ours);
    if (users && !ours) text += "  <- yours";
    report.add(name, text, Json{{"ours", json_of(ours)}, {"users", json_of(users)}});
    if (!users || !ours || *users == *ours) continue;
    report.add({.what = fmt::format("{}={} of your environment replaces {}", name, *users, *ours),
                .why = "links were tested with the latter alone",
                .what_to_do = fmt::format("`unset {}` unless you mean it", name)});
  }
}

void examine_limits(DoctorReport& report, const Circumstances& found) {
  // UCX 1.13 takes 4.2 MB in each process, and again for each of its peers, of which three are
  // usual.
  constexpr std::uint64_t shared_memory_each = std::uint64_t{16} << 20U;
  constexpr std::uint64_t open_files_enough = 1024;
  const auto& machine = found.machine;
  const auto number = [](const std::optional<std::uint64_t>& limit) {
    return limit ? std::to_string(*limit) : std::string{"unlimited"};
  };
  const auto bytes = [](const std::optional<std::uint64_t>& limit) {
    return limit ? format_bytes(*limit) : std::string{"unlimited"};
  };
  report.begin("limits");
  const auto& shared = machine.shared_memory_bytes;
  const auto free_bytes = machine.free_shared_memory_bytes;
  const auto process_count = free_bytes / shared_memory_each;
  report.add("/dev/shm",
             shared ? fmt::format("{} free of {}, enough for about {}", format_bytes(free_bytes),
                                  format_bytes(*shared), counted(process_count, "process"))
                    : "none",
             Json{{"bytes", json_of(shared)}, {"free_bytes", free_bytes}});
  const auto& files = machine.open_files;
  report.add("open files",
             fmt::format("{}, may be raised to {}", number(files.soft), number(files.hard)),
             Json{{"soft", json_of(files.soft)}, {"hard", json_of(files.hard)}});
  const auto& locked = machine.locked_memory_bytes;
  report.add("locked memory",
             machine.infiniband_devices.empty()
                 ? bytes(locked.soft) + ", does not matter without InfiniBand or RoCE"
                 : bytes(locked.soft) + ", for " + listed(machine.infiniband_devices),
             Json{{"soft_bytes", json_of(locked.soft)},
                  {"hard_bytes", json_of(locked.hard)},
                  {"infiniband", machine.infiniband_devices}});

  if (found.shared_memory && process_count < std::max(2U, machine.usable_core_count)) {
    report.add({.what = fmt::format("/dev/shm has {} free, enough for less than a process per core",
                                    format_bytes(free_bytes)),
                .why = "processes of one machine exchange messages through it, and fail or die "
                       "when it is full",
                .what_to_do = "enlarge it (docker run --shm-size=2g, docs/deploy.md for "
                              "Kubernetes), or give --no-shared-memory"});
  }
  if (files.soft && *files.soft < open_files_enough) {
    report.add({.what = fmt::format("{} files may be open at once", *files.soft),
                .why = "each pair of processes needs several",
                .what_to_do = "ulimit -n 65536"});
  }
  if (locked.soft && !machine.infiniband_devices.empty()) {
    report.add({.what = fmt::format("{} may be locked", bytes(locked.soft)),
                .why = listed(machine.infiniband_devices)
                       + " locks the memory it reads and writes, and UCX fails beyond the limit",
                .what_to_do = "ulimit -l unlimited, in /etc/security/limits.conf or the "
                              "LimitMEMLOCK of slurmd"});
  }
}

std::string advice_for_failure(const Circumstances& found) {
  std::vector<std::string> words;
  for (const auto& variable : found.ucx) {
    if (variable.users) words.push_back("-u " + variable.name);
  }
  if (!words.empty()) {
    return fmt::format("try without your settings of UCX: env {} troupe doctor",
                       fmt::join(words, " "));
  }
  if (found.shared_memory) return "try --no-shared-memory, or UCX_LOG_LEVEL=info to learn more";
  return "try UCX_LOG_LEVEL=info to learn more";
}

/// Whether a transport connects processes of one machine alone.
bool stays_here(const std::string& transport) {
  constexpr std::array local{"self", "posix", "sysv", "cma", "xpmem", "knem"};
  return std::ranges::any_of(
      local, [&](std::string_view name) { return transport.starts_with(std::string{name} + '/'); });
}

void examine_links(DoctorReport& report, const Circumstances& found) {
  const auto test =
      test_links({.network_interface = found.network, .shared_memory = found.shared_memory});
  report.begin("self-test");
  report.add("UCX offers", listed(test.offered), test.offered);
  for (std::size_t i = 0; i < test.remarks.size(); ++i) {
    report.add(fmt::format("UCX says {}", i + 1), test.remarks[i]);
  }
  if (!test.offered.empty() && std::ranges::all_of(test.offered, stays_here)) {
    report.add({.what = "UCX offers nothing that leaves this machine",
                .why = "runs over several machines cannot exchange messages",
                .what_to_do =
                    fmt::format("add tcp to UCX_TLS, and {} to UCX_NET_DEVICES", found.network)});
  }
  if (!test.failure.empty()) {
    report.add("result", test.failure);
    report.add({.what = "two processes of this machine cannot exchange messages",
                .why = test.failure,
                .what_to_do = advice_for_failure(found),
                .prevents_runs = true});
    return;
  }
  report.add("result",
             "two processes exchanged messages of 8 B and 16 MiB both ways, and all bytes were "
             "right",
             "passed");
  report.add("carried by", listed(test.carried_by), test.carried_by);
  report.add("8 B", about_seconds(test.hop_ns) + " one way", Json{{"one_way_ns", test.hop_ns}});
  report.add("16 MiB", about_bandwidth(test.bytes_per_second),
             Json{{"bytes_per_second", test.bytes_per_second}});
  report.add("sums of 16 MiB", about_bandwidth(test.reduction.bytes_per_second),
             Json{{"bytes_per_second", test.reduction.bytes_per_second}});
  if (found.shared_memory && std::ranges::none_of(test.carried_by, stays_here)) {
    report.add({.what = "processes of this machine exchange messages over TCP",
                .why = "shared memory was allowed, and UCX has not taken it",
                .what_to_do = "look at UCX_TLS and /dev/shm above, or give --no-shared-memory"});
  }
}

// -- all of it ------------------------------------------------------------------------------------

/// `--interface`, or what `troupe train` would find without.
Expected<Done> choose_network(const std::string& given, Circumstances& found) {
  if (!given.empty()) {
    if (auto known = check_network_interface(given); !known) return known;
    found.network = given;
    found.network_why = "--interface says so";
    return Done{};
  }
  found.network = "lo";
  found.network_why =
      "by --processes; across machines, name the one that connects them with "
      "--interface";
  if (!found.launch || found.launch->is_alone()) return Done{};
  auto leading = network_interface_or("", found.launch->director.host);
  if (!leading) {
    found.network_why = "for the self-test alone";
    found.network_lack = leading.error().context;
    return Done{};
  }
  found.network = std::move(*leading);
  found.network_why = "it leads to the director, " + found.launch->director.host;
  return Done{};
}

}  // namespace

Expected<ExitCode> doctor(const DoctorArguments& arguments) {
  LinkTestOptions options{.network_interface = arguments.network_interface,
                          .shared_memory = arguments.shared_memory};
  if (arguments.is_self_test) {
    auto secret = read_inherited_secret(inherited_secret_fd);
    if (!secret) return secret.error();
    options.secret = std::move(*secret);
    const auto done = arguments.peer.empty() ? be_first_of_link_test(options)
                                             : be_second_of_link_test(options, arguments.peer);
    if (!done) return done.error();
    return exit_success;
  }

  Circumstances found{.machine = look_at_machine(),
                      .networks = network_interfaces(),
                      .launch = find_launch(process_environment(), {}),
                      .network = {},
                      .network_why = {},
                      .network_lack = {},
                      .shared_memory = arguments.shared_memory,
                      .ucx = {}};
  if (auto chosen = choose_network(arguments.network_interface, found); !chosen) {
    return chosen.error();
  }
  found.ucx = transport::ucx_variables({.network_interface = found.network,
                                        .shared_memory = found.shared_memory,
                                        .on_peer_lost = {}});
  DoctorReport report;
  examine_versions(report);
  examine_processor(report, found.machine);
  examine_memory(report, found.machine);
  examine_devices(report, found.machine);
  examine_networks(report, found);
  examine_launch(report, found.launch);
  examine_limits(report, found);
  examine_ucx(report, found);
  examine_links(report, found);
  fmt::print("{}", arguments.json ? report.to_json() : report.to_text());
  return report.runs_can_work() ? exit_success : exit_failure;
}

}  // namespace troupe::cli
