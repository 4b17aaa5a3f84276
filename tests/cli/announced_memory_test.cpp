// What `troupe plan` announces is what `troupe train` uses: the peak resident size of the whole
// process, within 10 %.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "troupe/engine/memory_need.hpp"

#include "run_inputs.hpp"

namespace troupe::cli {
namespace {

/// Runs `troupe train` and returns its peak resident size in bytes.
std::uint64_t peak_bytes_of_training(const std::string& config_path) {
  const auto child = fork();
  if (child == 0) {
    const auto null = open("/dev/null", O_WRONLY);
    dup2(null, STDOUT_FILENO);
    execl(TROUPE_COMMAND, "troupe", "train", config_path.c_str(), nullptr);
    std::_Exit(127);
  }
  int status = 0;
  rusage usage{};
  EXPECT_EQ(wait4(child, &status, 0, &usage), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

TEST(AnnouncedMemory, IsThePeakResidentSizeWithinTenPercent) {
  namespace fs = std::filesystem;
  const auto folder = fs::temp_directory_path() / ("troupe-memory-" + std::to_string(getpid()));
  fs::create_directories(folder);
  {
    std::ofstream text{folder / "text"};
    for (int i = 0; i < 2000; ++i) text << "In the beginning was the word. ";
  }
  struct Case {
    const char* grid;
    const char* train;
  };
  constexpr Case cases[] = {
      {"pipeline = 1", ""},
      {"pipeline = 2\ndata = 2", ""},
      {"pipeline = 1", "recompute = \"selective\""},
      {"pipeline = 1", "recompute = \"full\""},
      {"tensor = 2\npipeline = 2", "optimizer = \"adafactor\""},
      {"data = 2", "optimizer_sharding = \"zero1\""},
      {"data = 2", "optimizer_sharding = \"zero2\""},
      {"data = 2", "optimizer_sharding = \"zero1\"\nrecompute = \"selective\""},
      {"data = 2", "optimizer_sharding = \"zero2\"\nrecompute = \"full\""}};
  for (const auto& [grid, train] : cases) {
    SCOPED_TRACE(std::string{grid} + "; " + train);
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
    const auto announced = static_cast<double>(process_bytes(*plan));
    const auto peak = static_cast<double>(peak_bytes_of_training(path));
    RecordProperty("announced", std::to_string(announced));
    RecordProperty("peak", std::to_string(peak));
    EXPECT_NEAR(announced, peak, 0.1 * peak);
  }
  fs::remove_all(folder);
}

}  // namespace
}  // namespace troupe::cli
