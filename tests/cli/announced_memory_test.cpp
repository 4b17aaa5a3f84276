// What `troupe plan` announces is what `troupe train` uses: the peak resident size of the whole
// process, within 10 %; of several, of the largest.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "troupe/actors/memory_need.hpp"

#include "run_inputs.hpp"

namespace troupe::cli {
namespace {

/// Runs `troupe train` and returns its peak resident size in bytes, or that of its largest process.
std::uint64_t peak_bytes_of_training(const std::string& config_path, std::uint32_t process_count) {
  const auto child = fork();
  if (child == 0) {
    const auto null = open("/dev/null", O_WRONLY);
    dup2(null, STDOUT_FILENO);
    const auto count = std::to_string(process_count);
    const char* const option = process_count > 1 ? "--processes" : nullptr;
    execl(TROUPE_COMMAND, "troupe", "train", config_path.c_str(), option, count.c_str(), nullptr);
    std::_Exit(127);
  }
  int status = 0;
  rusage usage{};
  EXPECT_EQ(wait4(child, &status, 0, &usage), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

struct Case {
  const char* name;
  const char* grid;
  const char* train;
  std::uint32_t process_count = 1;

  friend void PrintTo(const Case& of, std::ostream* out) { *out << of.name; }
};

class AnnouncedMemory : public testing::TestWithParam<Case> {};

TEST_P(AnnouncedMemory, IsThePeakResidentSizeWithinTenPercent) {
  namespace fs = std::filesystem;
  const auto& [name, grid, train, process_count] = GetParam();
  const auto folder =
      fs::temp_directory_path() / ("troupe-memory-" + std::to_string(getpid()) + name);
  fs::create_directories(folder);
  {
    std::ofstream text{folder / "text"};
    for (int i = 0; i < 2000; ++i) text << "In the beginning was the word. ";
  }
  const auto path = (folder / "run.toml").string();
  std::ofstream{path} << "[model]\nlayers = 4\nheads = 4\nhidden = 256\nsequence = 128\n"
                      << "[parallel]\n"
                      << grid << "\n[schedule]\nname = \"gpipe\"\n"
                      << "microbatches = 4\nmicrobatch_size = 4\n"
                      << "[train]\nsteps = 2\nvalidation_batches = 1\n"
                      << train << "\n[data]\ntext = \"" << (folder / "text").string()
                      << "\"\n[run]\noutput = \"" << (folder / "out").string() << "\"\n";
  const auto plan = load_plan({path, {}});
  ASSERT_TRUE(plan.has_value()) << plan.error().context;
  const auto announced = static_cast<double>(actors::largest_process_bytes(*plan, process_count));
  const auto peak = static_cast<double>(peak_bytes_of_training(path, process_count));
  RecordProperty("announced", std::to_string(announced));
  RecordProperty("peak", std::to_string(peak));
  EXPECT_NEAR(announced, peak, 0.1 * peak);
  fs::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(
    Runs, AnnouncedMemory,
    testing::Values(
        Case{"one", "pipeline = 1", ""}, Case{"grid", "pipeline = 2\ndata = 2", ""},
        Case{"selective", "pipeline = 1", "recompute = \"selective\""},
        Case{"full", "pipeline = 1", "recompute = \"full\""},
        Case{"adafactor", "tensor = 2\npipeline = 2", "optimizer = \"adafactor\""},
        Case{"bf16", "pipeline = 2", "precision = \"bf16\""},
        Case{"fp16", "pipeline = 2", "precision = \"fp16\""},
        Case{"wire", "data = 2", "gradient_wire = \"bf16\""},
        Case{"rows", "tensor = 2", "sequence_parallel = true"},
        Case{"unequal_shards", "tensor = [2, 1]\npipeline = 2", ""},
        Case{"replicas_apart", "data = 4", "", 4},
        Case{"server", "data = 2", "synchronization = \"parameter_server\""},
        Case{"stale", "data = 2", "synchronization = \"parameter_server\"\nstaleness = 2"},
        Case{"zero1", "data = 2", "optimizer_sharding = \"zero1\""},
        Case{"zero2", "data = 2", "optimizer_sharding = \"zero2\""},
        Case{"zero1_selective", "data = 2",
             "optimizer_sharding = \"zero1\"\nrecompute = \"selective\""},
        Case{"zero1_full", "data = 2", "optimizer_sharding = \"zero1\"\nrecompute = \"full\""},
        Case{"zero2_selective", "data = 2",
             "optimizer_sharding = \"zero2\"\nrecompute = \"selective\""},
        Case{"zero2_full", "data = 2", "optimizer_sharding = \"zero2\"\nrecompute = \"full\""}),
    [](const auto& test) { return std::string{test.param.name}; });

}  // namespace
}  // namespace troupe::cli
