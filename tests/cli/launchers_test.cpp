// The launchers themselves, where they are installed: what they set is what launch.cpp reads.

#include <array>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <sstream>
#include <string>

#include <gtest/gtest.h>
#include <sys/wait.h>

#include "launch.hpp"

namespace troupe::cli {
namespace {

using Lines = std::multiset<std::string>;

struct Outcome {
  int exit_code = -1;
  std::string output;
  Lines lines;
};

Outcome shell(const std::string& line) {
  Outcome outcome;
  auto* pipe = popen(("{ " + line + "; } 2>&1").c_str(), "r");
  std::array<char, 4096> buffer;
  while (const auto count = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    outcome.output.append(buffer.data(), count);
  }
  outcome.exit_code = WEXITSTATUS(pclose(pipe));
  std::istringstream text{outcome.output};
  for (std::string one; std::getline(text, one);) outcome.lines.insert(one);
  return outcome;
}

bool is_installed(const std::string& program) {
  return shell("command -v " + program).exit_code == 0;
}

/// The lines of all tasks of a run, which agree in everything but their number.
Lines tasks(const std::string& launcher, int count, const std::string& rest) {
  Lines lines;
  for (int task = 0; task < count; ++task) {
    lines.insert(launcher + " " + std::to_string(task) + " of " + std::to_string(count) + rest);
  }
  return lines;
}

std::string port_text(const std::string& run_name) {
  return std::to_string(port_of(run_name));
}

constexpr const char* alone = "none 0 of 1, director :0, listens on , run ''";

/// Quoted, as a path may hold spaces.
const std::string program = "'" TROUPE_PRINT_LAUNCH "'";
const std::string slurm_here = "'" TROUPE_SLURM_HERE "' ";

class SlurmItself : public testing::Test {
protected:
  static Outcome run(const std::string& line) {
    auto outcome = shell(slurm_here + line);
    skipped_ = outcome.exit_code == 77;
    return outcome;
  }
  static inline bool skipped_ = false;
};

#define TROUPE_SKIP_WITHOUT_SLURM(outcome) \
  if (skipped_) GTEST_SKIP() << (outcome).output

TEST_F(SlurmItself, GivesEveryTaskOfAStepItsPart) {
  const auto outcome = run("srun -n 4 " + program);
  TROUPE_SKIP_WITHOUT_SLURM(outcome);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.lines, tasks("slurm", 4,
                                 ", director 127.0.0.1:" + port_text("slurm-1.0-0")
                                     + ", listens on 127.0.0.1, run 'slurm-1.0-0'"))
      << outcome.output;
}

TEST_F(SlurmItself, NamesTheFirstOfSeveralNodes) {
  const auto outcome = run("--nodes 2 srun -N 2 -n 3 " + program);
  TROUPE_SKIP_WITHOUT_SLURM(outcome);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.lines, tasks("slurm", 3,
                                 ", director here1:" + port_text("slurm-1.0-0")
                                     + ", listens on 0.0.0.0, run 'slurm-1.0-0'"))
      << outcome.output;
}

TEST_F(SlurmItself, LeavesAllocationsAndSingleTasksAlone) {
  // The second line comes from a step of one task, which srun did start.
  const auto outcome = run("salloc -Q -n 4 sh -c \"" + program + "; srun -n 1 " + program + "\"");
  TROUPE_SKIP_WITHOUT_SLURM(outcome);
  EXPECT_EQ(outcome.lines, (Lines{alone, "slurm 0 of 1, director :0, listens on , run ''"}))
      << outcome.output;
}

TEST_F(SlurmItself, LeavesABatchScriptAloneAndNotItsSteps) {
  // By its name in the environment, as a path may hold spaces.
  ::setenv("PRINT_LAUNCH", TROUPE_PRINT_LAUNCH, 1);
  const auto outcome =
      run("sh -c 'f=$(mktemp); sbatch -Q --wait -n 3 -o $f --wrap "
          "\"\\\"\\$PRINT_LAUNCH\\\"; srun -n 2 \\\"\\$PRINT_LAUNCH\\\"\"; cat $f; rm $f'");
  TROUPE_SKIP_WITHOUT_SLURM(outcome);
  auto expected = tasks("slurm", 2,
                        ", director 127.0.0.1:" + port_text("slurm-1.0-0")
                            + ", listens on 127.0.0.1, run 'slurm-1.0-0'");
  expected.insert(alone);
  EXPECT_EQ(outcome.lines, expected) << outcome.output;
}

TEST(OpenMpiItself, GivesEveryTaskItsPart) {
  if (!is_installed("mpirun")) GTEST_SKIP() << "mpirun is not installed (openmpi-bin)";
  const auto outcome = shell("mpirun --allow-run-as-root --oversubscribe -n 4 " + program);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  ASSERT_EQ(outcome.lines.size(), 4U) << outcome.output;
  const auto& first = *outcome.lines.begin();
  const auto begin = first.find("'") + 1;
  const auto name = first.substr(begin, first.size() - begin - 1);
  EXPECT_TRUE(name.starts_with("mpirun-")) << name;
  EXPECT_EQ(outcome.lines, tasks("open_mpi", 4,
                                 ", director 127.0.0.1:" + port_text(name)
                                     + ", listens on 127.0.0.1, run '" + name + "'"));
}

TEST(OpenMpiItself, SaysWhereItIsToTasksThatAreNotAllOnOneMachine) {
  if (!is_installed("mpirun")) GTEST_SKIP() << "mpirun is not installed (openmpi-bin)";
  // There is one machine here: pretend that only one of the two tasks is on it.
  const auto outcome =
      shell("mpirun --allow-run-as-root --oversubscribe -n 2 env OMPI_COMM_WORLD_LOCAL_SIZE=1 "
            + program);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  ASSERT_EQ(outcome.lines.size(), 2U) << outcome.output;
  for (const auto& line : outcome.lines) {
    EXPECT_NE(line.find(" of 2, director "), std::string::npos) << line;
    EXPECT_EQ(line.find("director 127.0.0.1"), std::string::npos) << line;
    EXPECT_NE(line.find("listens on 0.0.0.0"), std::string::npos) << line;
  }
}

}  // namespace
}  // namespace troupe::cli
