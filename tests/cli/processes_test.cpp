// `troupe train` over several processes, as a person starts and disturbs them.

#include <csignal>
#include <string>

#include <gtest/gtest.h>

#include "troupe/transport/orphaned_segments.hpp"

#include "command_fixture.hpp"

namespace troupe::cli {
namespace {

class Processes : public Command {};

TEST_F(Processes, LeaveTheSameWeightsAsOne) {
  ASSERT_EQ(shell("troupe train run.toml --set run.output=one parallel.data=2").exit_code, 0);
  for (const auto* how :
       {"--processes 1", "--processes 2", "--processes 4", "--processes 4 --no-shared-memory"}) {
    const auto outcome =
        shell(std::string{"troupe train run.toml --set run.output=several parallel.data=2 "} + how);
    ASSERT_EQ(outcome.exit_code, 0) << how << "\n" << outcome.output;
    EXPECT_EQ(shell("cmp one/weights.safetensors several/weights.safetensors").exit_code, 0) << how;
  }
}

TEST_F(Processes, RecordStepsThatCanBeCompared) {
  ASSERT_EQ(shell("troupe train run.toml --set parallel.data=2 --processes 4").exit_code, 0);
  const auto outcome = shell("troupe compare out");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("\nreplica 1 rank 1  "), std::string::npos) << outcome.output;
}

TEST_F(Processes, NodesStartedByHandJoin) {
  ASSERT_EQ(shell("troupe train run.toml --set run.output=one").exit_code, 0);
  ASSERT_EQ(shell("umask 077 && echo a-secret-that-nobody-guesses > secret").exit_code, 0);
  const auto outcome = shell(
      "troupe train run.toml --set run.output=several --nodes 2 --listen 127.0.0.1:0 "
      "--secret secret > said & P=$!; "
      "until port=$(grep -o '127.0.0.1:[0-9]*' said); do sleep 0.05; done; "
      "for i in 1 2; do (cd / && troupe node --join $port --secret $OLDPWD/secret) & N+=\" $!\"; "
      "done; for i in $P $N; do wait $i || exit 1; done");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output << read("said");
  EXPECT_EQ(shell("cmp one/weights.safetensors several/weights.safetensors").exit_code, 0);
}

/// The director has opened its text before it waits; the node finds another one there, equal in
/// size.
TEST_F(Processes, ANodeWithAnotherTextIsRefused) {
  ASSERT_EQ(shell("umask 077 && echo a-secret-that-nobody-guesses > secret; "
                  "sed s/word/WORD/ corpus.txt > other.txt")
                .exit_code,
            0);
  const auto outcome = shell(
      "\"$TROUPE\" train run.toml --nodes 1 --listen 127.0.0.1:0 --secret secret > said 2>&1 & "
      "P=$!; "
      "until port=$(grep -o '127.0.0.1:[0-9]*' said); do sleep 0.05; done; mv other.txt "
      "corpus.txt; "
      "troupe node --join $port --secret secret; echo node $?; wait $P; echo director $?");
  EXPECT_NE(outcome.output.find("node 1\n"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("director 2\n"), std::string::npos) << outcome.output;
  const auto said = read("said");
  EXPECT_NE(said.find("corpus.txt has 12400 bytes, SHA-256 "), std::string::npos) << said;
  EXPECT_NE(said.find(", but the run trains on a text that has 12400 bytes, SHA-256 "),
            std::string::npos)
      << said;
  EXPECT_FALSE(exists("out")) << "nothing is written";
}

TEST_F(Processes, InterruptEndsThemAllInOrder) {
  const auto outcome = shell(
      "\"$TROUPE\" train run.toml --set train.steps=100000 --processes 2 > said & P=$!; "
      "until [ $(wc -l < out/metrics.jsonl 2>/dev/null || echo 0) -gt 3 ]; do kill -0 $P || break; "
      "sleep 0.05; done; "
      "kill -INT $P; wait $P; echo code $?; cat said");
  EXPECT_NE(outcome.output.find("code 130"), std::string::npos) << outcome.output;
  EXPECT_TRUE(exists("out/weights.safetensors"));
}

/// As Slurm does it: every process of the job gets the signal.
TEST_F(Processes, TerminationOfAllAtOnceFinishesTheStep) {
  const auto outcome = shell(
      "\"$TROUPE\" train run.toml --set train.steps=100000 --processes 2 > said 2>&1 & P=$!; "
      "until [ $(wc -l < out/metrics.jsonl 2>/dev/null || echo 0) -gt 3 ]; do kill -0 $P || break; "
      "sleep 0.05; done; "
      "kill -TERM $(pgrep -P $P) $P; wait $P; echo code $?; cat said");
  EXPECT_NE(outcome.output.find("code 143\n"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("interrupted: step "), std::string::npos) << outcome.output;
  EXPECT_EQ(outcome.output.find("troupe: "), std::string::npos) << outcome.output;
  EXPECT_TRUE(exists("out/weights.safetensors"));
}

/// Also after the run: of a process, of a segment of shared memory, of a socket there is no trace.
TEST_F(Processes, OneThatIsKilledEndsTheRunByName) {
  const auto outcome = shell(
      "\"$TROUPE\" train run.toml --set train.steps=100000 --processes 2 > said 2>&1 & P=$!; "
      "until [ $(wc -l < out/metrics.jsonl 2>/dev/null || echo 0) -gt 3 ]; do kill -0 $P || break; "
      "sleep 0.05; done; "
      "CHILDREN=$(pgrep -P $P); kill -KILL $(echo $CHILDREN | cut -d' ' -f2); wait $P; "
      "echo code $?; cat said; "
      "kill -0 $CHILDREN || echo no process");
  EXPECT_NE(outcome.output.find("code 1\n"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("\ntroupe: node "), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("is lost: it was killed by signal 9 (Killed)"), std::string::npos)
      << outcome.output;
  EXPECT_EQ(transport::remove_orphaned_segments(), 0U);
  EXPECT_NE(outcome.output.find("no process"), std::string::npos) << outcome.output;
}

/// What three launchers start: four tasks, a grid of 2 x 2.
constexpr const char* task = "\"$TROUPE\" train run.toml --set parallel.data=2 run.output=several";

class Launched : public Processes {
protected:
  /// Runs the tasks and compares with one process.
  void expect_same_weights(const std::string& line) const {
    ASSERT_EQ(shell("troupe train run.toml --set run.output=one parallel.data=2").exit_code, 0);
    const auto outcome = shell(line);
    if (outcome.exit_code == 77) GTEST_SKIP() << outcome.output;
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_NE(outcome.output.find("task 0 of 4 is the director"), std::string::npos)
        << outcome.output;
    EXPECT_EQ(shell("cmp one/weights.safetensors several/weights.safetensors").exit_code, 0);
    EXPECT_NE(shell("ls several/secret-*").exit_code, 0) << "the secret is removed";
  }
};

TEST_F(Launched, BySlurm) {
  expect_same_weights(std::string{"'" TROUPE_SLURM_HERE "' srun --kill-on-bad-exit=1 -n 4 "}
                      + task);
}

TEST_F(Launched, ByOpenMpi) {
  if (shell("command -v mpirun").exit_code != 0) {
    GTEST_SKIP() << "mpirun is not installed (openmpi-bin)";
  }
  expect_same_weights(std::string{"mpirun --allow-run-as-root --oversubscribe --bind-to none -n 4 "}
                      + task);
}

/// Also that what a launcher makes senseless is refused, by each task.
TEST_F(Launched, ByVariables) {
  const std::string port =
      "export WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT=$(python3 -c 'import socket; "
      "s = socket.socket(); s.bind((\"127.0.0.1\", 0)); print(s.getsockname()[1])'); ";
  expect_same_weights(port + "for RANK in 0 1 2 3; do export RANK; " + task
                      + " & P+=\" $!\"; done; for i in $P; do wait $i || exit 1; done");
  expect_refused(port + "RANK=1 troupe train run.toml --processes 2",
                 "--processes: a launcher has started 4 tasks");
  expect_refused(port + "RANK=1 troupe train run.toml",
                 "the launcher's tasks, 4: the grid has 2 ranks");
}

/// As Slurm and Kubernetes do it: every task gets the signal, and the director's own node.
TEST_F(Launched, ATerminationOfAllTasksFinishesTheStep) {
  const auto outcome = shell(
      "export WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT=$(python3 -c 'import socket; "
      "s = socket.socket(); s.bind((\"127.0.0.1\", 0)); print(s.getsockname()[1])'); "
      "for RANK in 0 1 2 3; do export RANK; "
      + std::string{task}
      + " train.steps=100000 >> said 2>&1 & P+=\" $!\"; done; "
        "until [ $(wc -l < several/metrics.jsonl 2>/dev/null || echo 0) -gt 3 ]; do "
        "kill -0 $P || break; sleep 0.05; done; "
        "kill -TERM $(for i in $P; do pgrep -P $i; done) $P; "
        "for i in $P; do wait $i; echo code $?; done; cat said");
  EXPECT_NE(outcome.output.find("code 143\ncode 0\ncode 0\ncode 0\n"), std::string::npos)
      << outcome.output;
  EXPECT_NE(outcome.output.find("interrupted: step "), std::string::npos) << outcome.output;
  EXPECT_TRUE(exists("several/weights.safetensors"));
}

TEST_F(Processes, BadArgumentsAreRefused) {
  expect_refused("troupe train run.toml --processes 3", "--processes 3: the grid has 2 ranks");
  expect_refused("troupe train run.toml --processes 2 --nodes 2", "give one of them");
  expect_refused("troupe train run.toml --nodes 2", "--listen HOST:PORT");
  expect_refused("troupe train run.toml --nodes 2 --listen here --secret s", "--listen");
  expect_refused("troupe train run.toml --nodes 2 --listen 127.0.0.1:0 --secret none", "none");
  expect_refused("troupe train run.toml --processes 2 --interface none0", "none0");
  expect_refused("troupe node --join 127.0.0.1:1 --secret none", "none");
  expect_refused("troupe node --join 127.0.0.1 --secret none", "--join");
}

}  // namespace
}  // namespace troupe::cli
