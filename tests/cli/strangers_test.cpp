// Who does not belong to a run does not disturb it, and is told so or logged once.

#include "strangers_fixture.hpp"

namespace troupe::cli {
namespace {

TEST_F(Strangers, ANodeTooManyIsSentAway) {
  auto third = start_node(*director_, "third");
  ASSERT_TRUE(third.wait_for(milliseconds{20000}));
  EXPECT_EQ(third.exit_code(), 1);
  EXPECT_EQ(third.last_sentence(),
            "the director at " + place_of(*director_)
                + " refuses this node: the run has begun without this node: every node is in");
  expect_said({});
  expect_undisturbed();
}

TEST_F(Strangers, ANodeWithAnotherSecretIsSentAwayAndLoggedOnce) {
  write("other", "a-secret-of-another-run\n");
  fs::permissions(folder_ / "other", fs::perms::owner_read | fs::perms::owner_write);
  for (const auto* name : {"third", "fourth", "fifth"}) {
    auto other = start_node(*director_, name, "other");
    ASSERT_TRUE(other.wait_for(milliseconds{20000}));
    EXPECT_EQ(other.exit_code(), 2);
    EXPECT_EQ(other.last_sentence(), "the director at " + place_of(*director_)
                                         + " has another secret than this node: give both the same "
                                           "file");
  }
  expect_said(
      {"127.0.0.1 runs troupe with another secret than this director: give both the same "
       "file"});
  expect_undisturbed();
}

TEST_F(Strangers, WhoSpeaksAnotherProtocolAtTheGateIsLoggedOnce) {
  for (int round = 0; round < 3; ++round) speak_to(gate_port_);
  const auto only = " at " + gate() + ": only nodes of troupe may connect there";
  expect_said({"127.0.0.1 spoke HTTP instead of troupe's greeting" + only,
               "127.0.0.1 spoke an unknown protocol instead of troupe's greeting" + only,
               "127.0.0.1 closed the connection too early" + only});
  expect_undisturbed();
}

/// Each process has a port where fabrics meet, which says so, and ports of UCX, which drops them
/// without a word.
TEST_F(Strangers, WhoSpeaksAnotherProtocolToLinksIsLoggedOnce) {
  for (const auto& node : nodes_) {
    for (const auto port : ports_of(node.pid())) speak_to(port);
  }
  expect_said(*director_, {});
  for (auto& node : nodes_) {
    expect_said(node, {"127.0.0.1 spoke HTTP instead of troupe's greeting at port ",
                       "127.0.0.1 spoke an unknown protocol instead of troupe's greeting at port ",
                       "127.0.0.1 closed the connection too early at port "});
  }
  expect_undisturbed();
}

/// Also at the ports of links.
TEST_F(Strangers, AThousandSilentConnectionsAreLoggedOnce) {
  const auto ports = ports_of(nodes_[0].pid());
  set_open_files_limit(1000 * (ports.size() + 1) + 500);
  if (IsSkipped()) return;
  std::vector<Connection> silent;
  for (int i = 0; i < 1000; ++i) silent.emplace_back(gate_port_);
  for (const auto port : ports) {
    for (int i = 0; i < 1000; ++i) silent.emplace_back(port);
  }
  expect_said(*director_, {"127.0.0.1 was dropped unheard from " + gate()
                               + ", where more than 64 connections waited without a proof",
                           "127.0.0.1 proved nothing at " + gate() + " within 5000 ms"});
  expect_said(nodes_[0],
              {"127.0.0.1 was dropped unheard from port ", "127.0.0.1 proved nothing at "});
  expect_said(nodes_[1], {});
  expect_undisturbed();
}

class FullSharedMemory : public Run {};

/// In a namespace of its own, where shared memory has a size of its own.
TEST_F(FullSharedMemory, EndsARunWithASentenceUnlessItGoesWithout) {
  const auto with_kib = [&](int size_kib, const std::string& more) {
    return shell("unshare -rm bash -c 'mount -t tmpfs -o size=" + std::to_string(size_kib)
                 + "k tmpfs /dev/shm || exit 77; \"$0\" train run.toml --processes 2 " + more
                 + "; code=$?; ls -A /dev/shm; exit $code' \"$TROUPE\"");
  };
  const auto roomy = with_kib(64 << 10, "");
  if (roomy.exit_code != 0 && roomy.output.find("troupe: ") == std::string::npos) {
    GTEST_SKIP() << "mounting needs user namespaces: " << roomy.output;
  }
  EXPECT_EQ(roomy.exit_code, 0) << roomy.output;
  // Too little for anything, for one end of a connection, for some, for all but one.
  for (const auto size_kib : {4, 64, 4500, 10000, 24000}) {
    const auto full = with_kib(size_kib, "");
    EXPECT_TRUE(full.exit_code == 1 || full.exit_code == 2) << size_kib << full.output;
    EXPECT_NE(full.output.find("/dev/shm, the memory that processes share, has "),
              std::string::npos)
        << size_kib << full.output;
    EXPECT_EQ(full.output.find("ucx_shm_posix"), std::string::npos) << full.output;
  }
  EXPECT_EQ(with_kib(4, "--no-shared-memory").exit_code, 0);
}

}  // namespace
}  // namespace troupe::cli
