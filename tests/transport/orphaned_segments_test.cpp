#include "troupe/transport/orphaned_segments.hpp"

#include <csignal>
#include <string>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

namespace troupe::transport {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t size_bytes = 4096;

/// A folder of shared memory.
class OrphanedSegments : public testing::Test {
protected:
  void SetUp() override {
    folder_ = "/dev/shm/troupe-test-" + std::to_string(::getpid());
    fs::create_directory(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  [[nodiscard]] int make(const std::string& name) const {
    const int file = ::open((folder_ / name).c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    EXPECT_EQ(::ftruncate(file, size_bytes), 0);
    return file;
  }

  [[nodiscard]] bool exists(const std::string& name) const { return fs::exists(folder_ / name); }

  fs::path folder_;
};

TEST_F(OrphanedSegments, AreRemovedAndNothingElseIs) {
  ::close(make("ucx_shm_posix_1a"));
  ::close(make("ucx_shm_posix_2b"));
  ::close(make("of_somebody_else"));
  EXPECT_EQ(remove_orphaned_segments(folder_), 2U);
  EXPECT_FALSE(exists("ucx_shm_posix_1a"));
  EXPECT_FALSE(exists("ucx_shm_posix_2b"));
  EXPECT_TRUE(exists("of_somebody_else"));
}

TEST_F(OrphanedSegments, StayWhileSomebodyHasThemOpenOrMapped) {
  const int open = make("ucx_shm_posix_open");
  const int mapped = make("ucx_shm_posix_mapped");
  void* memory = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ::close(mapped);
  EXPECT_EQ(remove_orphaned_segments(folder_), 0U);
  ::close(open);
  ::munmap(memory, size_bytes);
  EXPECT_EQ(remove_orphaned_segments(folder_), 2U);
}

TEST_F(OrphanedSegments, OfAProcessGoWhenItIsKilled) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t owner = ::fork();
  if (owner == 0) {
    const int file = ::open((folder_ / "ucx_shm_posix_1a").c_str(), O_RDWR | O_CREAT, 0600);
    [[maybe_unused]] const auto told = ::write(ready[1], "r", file >= 0 ? 1 : 0);
    while (true) ::pause();
  }
  char letter = 0;
  ASSERT_EQ(::read(ready[0], &letter, 1), 1);
  EXPECT_EQ(remove_orphaned_segments(folder_), 0U);
  ::kill(owner, SIGKILL);
  ::waitpid(owner, nullptr, 0);
  EXPECT_EQ(remove_orphaned_segments(folder_), 1U);
  ::close(ready[0]);
  ::close(ready[1]);
}

/// Two that look for them at once hinder, but do not end, each other.
TEST_F(OrphanedSegments, MayBeRemovedBySeveralProcessesAtOnce) {
  for (int i = 0; i < 200; ++i) ::close(make("ucx_shm_posix_" + std::to_string(i)));
  std::vector<pid_t> others;
  for (int i = 0; i < 4; ++i) {
    others.push_back(::fork());
    if (others.back() != 0) continue;
    for (int round = 0; round < 5; ++round) remove_orphaned_segments(folder_);
    ::_exit(0);
  }
  for (const auto other : others) {
    int status = -1;
    ::waitpid(other, &status, 0);
    EXPECT_EQ(status, 0);
  }
  remove_orphaned_segments(folder_);
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace troupe::transport
