// Secrets in files, between threads that stand for the tasks of a launch.

#include "shared_secret.hpp"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "../storage/temporary_folder.hpp"

namespace troupe::cli {
namespace {

using storage::TemporaryFolder;

constexpr std::chrono::minutes long_enough{2};

TEST(SharedSecret, LiesInTheOutputFolderUnderTheRunsName) {
  EXPECT_EQ(shared_secret_path("runs/a", "slurm-7.0-0"), "runs/a/secret-slurm-7.0-0");
}

TEST(SharedSecret, IsReadableByItsOwnerAloneAndGoneAtTheEnd) {
  const TemporaryFolder folder;
  const auto path = folder / "out/new/secret-a";
  auto published = SharedSecret::publish(path);
  ASSERT_TRUE(published) << published.error().context;
  struct stat status {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  EXPECT_EQ((*published)->secret().size(), 64U);
  published->reset();
  EXPECT_TRUE(std::filesystem::is_empty(folder / "out/new"));
}

TEST(SharedSecret, ReachesATaskThatWasThereBefore) {
  const TemporaryFolder folder;
  const auto path = folder / "out/secret-a";
  auto waiting =
      std::async(std::launch::async, [&] { return await_shared_secret(path, long_enough); });
  const auto published = SharedSecret::publish(path);
  const auto secret = waiting.get();
  ASSERT_TRUE(secret) << secret.error().context;
  EXPECT_EQ(*secret, (*published)->secret());
}

TEST(SharedSecret, OfAnEarlierRunIsReplaced) {
  const TemporaryFolder folder;
  const auto path = folder / "secret-a";
  std::string earlier;
  {
    const auto published = SharedSecret::publish(path);
    earlier = (*published)->secret();
    std::filesystem::copy_file(path, folder / "kept");
    std::filesystem::copy_file(path, folder / "secret-a.new");  // Killed while it wrote.
  }
  std::filesystem::rename(folder / "kept", path);
  const auto published = SharedSecret::publish(path);
  ASSERT_TRUE(published) << published.error().context;
  EXPECT_NE((*published)->secret(), earlier);
  EXPECT_EQ(*await_shared_secret(path, long_enough), (*published)->secret());
}

TEST(SharedSecret, ThatDoesNotComeIsMissedByItsPath) {
  const TemporaryFolder folder;
  const auto path = folder / "secret-a";
  const auto secret = await_shared_secret(path, std::chrono::milliseconds{0});
  ASSERT_FALSE(secret);
  EXPECT_EQ(secret.error().code, Errc::peer_unreachable);
  EXPECT_EQ(secret.error().context,
            "task 0 has not left the secret " + path
                + " in 0 seconds; see what task 0 says, and whether run.output is one folder on "
                  "all machines, or give every task one secret with --secret FILE");
}

TEST(SharedSecret, ThatOthersCouldReadIsRefusedAtOnce) {
  const TemporaryFolder folder;
  const auto path = folder / "secret-a";
  std::ofstream{path} << std::string(64, 'a');
  ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
  const auto secret = await_shared_secret(path, long_enough);
  ASSERT_FALSE(secret);
  EXPECT_EQ(secret.error().code, Errc::invalid_file);
}

TEST(SharedSecret, ThatCannotBeWrittenSaysWhatToDo) {
  const TemporaryFolder folder;
  std::ofstream{folder / "file"} << "x";
  const auto published = SharedSecret::publish(folder / "file/secret-a");
  ASSERT_FALSE(published);
  EXPECT_EQ(published.error().code, Errc::file_failure);
  EXPECT_EQ(published.error().context,
            "cannot write the secret " + (folder / "file/secret-a")
                + ": Not a directory; choose another run.output, or give every task one secret "
                  "with --secret FILE");
}

}  // namespace
}  // namespace troupe::cli
