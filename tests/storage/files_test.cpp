#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "troupe/storage/mapped_file.hpp"
#include "troupe/storage/metrics.hpp"
#include "troupe/storage/output_folder.hpp"
#include "troupe/storage/text_file.hpp"

#include "temporary_folder.hpp"

namespace troupe::storage {
namespace {

TEST(MappedFile, HoldsTheBytesOfTheFileAlsoWhenItHasMoved) {
  const TemporaryFolder folder;
  write_file(folder / "a", "some bytes");
  auto opened = MappedFile::open(folder / "a");
  ASSERT_TRUE(opened);
  const auto* address = opened->bytes().data();
  const MappedFile moved = std::move(*opened);
  EXPECT_EQ(moved.bytes().data(), address);
  EXPECT_EQ(moved.bytes().size(), 10U);
  EXPECT_EQ(moved.bytes()[5], std::byte{'b'});
}

TEST(MappedFile, RefusesWhatIsNoFile) {
  const TemporaryFolder folder;
  const auto refusal = [](const std::string& path) {
    const auto file = MappedFile::open(path);
    return file ? "opened" : file.error().context;
  };
  EXPECT_EQ(refusal(folder / "none"),
            "cannot open " + folder / "none" + ": No such file or directory");
  EXPECT_EQ(refusal(folder.path()),
            "cannot read " + folder.path() + ": it is a folder, expected a file");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(refusal(folder / "pipe"),
            "cannot map " + folder / "pipe" + ": it is not a regular file");
}

TEST(TextFile, ReadsBackWhatWasWritten) {
  const TemporaryFolder folder;
  for (const std::string text : {"", "one\ntwo\n", "a much longer text than the one before it\n"}) {
    ASSERT_TRUE(write_text(folder / "a.txt", text));
    const auto read = read_text(folder / "a.txt");
    ASSERT_TRUE(read);
    EXPECT_EQ(*read, text);
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a.txt"});
}

TEST(TextFile, KeepsTheOldTextWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  ASSERT_TRUE(write_text(folder / "a.txt", "old"));
  const FullDisk full{1000};
  const auto written = write_text(folder / "a.txt", std::string(1001, 'x'));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, Errc::file_failure);
  EXPECT_EQ(written.error().context, "cannot write " + folder / "a.txt" + ": File too large");
  EXPECT_EQ(read_file(folder / "a.txt"), "old");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"a.txt"});
}

TEST(TextFile, RefusesToReplaceAFolder) {
  const TemporaryFolder folder;
  const auto written = write_text(folder.path(), "text");
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().context, "cannot replace " + folder.path() + ": Is a directory");
  EXPECT_FALSE(std::filesystem::exists(folder.path() + ".partial"));
}

TEST(OutputFolder, IsMadeWithTheFoldersAboveItAndLeftEmpty) {
  const TemporaryFolder folder;
  for (int i = 0; i < 2; ++i) {
    const auto output = OutputFolder::open(folder / "runs/first");
    ASSERT_TRUE(output) << output.error().context;
    EXPECT_TRUE(std::filesystem::is_empty(folder / "runs/first"));
    EXPECT_EQ(output->path_of("trace.json"), folder / "runs/first/trace.json");
  }
}

TEST(OutputFolder, WritesTextFiles) {
  const TemporaryFolder folder;
  const auto output = OutputFolder::open(folder.path());
  ASSERT_TRUE(output);
  ASSERT_TRUE(output->write("config.toml", "[model]\n"));
  EXPECT_EQ(read_file(folder / "config.toml"), "[model]\n");
}

TEST(OutputFolder, SetsAsideWhatAnEarlierRunLeft) {
  constexpr std::array<std::string_view, 3> names{"config.toml", "weights", "trace.json"};
  const TemporaryFolder folder;
  const auto output = OutputFolder::open(folder.path()).value();
  EXPECT_EQ(output.set_aside(names).value(), std::nullopt);
  EXPECT_TRUE(folder.names().empty());

  write_file(folder / "notes.txt", "mine");
  write_file(folder / "config.toml", "first");
  write_file(folder / "weights", "first");
  EXPECT_EQ(output.set_aside(names).value(), folder / "earlier-1");
  EXPECT_EQ(output.set_aside(names).value(), std::nullopt) << "nothing is left to move";
  EXPECT_EQ(read_file(folder / "earlier-1/config.toml"), "first");
  EXPECT_EQ(read_file(folder / "earlier-1/weights"), "first");
  EXPECT_FALSE(std::filesystem::exists(folder / "config.toml"));
  EXPECT_FALSE(std::filesystem::exists(folder / "weights"));
  EXPECT_EQ(read_file(folder / "notes.txt"), "mine");

  write_file(folder / "weights", "second");
  write_file(folder / "earlier-2", "a file in the way");
  EXPECT_EQ(output.set_aside(names).value(), folder / "earlier-3");
  EXPECT_EQ(read_file(folder / "earlier-3/weights"), "second");
  EXPECT_EQ(read_file(folder / "earlier-1/weights"), "first") << "never replaced";
}

TEST(OutputFolder, SaysWhatItCannotSetAside) {
  constexpr std::array<std::string_view, 1> names{"status"};
  const TemporaryFolder folder;
  const auto output = OutputFolder::open(folder / "out").value();
  std::filesystem::remove(folder / "out");
  std::filesystem::create_symlink("/proc/self", folder / "out");  // Nobody makes folders there.
  const auto moved = output.set_aside(names);
  ASSERT_FALSE(moved);
  EXPECT_EQ(moved.error().code, Errc::file_failure);
  EXPECT_TRUE(moved.error().context.starts_with("cannot move the earlier " + folder / "out/status"
                                                + " to " + folder / "out/earlier-1: "))
      << moved.error().context;
  EXPECT_TRUE(moved.error().context.ends_with("; set run.output to another folder"));
}

TEST(OutputFolder, SaysWhyItCannotBeUsed) {
  const TemporaryFolder folder;
  write_file(folder / "file", "");
  const auto below_a_file = OutputFolder::open(folder / "file/runs");
  ASSERT_FALSE(below_a_file);
  EXPECT_EQ(below_a_file.error().code, Errc::file_failure);
  EXPECT_EQ(below_a_file.error().context,
            "cannot use " + folder / "file/runs"
                + " as the output folder: Not a directory; set run.output to a folder that can be "
                  "written");
  const auto on_a_file = OutputFolder::open(folder / "file");
  ASSERT_FALSE(on_a_file);
  EXPECT_NE(on_a_file.error().context.find("Not a directory"), std::string::npos)
      << on_a_file.error().context;
  EXPECT_FALSE(OutputFolder::open("/proc/troupe"));
  EXPECT_FALSE(OutputFolder::open(""));
}

TEST(OutputFolder, NoticesAFullDiskBeforeTheRun) {
  const TemporaryFolder folder;
  const FullDisk full{0};
  const auto output = OutputFolder::open(folder.path());
  ASSERT_FALSE(output);
  EXPECT_NE(output.error().context.find("File too large"), std::string::npos);
  EXPECT_TRUE(folder.names().empty());
}

TEST(MetricLog, WritesOneObjectPerLine) {
  const TemporaryFolder folder;
  write_file(folder / "metrics.jsonl", "an older log\n");
  auto log = MetricLog::create(folder / "metrics.jsonl");
  ASSERT_TRUE(log);
  const std::vector<Metric> first{{"step", std::uint64_t{1}}, {"loss", 0.1 + 0.2}};
  const std::vector<Metric> second{{"step", ~0ULL}, {"loss", std::nan("")}, {"rate", 1e-300}};
  ASSERT_TRUE(log->append(first));
  EXPECT_EQ(read_file(folder / "metrics.jsonl"), "{\"step\":1,\"loss\":0.30000000000000004}\n");
  ASSERT_TRUE(log->append(second));
  ASSERT_TRUE(log->append({}));
  EXPECT_EQ(read_file(folder / "metrics.jsonl"),
            "{\"step\":1,\"loss\":0.30000000000000004}\n"
            "{\"step\":18446744073709551615,\"loss\":null,\"rate\":1e-300}\n{}\n");
}

TEST(MetricLog, EndsWithAWholeLineWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  auto log = MetricLog::create(folder / "metrics.jsonl");
  ASSERT_TRUE(log);
  const std::vector<Metric> metrics{{"step", std::uint64_t{123'456}}};
  ASSERT_TRUE(log->append(metrics));
  {
    const FullDisk full{20};
    const auto appended = log->append(metrics);
    ASSERT_FALSE(appended);
    EXPECT_EQ(appended.error().code, Errc::file_failure);
    EXPECT_EQ(appended.error().context,
              "cannot write " + folder / "metrics.jsonl" + ": File too large");
    EXPECT_EQ(read_file(folder / "metrics.jsonl"), "{\"step\":123456}\n");
  }
  ASSERT_TRUE(log->append(metrics));
  EXPECT_EQ(read_file(folder / "metrics.jsonl"), "{\"step\":123456}\n{\"step\":123456}\n");
}

TEST(MetricLog, NamesTheDeviceThatIsFull) {
  auto log = MetricLog::create("/dev/full");
  ASSERT_TRUE(log);
  const auto appended = log->append({});
  ASSERT_FALSE(appended);
  EXPECT_EQ(appended.error().context, "cannot write /dev/full: No space left on device");
}

TEST(MetricLog, SaysWhyItCannotBeCreated) {
  const TemporaryFolder folder;
  const auto log = MetricLog::create(folder / "none/metrics.jsonl");
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().context,
            "cannot create " + folder / "none/metrics.jsonl" + ": No such file or directory");
}

}  // namespace
}  // namespace troupe::storage
