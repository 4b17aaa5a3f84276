// Environments as the launchers set them, and as they must not be.

#include "launch.hpp"

#include <map>
#include <set>
#include <string>

#include <gtest/gtest.h>

namespace troupe::cli {
namespace {

using Variables = std::map<std::string, std::string>;

Environment environment_of(Variables variables) {
  return [variables = std::move(variables)](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  };
}

Variables with(Variables variables, const Variables& others) {
  for (const auto& [name, value] : others) variables[name] = value;
  return variables;
}

Variables without(Variables variables, const std::string& name) {
  EXPECT_EQ(variables.erase(name), 1U) << name;
  return variables;
}

Launch launch_of(const Variables& variables, const std::optional<Endpoint>& listen = {}) {
  auto launch = find_launch(environment_of(variables), listen);
  if (launch) return *launch;
  ADD_FAILURE() << launch.error().context;
  return {};
}

std::string refusal_of(const Variables& variables, const std::optional<Endpoint>& listen = {}) {
  const auto launch = find_launch(environment_of(variables), listen);
  if (launch) return "accepted";
  EXPECT_EQ(launch.error().code, Errc::invalid_config);
  return launch.error().context;
}

// What srun 22.05 sets for the second of three tasks on two nodes, as far as it matters.
Variables step() {
  return {{"SLURM_JOB_ID", "4711"},
          {"SLURM_STEP_ID", "2"},
          {"SLURM_PROCID", "1"},
          {"SLURM_LOCALID", "1"},
          {"SLURM_NODEID", "0"},
          {"SLURM_NTASKS", "3"},
          {"SLURM_STEP_NUM_TASKS", "3"},
          {"SLURM_STEP_NUM_NODES", "2"},
          {"SLURM_STEP_NODELIST", "n[07-08]"},
          {"SLURM_JOB_NODELIST", "n[05-09]"},
          {"SLURMD_NODENAME", "n07"},
          {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"}};
}

// What mpirun 4.1 sets for the fourth of eight tasks on two machines, as far as it matters.
Variables mpi() {
  const std::string mpirun = "737280000.0;tcp://192.0.2.2,10.1.0.2:35909;tcp6://[fd00::2]:48981";
  return {{"OMPI_COMM_WORLD_RANK", "3"},
          {"OMPI_COMM_WORLD_SIZE", "8"},
          {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
          {"OMPI_MCA_orte_hnp_uri", mpirun},
          {"OMPI_MCA_orte_local_daemon_uri", mpirun},
          {"PMIX_NAMESPACE", "737280001"}};
}

// What torchrun sets for the sixth of eight tasks on two machines, as far as it matters.
Variables torchrun() {
  return {{"RANK", "5"},
          {"WORLD_SIZE", "8"},
          {"LOCAL_RANK", "1"},
          {"LOCAL_WORLD_SIZE", "4"},
          {"MASTER_ADDR", "gpu1.example"},
          {"MASTER_PORT", "29500"},
          {"TORCHELASTIC_RUN_ID", "kjv/7"},
          {"TORCHELASTIC_RESTART_COUNT", "2"},
          {"TORCHELASTIC_USE_AGENT_STORE", "True"}};
}

Variables by_hand(const std::string& task, const std::string& count) {
  return {
      {"RANK", task}, {"WORLD_SIZE", count}, {"MASTER_ADDR", "10.0.0.7"}, {"MASTER_PORT", "29500"}};
}

// -- endpoints and lists --------------------------------------------------------------------------

TEST(Endpoint, IsReadAsItIsWritten) {
  for (const auto* text : {"10.0.0.1:29500", "gpu1.example:1", "[fd00::1]:65535", "[::]:0"}) {
    const auto endpoint = parse_endpoint("--listen", text);
    ASSERT_TRUE(endpoint) << text;
    EXPECT_EQ(to_string(*endpoint), text);
  }
  EXPECT_EQ(*parse_endpoint("--join", "[fd00::1]:7"), (Endpoint{"fd00::1", 7}));
}

TEST(Endpoint, SaysWhatItExpects) {
  for (const auto* text : {"", "host", ":7", "[]:7", "fd00::1:7", "[fd00::1]"}) {
    const auto endpoint = parse_endpoint("--join", text);
    ASSERT_FALSE(endpoint) << text;
    EXPECT_EQ(endpoint.error().context,
              "--join is '" + std::string{text}
                  + "', expected HOST:PORT, for example 10.0.0.1:29500 or [fd00::1]:29500");
  }
  for (const auto* port : {"", "x", "-1", "7x", "65536", "99999999999"}) {
    const auto endpoint = parse_endpoint("--join", std::string{"host:"} + port);
    ASSERT_FALSE(endpoint) << port;
    EXPECT_EQ(endpoint.error().context, "the port of --join is '" + std::string{port}
                                            + "', expected a whole number of at most 65535");
  }
}

TEST(NodeList, BeginsWithTheFirstHostInEveryNotationOfSlurm) {
  const std::map<std::string, std::string> first_of{
      {"n1", "n1"},
      {"login,n2", "login"},
      {"n[01-03,7],other", "n01"},
      {"n[7,01-03]", "n7"},
      {"other,n[01-03]", "other"},
      {"rack[2-3]n[05-06]x", "rack2n05x"},
      {"gpu-a[001]-ib,n1", "gpu-a001-ib"},
  };
  for (const auto& [list, host] : first_of) {
    const auto found = first_host(list);
    ASSERT_TRUE(found) << list;
    EXPECT_EQ(*found, host) << list;
  }
}

TEST(NodeList, IsRefusedInAnyOther) {
  for (const auto* list : {"", ",", "n[", "n[]", "n[a-b]", "n]", "n[[1]]", "[-3]", "n[1"}) {
    const auto found = first_host(list);
    ASSERT_FALSE(found) << list << " gave " << *found;
    EXPECT_EQ(found.error().context,
              "'" + std::string{list}
                  + "' is not a list of nodes as Slurm writes it, for example n[01-03,7],other; "
                    "give every task --listen HOST:PORT with the host of task 0");
  }
}

TEST(Port, LiesBelowThoseOfTheSystemAndFollowsFromTheName) {
  std::set<std::uint16_t> ports;
  for (int job = 0; job < 1000; ++job) {
    const auto port = port_of("slurm-" + std::to_string(job) + ".0-0");
    EXPECT_GE(port, 20000);
    EXPECT_LE(port, 29999);
    ports.insert(port);
  }
  EXPECT_GT(ports.size(), 900U) << "1000 draws out of 10000 leave about 950";
  // By FNV-1a as published: the hash of "a" is 0xaf63dc4c8601ec8c.
  EXPECT_EQ(port_of("a"), 20000 + 0xaf63dc4c8601ec8cU % 10000);
}

// -- alone ----------------------------------------------------------------------------------------

TEST(Alone, IsWhoeverHasNoLauncher) {
  const auto launch = launch_of({{"HOME", "/root"}, {"MASTER_ADDR", "10.0.0.7"}});
  EXPECT_TRUE(launch.is_alone());
  EXPECT_EQ(launch.launcher, Launcher::none);
  EXPECT_EQ(launch.run_name, "");
}

TEST(Alone, IsABatchScriptAndAShellInAnAllocation) {
  // What sbatch -n 4 sets in the script itself, and salloc -n 4 in its shell.
  const Variables allocation{{"SLURM_JOB_ID", "7"},
                             {"SLURM_NTASKS", "4"},
                             {"SLURM_NPROCS", "4"},
                             {"SLURM_JOB_NODELIST", "n[1-4]"}};
  EXPECT_TRUE(launch_of(allocation).is_alone());
  EXPECT_TRUE(
      launch_of(
          with(allocation, {{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "0"}}))
          .is_alone());
  // A site may have salloc open its shell as a step of one task, the interactive step.
  EXPECT_TRUE(launch_of(with(allocation, {{"SLURM_PROCID", "0"},
                                          {"SLURM_STEP_ID", "4294967290"},
                                          {"SLURM_STEP_NUM_TASKS", "1"},
                                          {"SLURM_STEP_NUM_NODES", "1"},
                                          {"SLURM_STEP_NODELIST", "n1"}}))
                  .is_alone());
}

TEST(Alone, IsTheOnlyTaskOfALauncher) {
  EXPECT_TRUE(launch_of({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).is_alone());
  EXPECT_TRUE(launch_of(with(mpi(), {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}}))
                  .is_alone());
  // Four tasks of srun that each start an mpirun of one task are four trainings.
  EXPECT_TRUE(launch_of(with(step(), with(mpi(), {{"OMPI_COMM_WORLD_RANK", "0"},
                                                  {"OMPI_COMM_WORLD_SIZE", "1"}})))
                  .is_alone());
}

// -- Slurm ----------------------------------------------------------------------------------------

TEST(Slurm, AStepSaysWhoIsWhoAndWhereTaskZeroIs) {
  const auto launch = launch_of(step());
  EXPECT_EQ(launch.launcher, Launcher::slurm);
  EXPECT_EQ(launch.task, 1U);
  EXPECT_EQ(launch.task_count, 3U);
  EXPECT_EQ(launch.run_name, "slurm-4711.2-0");
  EXPECT_EQ(launch.director, (Endpoint{"n07", port_of("slurm-4711.2-0")}));
  EXPECT_EQ(launch.listen_host, "0.0.0.0");
}

TEST(Slurm, OneMachineNeedsNoNameOfIt) {
  const auto launch =
      launch_of(with(step(), {{"SLURM_STEP_NUM_NODES", "1"}, {"SLURM_STEP_NODELIST", "n07"}}));
  EXPECT_EQ(launch.director.host, "127.0.0.1");
  EXPECT_EQ(launch.listen_host, "127.0.0.1");
}

TEST(Slurm, ARequeuedJobHasAnotherName) {
  EXPECT_EQ(launch_of(with(step(), {{"SLURM_RESTART_COUNT", "1"}})).run_name, "slurm-4711.2-1");
}

TEST(Slurm, HalfAnEnvironmentIsRefusedByTheNameOfWhatIsMissing) {
  for (const auto* name :
       {"SLURM_PROCID", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST"}) {
    EXPECT_EQ(refusal_of(without(step(), name)),
              std::string{"the environment is half that of srun: "} + name
                  + " is not set; start every task with its whole environment, or unset the rest");
  }
}

TEST(Slurm, ContradictionsAreRefused) {
  EXPECT_EQ(refusal_of(with(step(), {{"SLURM_PROCID", "3"}})),
            "SLURM_PROCID=3 and SLURM_STEP_NUM_TASKS=3 contradict each other: tasks count from 0; "
            "the two come from different launches, start every task anew");
  EXPECT_EQ(refusal_of(with(step(), {{"SLURM_PROCID", "first"}})),
            "SLURM_PROCID is 'first', expected a whole number of at most 1048576");
}

TEST(Slurm, TaskZeroSaysSoIfItIsNotWhereTheOthersLook) {
  const auto arbitrary = with(step(), {{"SLURM_PROCID", "0"}, {"SLURMD_NODENAME", "n08"}});
  EXPECT_EQ(refusal_of(arbitrary),
            "task 0 runs on n08, but the others look for it on n07, the first of "
            "SLURM_STEP_NODELIST=n[07-08]; give every task --listen n08:PORT");
  EXPECT_EQ(launch_of(arbitrary, Endpoint{"n08", 7000}).director, (Endpoint{"n08", 7000}));
  EXPECT_EQ(launch_of(with(step(), {{"SLURM_PROCID", "2"}, {"SLURMD_NODENAME", "n08"}})).task, 2U);
}

// -- Open MPI -------------------------------------------------------------------------------------

TEST(OpenMpi, TheAddressOfMpirunIsThatOfTaskZero) {
  const auto launch = launch_of(mpi());
  EXPECT_EQ(launch.launcher, Launcher::open_mpi);
  EXPECT_EQ(launch.task, 3U);
  EXPECT_EQ(launch.task_count, 8U);
  EXPECT_EQ(launch.run_name, "mpirun-737280001");
  EXPECT_EQ(launch.director, (Endpoint{"192.0.2.2", port_of("mpirun-737280001")}));
  EXPECT_EQ(launch.listen_host, "0.0.0.0");
}

TEST(OpenMpi, OneMachineNeedsNoAddress) {
  auto variables =
      without(with(mpi(), {{"OMPI_COMM_WORLD_LOCAL_SIZE", "8"}}), "OMPI_MCA_orte_hnp_uri");
  const auto launch = launch_of(variables);
  EXPECT_EQ(launch.director.host, "127.0.0.1");
  EXPECT_EQ(launch.listen_host, "127.0.0.1");
}

TEST(OpenMpi, IsWithinSlurmMoreThanSlurm) {
  // mpirun starts its daemons as tasks of srun, and its tasks inherit their variables.
  const auto launch = launch_of(with(step(), mpi()));
  EXPECT_EQ(launch.launcher, Launcher::open_mpi);
  EXPECT_EQ(launch.task, 3U);
  EXPECT_EQ(launch.task_count, 8U);
}

TEST(OpenMpi, WithoutAnAddressItAsksForOne) {
  constexpr const char* sentence =
      "mpirun does not say where task 0 runs; give every task --listen HOST:PORT with the host of "
      "task 0, the first that mpirun was given";
  EXPECT_EQ(refusal_of(without(mpi(), "OMPI_MCA_orte_hnp_uri")), sentence);
  for (const auto* contact : {"", "1.0;usock", "1.0;tcp://:7"}) {
    EXPECT_EQ(refusal_of(with(mpi(), {{"OMPI_MCA_orte_hnp_uri", contact}})), sentence) << contact;
  }
  const auto launch =
      launch_of(without(mpi(), "OMPI_MCA_orte_hnp_uri"), Endpoint{"10.0.0.3", 7000});
  EXPECT_EQ(launch.director, (Endpoint{"10.0.0.3", 7000}));
}

TEST(OpenMpi, TaskZeroSaysSoIfItIsNotWhereTheOthersLook) {
  const auto elsewhere =
      with(mpi(), {{"OMPI_COMM_WORLD_RANK", "0"},
                   {"OMPI_MCA_orte_local_daemon_uri", "737280000.1;tcp://10.1.0.3:40000"}});
  EXPECT_EQ(
      refusal_of(elsewhere),
      "task 0 does not run on 192.0.2.2, the machine of mpirun, where the others look for it; "
      "give every task --listen HOST:PORT with the host of task 0, or start mpirun on the "
      "first host");
  EXPECT_EQ(launch_of(with(mpi(), {{"OMPI_MCA_orte_local_daemon_uri", "737280000.1;tcp://x:1"}}))
                .director.host,
            "192.0.2.2")
      << "the others may run elsewhere";
}

TEST(OpenMpi, HalfAnEnvironmentIsRefusedByTheNameOfWhatIsMissing) {
  for (const auto* name : {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE"}) {
    EXPECT_EQ(refusal_of(without(mpi(), name)),
              std::string{"the environment is half that of mpirun: "} + name
                  + " is not set; start every task with its whole environment, or unset the rest");
  }
}

// -- torchrun -------------------------------------------------------------------------------------

TEST(Torchrun, VariablesByHandSayEverything) {
  const auto launch = launch_of(by_hand("2", "4"));
  EXPECT_EQ(launch.launcher, Launcher::torchrun);
  EXPECT_EQ(launch.task, 2U);
  EXPECT_EQ(launch.task_count, 4U);
  EXPECT_EQ(launch.director, (Endpoint{"10.0.0.7", 29500}));
  EXPECT_EQ(launch.listen_host, "0.0.0.0");
  EXPECT_EQ(launch.run_name, "torchrun-29500-0-10.0.0.7-");
  EXPECT_EQ(launch_of(with(by_hand("2", "4"), {{"MASTER_ADDR", "fd00::7"}})).listen_host, "::");
}

TEST(Torchrun, ItsAgentServesAStoreAtItsPortSoThatAnotherIsTaken) {
  const auto launch = launch_of(torchrun());
  EXPECT_EQ(launch.run_name, "torchrun-29500-2-gpu1.example-kjv-7");
  EXPECT_EQ(launch.director, (Endpoint{"gpu1.example", port_of(launch.run_name)}));
  EXPECT_EQ(launch_of(with(torchrun(), {{"TORCHELASTIC_USE_AGENT_STORE", "False"}})).director.port,
            29500);
}

TEST(Torchrun, OneMachineListensOnItselfAlone) {
  const auto launch = launch_of(with(torchrun(), {{"LOCAL_WORLD_SIZE", "8"}}));
  EXPECT_EQ(launch.director.host, "127.0.0.1");
  EXPECT_EQ(launch.listen_host, "127.0.0.1");
}

TEST(Torchrun, HalfAnEnvironmentIsRefusedByTheNameOfWhatIsMissing) {
  for (const auto* name : {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) {
    EXPECT_EQ(refusal_of(without(by_hand("2", "4"), name)),
              std::string{"the environment is half that of torchrun: "} + name
                  + " is not set; start every task with its whole environment, or unset the rest");
  }
}

TEST(Torchrun, WithinSlurmItIsTheInnermost) {
  EXPECT_EQ(launch_of(with(step(), torchrun())).task_count, 8U);
}

TEST(Torchrun, VariablesByHandMustAgreeWithTheLauncherAroundThem) {
  const auto launch = launch_of(with(step(), by_hand("1", "3")));
  EXPECT_EQ(launch.launcher, Launcher::torchrun);
  EXPECT_EQ(launch.director, (Endpoint{"10.0.0.7", 29500}));
  EXPECT_EQ(refusal_of(with(step(), by_hand("0", "3"))),
            "RANK=0 and WORLD_SIZE=3 contradict srun, which says task 1 of 3; unset RANK and "
            "WORLD_SIZE, or set both for each task");
  EXPECT_EQ(refusal_of(with(mpi(), {{"RANK", "0"}, {"WORLD_SIZE", "1"}})),
            "RANK=0 and WORLD_SIZE=1 contradict mpirun, which says task 3 of 8; unset RANK and "
            "WORLD_SIZE, or set both for each task");
}

// -- all of them ----------------------------------------------------------------------------------

TEST(Launch, AnUnknownLauncherDoesNotStartManyTrainingsInOneFolder) {
  EXPECT_EQ(refusal_of({{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}}),
            "PMI_SIZE=4 says that this is one of several tasks, but not by a launcher that is "
            "known; use srun, Open MPI's mpirun or torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR "
            "and MASTER_PORT for each task");
  EXPECT_TRUE(launch_of({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}}).is_alone());
  EXPECT_EQ(launch_of(with(step(), {{"PMI_SIZE", "3"}})).task_count, 3U) << "srun --mpi=pmi2";
}

TEST(Launch, ListenReplacesHostAndPort) {
  for (const auto& variables : {step(), mpi(), torchrun(), by_hand("1", "2")}) {
    const auto launch = launch_of(variables, Endpoint{"10.9.9.9", 7000});
    EXPECT_EQ(launch.director, (Endpoint{"10.9.9.9", 7000}));
    EXPECT_EQ(launch.listen_host, "10.9.9.9");
    EXPECT_FALSE(launch.run_name.empty());
  }
}

TEST(Launch, ListenOnEveryInterfaceReplacesThePortAlone) {
  for (const auto* host : {"0.0.0.0", "::"}) {
    const auto launch = launch_of(step(), Endpoint{host, 7000});
    EXPECT_EQ(launch.director, (Endpoint{"n07", 7000}));
    EXPECT_EQ(launch.listen_host, host);
  }
}

TEST(Launch, ListenNeedsAPortThatTheOthersKnow) {
  EXPECT_EQ(refusal_of(step(), Endpoint{"n07", 0}),
            "--listen has port 0, but the other tasks must know the port: give another");
}

TEST(Launch, NamesOfRunsAreNamesOfFiles) {
  const auto launch =
      launch_of(with(torchrun(), {{"TORCHELASTIC_RUN_ID", "../a b\n" + std::string(300, 'x')}}));
  EXPECT_EQ(launch.run_name.size(), 128U);
  EXPECT_TRUE(launch.run_name.starts_with("torchrun-29500-2-gpu1.example-..-a-b-xxx"))
      << launch.run_name;
}

}  // namespace
}  // namespace troupe::cli
