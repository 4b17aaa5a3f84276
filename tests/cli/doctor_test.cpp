#include <algorithm>

#include <ifaddrs.h>
#include <nlohmann/json.hpp>

#include "command_fixture.hpp"

namespace troupe::cli {

using Json = nlohmann::json;

class Doctor : public Command {
protected:
  /// Without what the environment of the tests may say of UCX or of launchers.
  static constexpr const char* clean =
      "unset ${!UCX_*} ${!SLURM_*} ${!OMPI_*} ${!PMI*} RANK WORLD_SIZE MASTER_ADDR MASTER_PORT; ";

  Outcome examine(const std::string& line) const { return shell(clean + line); }

  Json examine_as_json(const std::string& line, int exit_code) const {
    const auto outcome = examine(line);
    EXPECT_EQ(outcome.exit_code, exit_code) << outcome.output;
    auto json = Json::parse(outcome.output, nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << outcome.output;
    return json;
  }

  static bool holds(const Json& list, const std::string& word) {
    return std::ranges::any_of(list, [&](const Json& one) { return one == word; });
  }

  /// What the attention whose first part holds `what` says, or nothing.
  static Json attention(const Json& json, const std::string& what) {
    for (const auto& one : json.at("attention")) {
      if (one.at("what").get<std::string>().find(what) != std::string::npos) return one;
    }
    return {};
  }
};

TEST_F(Doctor, LetsTwoProcessesExchangeMessagesThroughSharedMemory) {
  const auto json = examine_as_json("troupe doctor --json", 0);
  EXPECT_EQ(json.at("works"), true);
  const auto& test = json.at("self-test");
  EXPECT_EQ(test.at("result"), "passed");
  EXPECT_TRUE(holds(test.at("UCX_offers"), "posix/memory")) << test;
  EXPECT_TRUE(holds(test.at("UCX_offers"), "tcp/lo")) << test;
  EXPECT_TRUE(holds(test.at("carried_by"), "posix/memory")) << test;
  EXPECT_GT(test.at("8_B").at("one_way_ns"), 0.0);
  EXPECT_GT(test.at("16_MiB").at("bytes_per_second"), 0.0);
  EXPECT_GT(test.at("sums_of_16_MiB").at("bytes_per_second"), 0.0);
  EXPECT_EQ(json.at("network_interfaces").at("lo").at("used"), true);
  EXPECT_EQ(json.at("UCX_settings").at("UCX_NET_DEVICES").at("ours"), "lo");
}

TEST_F(Doctor, UsesTcpAloneIfSharedMemoryIsForbidden) {
  const auto json = examine_as_json("troupe doctor --json --no-shared-memory", 0);
  EXPECT_EQ(json.at("self-test").at("carried_by"), Json{"tcp/lo"});
  EXPECT_TRUE(attention(json, "over TCP").is_null());
}

TEST_F(Doctor, SaysWhatThisMachineHas) {
  const auto json = examine_as_json("troupe doctor --json", 0);
  for (const auto* library : {"troupe", "CAF", "UCX", "oneDNN", "Boost"}) {
    const auto version = json.at("versions").at(library).get<std::string>();
    EXPECT_GE(std::ranges::count(version, '.'), 1) << library << " " << version;
  }
  EXPECT_EQ(json.at("processor").at("cores").at("installed"), sysconf(_SC_NPROCESSORS_ONLN));
  const auto& kernels = json.at("processor").at("kernels");
  EXPECT_EQ(kernels.at("available").front(), "baseline");
  EXPECT_EQ(kernels.at("available").back(), kernels.at("used"));
  EXPECT_GT(json.at("memory").at("main").at("bytes"), 0);
  EXPECT_TRUE(json.at("devices").at("cuda").is_null());
}

TEST_F(Doctor, IsReadByPeopleSectionBySection) {
  const auto outcome = examine("troupe doctor");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  for (const auto* part :
       {"versions\n", "processor\n", "memory\n", "devices\n", "network interfaces\n", "launch\n",
        "limits\n", "UCX settings\n", "self-test\n", "  8 B ", " one way\n", "built without\n",
        "<- used: by --processes", "\nRuns of several processes work on this machine.\n"}) {
    EXPECT_NE(outcome.output.find(part), std::string::npos) << part << "\n" << outcome.output;
  }
}

TEST_F(Doctor, RefusesAnInterfaceThatIsNotThere) {
  expect_refused("troupe doctor --interface nosuch",
                 "--interface nosuch: this machine has no network interface of that name with an "
                 "address; choose one of lo");
  expect_refused("troupe doctor --nosuch", "--nosuch");
}

TEST_F(Doctor, LooksAtTheInterfaceItIsGiven) {
  ifaddrs* all = nullptr;
  ASSERT_EQ(getifaddrs(&all), 0);
  std::string other;
  for (const auto* one = all; one != nullptr; one = one->ifa_next) {
    const bool is_ipv4 = one->ifa_addr != nullptr && one->ifa_addr->sa_family == AF_INET;
    if (is_ipv4 && std::string{"lo"} != one->ifa_name) other = one->ifa_name;
  }
  freeifaddrs(all);
  if (other.empty()) GTEST_SKIP() << "this machine has loopback alone";
  const auto json =
      examine_as_json("troupe doctor --json --no-shared-memory --interface " + other, 0);
  EXPECT_EQ(json.at("self-test").at("carried_by"), Json{"tcp/" + other});
  EXPECT_EQ(json.at("network_interfaces").at(other).at("used"), true);
  EXPECT_EQ(json.at("network_interfaces").at("lo").at("used"), false);
}

TEST_F(Doctor, NamesTheUsersSettingsThatWinAndStillMeasures) {
  const auto json = examine_as_json("UCX_TLS=tcp,self UCX_RNDV_THRESH=64k troupe doctor --json", 0);
  const auto& settings = json.at("UCX_settings");
  EXPECT_EQ(settings.at("UCX_TLS").at("users"), "tcp,self");
  EXPECT_EQ(settings.at("UCX_TLS").at("ours"), "posix,tcp,self");
  EXPECT_EQ(settings.at("UCX_RNDV_THRESH").at("users"), "64k");
  EXPECT_TRUE(settings.at("UCX_RNDV_THRESH").at("ours").is_null());
  EXPECT_EQ(attention(json, "UCX_TLS=tcp,self").at("what_to_do"),
            "`unset UCX_TLS` unless you mean it");
  EXPECT_FALSE(attention(json, "over TCP").is_null()) << "shared memory was allowed";
  EXPECT_TRUE(attention(json, "UCX_RNDV_THRESH").is_null()) << "it replaces nothing";
}

TEST_F(Doctor, SaysInASentenceThatAUsersSettingLeavesNothing) {
  for (const std::string setting : {"nosuch", "self"}) {
    const auto json = examine_as_json("UCX_TLS=" + setting + " troupe doctor --json", 1);
    EXPECT_EQ(json.at("works"), false);
    const auto failure = attention(json, "cannot exchange messages");
    EXPECT_EQ(failure.at("prevents_runs"), true);
    EXPECT_EQ(failure.at("what_to_do"),
              "try without your settings of UCX: env -u UCX_TLS troupe doctor");
    EXPECT_NE(failure.at("why").get<std::string>().find("UCX says '"), std::string::npos)
        << failure;
    EXPECT_EQ(attention(json, "nothing that leaves this machine").is_null(), setting == "nosuch");
  }
}

TEST_F(Doctor, SaysThatSharedMemoryAloneStaysOnThisMachine) {
  const auto json = examine_as_json("UCX_TLS=posix troupe doctor --json", 0);
  EXPECT_EQ(json.at("works"), true);
  const auto limit = attention(json, "nothing that leaves this machine");
  EXPECT_EQ(limit.at("prevents_runs"), false);
  EXPECT_EQ(limit.at("what_to_do"), "add tcp to UCX_TLS, and lo to UCX_NET_DEVICES");
}

TEST_F(Doctor, OutlivesTheProcessesItStarts) {
  const auto outcome = examine(
      "\"$TROUPE\" doctor & doctor=$!; child=; "
      "until [ \"$child\" ]; do child=$(cat /proc/$doctor/task/*/children); done; "
      "kill -KILL $child; wait $doctor");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_NE(outcome.output.find("one of the processes was killed by signal 9 (Killed)"),
            std::string::npos)
      << outcome.output;
}

TEST_F(Doctor, SaysInASentenceThatAProcessMayOpenNoFiles) {
  const auto json = examine_as_json("ulimit -n 20; troupe doctor --json", 1);
  EXPECT_FALSE(attention(json, "cannot exchange messages").is_null()) << json;
  EXPECT_FALSE(attention(json, "20 files").is_null()) << json;
}

TEST_F(Doctor, SaysWhatALaunchWouldBecome) {
  const std::string task =
      "WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 troupe doctor --json";
  const auto director = examine_as_json("RANK=0 " + task, 0).at("launch");
  EXPECT_EQ(director.at("troupe_train"), "directs the run at 127.0.0.1:29500, and starts a node");
  const auto node = examine_as_json("RANK=1 " + task, 0).at("launch");
  EXPECT_EQ(node.at("troupe_train"), "becomes a node of the director at 127.0.0.1:29500");
  EXPECT_EQ(node.at("task"), Json({{"task", 1}, {"tasks", 2}}));

  const auto lost = examine_as_json(
      "RANK=1 WORLD_SIZE=2 MASTER_ADDR=nosuch.invalid MASTER_PORT=29500 troupe doctor --json", 1);
  EXPECT_NE(attention(lost, "does not find").at("why").get<std::string>().find("nosuch.invalid"),
            std::string::npos);
  const auto torn = examine_as_json("RANK=0 troupe doctor --json", 1);
  EXPECT_NE(attention(torn, "refuses to start").at("why").get<std::string>().find("WORLD_SIZE"),
            std::string::npos);
}

TEST_F(Doctor, DrawsAttentionToLowLimits) {
  const auto files = examine_as_json("ulimit -n 200; troupe doctor --json", 0);
  EXPECT_EQ(files.at("limits").at("open_files").at("soft"), 200);
  EXPECT_EQ(attention(files, "200 files").at("what_to_do"), "ulimit -n 65536");
  if (sysconf(_SC_NPROCESSORS_ONLN) == 1) return;
  const auto bound = examine_as_json(
      "taskset -c $(taskset -cp $$ | grep -o '[0-9]*$') \"$TROUPE\" doctor --json", 0);
  EXPECT_EQ(bound.at("processor").at("cores").at("usable"), 1);
  EXPECT_FALSE(attention(bound, "may use 1 of").is_null());
}

}  // namespace troupe::cli
