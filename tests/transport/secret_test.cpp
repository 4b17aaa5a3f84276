#include "troupe/transport/secret.hpp"

#include <filesystem>
#include <string>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "../storage/temporary_folder.hpp"

namespace troupe::transport {

using storage::read_file;
using storage::TemporaryFolder;
using storage::write_file;

struct Secret : ::testing::Test {
  /// Makes a file with `content` and `mode`, and returns what reading it says.
  [[nodiscard]] std::string refusal(std::string_view content, mode_t mode = 0600) const {
    write_file(path, content);
    ::chmod(path.c_str(), mode);
    const auto secret = read_secret(path);
    return secret ? "none" : secret.error().context;
  }

  TemporaryFolder folder;
  std::string path = folder / "secret";
};

TEST_F(Secret, IsNeverTheSameTwice) {
  const auto one = make_secret();
  const auto other = make_secret();
  ASSERT_TRUE(one && other);
  EXPECT_EQ(one->size(), 64U);
  EXPECT_EQ(one->find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_NE(*one, *other);
}

TEST_F(Secret, IsReadAsItWasWritten) {
  ASSERT_TRUE(write_secret(path));
  struct stat status {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
  const auto secret = read_secret(path);
  ASSERT_TRUE(secret) << secret.error().context;
  EXPECT_EQ(*secret + "\n", read_file(path));
  EXPECT_EQ(secret->size(), 64U);
}

TEST_F(Secret, IsNotWrittenOverAnother) {
  write_file(path, "another");
  const auto written = write_secret(path);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().context, "cannot create the secret " + path
                                         + ": File exists; use the one that is there, or remove it "
                                           "first");
  EXPECT_EQ(read_file(path), "another");
}

TEST_F(Secret, IsNotWrittenInNoFolder) {
  const auto written = write_secret(folder / "no/secret");
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().context,
            "cannot create the secret " + (folder / "no/secret")
                + ": No such file or directory; choose a folder that can be written to");
}

TEST_F(Secret, LosesOneLineBreakAtItsEnd) {
  write_file(path, "0123456789abcdef\n\n");
  ::chmod(path.c_str(), 0400);
  const auto secret = read_secret(path);
  ASSERT_TRUE(secret) << secret.error().context;
  EXPECT_EQ(*secret, "0123456789abcdef\n");
}

TEST_F(Secret, HasALengthWithinBounds) {
  const std::string bounds = "the secret " + path
                             + " must have 16 to 4096 bytes without the line break at its end, "
                               "and has ";
  EXPECT_EQ(refusal(""), bounds + "0");
  EXPECT_EQ(refusal("0123456789abcde\n"), bounds + "15");
  EXPECT_EQ(refusal("0123456789abcdef"), "none");
  EXPECT_EQ(refusal(std::string(4096, 'x') + "\n"), "none");
  EXPECT_EQ(refusal(std::string(4097, 'x')), bounds + "more");
  EXPECT_EQ(refusal(std::string(1000000, 'x')), bounds + "more");
}

TEST_F(Secret, IsItsOwnersAlone) {
  for (const mode_t mode : {0640U, 0604U, 0620U, 0601U, 0777U}) {
    EXPECT_EQ(refusal("0123456789abcdef", mode), "others than its owner have access to the secret "
                                                     + path + ": run  chmod 600 " + path);
  }
}

TEST_F(Secret, IsARegularFile) {
  const auto missing = read_secret(path);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().context,
            "cannot open the secret " + path
                + ": No such file or directory; name the file that the director was started with");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  for (const auto& other : {path, folder.path()}) {
    const auto secret = read_secret(other);
    ASSERT_FALSE(secret);
    EXPECT_EQ(secret.error().context, "the secret " + other + " is not a regular file");
  }
}

}  // namespace troupe::transport
