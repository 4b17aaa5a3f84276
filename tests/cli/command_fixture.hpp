// tests/cli/command_fixture.hpp -- the `troupe` command in a folder of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace troupe::cli {

namespace fs = std::filesystem;

struct Outcome {
  int exit_code = -1;
  std::string output;  ///< stdout and stderr as they came.
};

/// A folder of its own for each test, removed at the end.
class Command : public testing::Test {
protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = test->name();
    std::ranges::replace(name, '/', '-');  // Of a test with parameters.
    folder_ = fs::temp_directory_path() / ("troupe-" + std::to_string(getpid()) + "-" + name);
    fs::create_directories(folder_);
    std::string text;
    for (int i = 0; i < 400; ++i) text += "In the beginning was the word. ";
    write("corpus.txt", text);
    write("run.toml", config());
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string config() {
    return "[model]\n"
           "layers = 4\nheads = 2\nhidden = 16\nsequence = 16\n"
           "[parallel]\n"
           "pipeline = 2\n"
           "[schedule]\n"
           "name = \"1f1b\"\nmicrobatches = 4\nmicrobatch_size = 2\n"
           "[train]\n"
           "steps = 6\nwarmup_steps = 2\nvalidation_interval = 3\nvalidation_batches = 1\n"
           "[data]\n"
           "text = \"corpus.txt\"\n"
           "[run]\n"
           "output = \"out\"\n";
  }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream{folder_ / name, std::ios::binary} << text;
  }
  std::string read(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream{folder_ / name, std::ios::binary}.rdbuf();
    return text.str();
  }
  bool exists(const std::string& name) const { return fs::exists(folder_ / name); }

  /// Runs a shell line in the test's folder; `troupe` is the command under test, and $TROUPE its
  /// path: a process started in the background with it is `$!` itself.
  Outcome shell(const std::string& line) const {
    const auto script = "cd '" + folder_.string()
                        + "' && TROUPE='" TROUPE_COMMAND "' && troupe() { \"$TROUPE\" \"$@\"; }; { "
                        + line + "; } 2>&1";
    auto* pipe = popen(("bash -c '" + escaped(script) + "'").c_str(), "r");
    Outcome outcome;
    std::array<char, 4096> buffer;
    while (const auto count = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
      outcome.output.append(buffer.data(), count);
    }
    const auto status = pclose(pipe);
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return outcome;
  }

  void expect_refused(const std::string& line, const std::string& sentence) const {
    const auto outcome = shell(line);
    EXPECT_EQ(outcome.exit_code, 2) << line << "\n" << outcome.output;
    EXPECT_NE(outcome.output.find(sentence), std::string::npos)
        << line << "\nsaid: " << outcome.output << "expected: " << sentence;
    EXPECT_TRUE(outcome.output.starts_with("troupe: ")) << outcome.output;
    EXPECT_EQ(std::ranges::count(outcome.output, '\n'), 1) << "one line: " << outcome.output;
    EXPECT_FALSE(exists("out")) << "nothing may be written";
  }

  fs::path folder_;

private:
  static std::string escaped(const std::string& text) {
    std::string result;
    for (const char c : text) result += c == '\'' ? std::string{"'\\''"} : std::string{c};
    return result;
  }
};

}  // namespace troupe::cli
