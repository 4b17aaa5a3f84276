// Every configuration among the examples is one that a run would accept.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/engine/config.hpp"
#include "troupe/engine/plan.hpp"

namespace troupe {
namespace {

std::vector<std::filesystem::path> configurations() {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator{TROUPE_EXAMPLES_DIR}) {
    if (entry.path().extension() == ".toml") found.push_back(entry.path());
  }
  return found;
}

Expected<Plan> plan_of(const std::filesystem::path& path) {
  std::ifstream file{path};
  const std::string text{std::istreambuf_iterator<char>{file}, {}};
  const auto config = parse_config(text, path.string(), {});
  if (!config) return config.error();
  if (auto valid = validate(*config); !valid) return valid.error();
  return make_plan(*config);
}

TEST(Examples, ThereAreSome) {
  EXPECT_GE(configurations().size(), 3U);
}

TEST(Examples, EveryConfigurationHasAPlan) {
  for (const auto& path : configurations()) {
    const auto plan = plan_of(path);
    EXPECT_TRUE(plan.has_value()) << path << ": " << plan.error().context;
  }
}

// What the comments in the two files promise rests on this.
TEST(Examples, InterleavedTrainsWhatSerialTrains) {
  const std::filesystem::path folder{TROUPE_EXAMPLES_DIR};
  const auto serial = plan_of(folder / "serial.toml");
  const auto interleaved = plan_of(folder / "interleaved.toml");
  ASSERT_TRUE(serial && interleaved);
  EXPECT_EQ(serial->config.model, interleaved->config.model);
  EXPECT_EQ(serial->config.train, interleaved->config.train);
  EXPECT_EQ(serial->config.data, interleaved->config.data);
  EXPECT_EQ(serial->config.parallel.data, interleaved->config.parallel.data);
  EXPECT_EQ(serial->config.schedule.microbatches, interleaved->config.schedule.microbatches);
  EXPECT_EQ(serial->config.schedule.microbatch_size, interleaved->config.schedule.microbatch_size);
}

}  // namespace
}  // namespace troupe
