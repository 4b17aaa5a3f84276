// Real small programs, /bin/sh, as children.

#include "child_processes.hpp"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace troupe::cli {
namespace {

constexpr std::chrono::minutes long_enough{2};

/// What children wrote and how they ended.
class Record {
public:
  ChildListener listener() {
    return {.on_line =
                [this](std::string_view line, bool is_error) {
                  add(std::string{is_error ? "! " : ""} + std::string{line});
                },
            .on_end = [this](const ChildEnd& end) { add(end.name + " " + end.how + "\n"); }};
  }
  /// Blocks until the text is there.
  void wait_for(const std::string& text) {
    std::unique_lock lock{mutex_};
    EXPECT_TRUE(changed_.wait_for(lock, long_enough, [&] {
      return text_.find(text) != std::string::npos;
    })) << text_;
  }
  std::string text() {
    const std::lock_guard lock{mutex_};
    return text_;
  }

private:
  void add(const std::string& text) {
    const std::lock_guard lock{mutex_};
    text_ += text;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_;
};

ChildProgram shell(const std::string& name, const std::string& script,
                   const std::string& secret = {}) {
  return {.name = name, .path = "/bin/sh", .arguments = {"-c", script}, .secret = secret};
}

std::unique_ptr<ChildProcesses> started(std::vector<ChildProgram> programs, Record& record) {
  auto children = ChildProcesses::start(std::move(programs), record.listener());
  if (children) return std::move(children).value();
  ADD_FAILURE() << children.error().context;
  return nullptr;
}

/// Runs a script to its end and returns what it wrote and how it ended.
std::string run(const std::string& script, const std::string& secret = {}) {
  Record record;
  const auto children = started({shell("node 0", script, secret)}, record);
  EXPECT_TRUE(children->wait_for_all(long_enough));
  return record.text();
}

/// Watches a process that need not be a child.
class Watched {
public:
  explicit Watched(pid_t pid) : life_{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))} {}
  ~Watched() { ::close(life_); }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  [[nodiscard]] bool runs() const { return !ends_within(0); }
  [[nodiscard]] bool ends() const {
    return ends_within(static_cast<int>(std::chrono::milliseconds{long_enough}.count()));
  }

private:
  [[nodiscard]] bool ends_within(int wait_ms) const {
    if (life_ < 0) return true;
    pollfd life{life_, POLLIN, 0};
    return ::poll(&life, 1, wait_ms) == 1;
  }
  int life_;
};

// -- what they write ------------------------------------------------------------------------------

TEST(ChildLines, BearTheNameOfTheirProcess) {
  EXPECT_EQ(run("echo one; printf 'two\\n\\nthree'"),
            "[node 0] one\n[node 0] two\n[node 0] \n[node 0] three\nnode 0 exited with code 0\n");
}

TEST(ChildLines, KeepOutputAndErrorsApart) {
  EXPECT_EQ(run("echo wrong >&2"), "! [node 0] wrong\nnode 0 exited with code 0\n");
}

TEST(ChildLines, AreCutIfTheyNeverEnd) {
  const auto text = run("head -c 150000 /dev/zero | tr '\\0' x");
  std::istringstream lines{text};
  std::vector<std::size_t> sizes;
  for (std::string line; std::getline(lines, line);) sizes.push_back(line.size());
  const std::size_t prefix = std::string{"[node 0] "}.size();
  ASSERT_EQ(sizes.size(), 4U);
  EXPECT_EQ(sizes[0], prefix + 65536);
  EXPECT_EQ(sizes[1], prefix + 65536);
  EXPECT_EQ(sizes[2], prefix + 150000 - 2 * 65536);
}

TEST(ChildLines, AllComeBeforeTheEnd) {
  const auto text = run("seq 20000");
  EXPECT_TRUE(text.ends_with("[node 0] 20000\nnode 0 exited with code 0\n"));
  EXPECT_EQ(std::ranges::count(text, '\n'), 20001);
}

TEST(ChildLines, PassThroughToThisProcess) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Record record;
  auto listener = record.listener();
  listener.on_line = pass_lines_through();
  auto children = ChildProcesses::start({shell("node 7", "echo one; echo two >&2")}, listener);
  ASSERT_TRUE(children);
  EXPECT_TRUE((*children)->wait_for_all(long_enough));
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "[node 7] one\n");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "[node 7] two\n");
}

// -- what they are given --------------------------------------------------------------------------

TEST(Child, ReadsItsSecretToTheEndAndNobodyElseDoes) {
  EXPECT_EQ(run("s=$(cat <&3); echo \"($s)\"", "6f70656e"),
            "[node 0] (6f70656e)\nnode 0 exited with code 0\n");
  EXPECT_EQ(run("cat /proc/$$/cmdline /proc/$$/environ | grep -c 6f7065[6]e", "6f70656e"),
            "[node 0] 0\nnode 0 exited with code 1\n");
}

TEST(Child, InheritsNoOtherDescriptor) {
  const int leaked = ::fcntl(STDIN_FILENO, F_DUPFD, 40);  // Without FD_CLOEXEC.
  ASSERT_GE(leaked, 40);
  EXPECT_EQ(run("i=0; while [ $i -lt 100 ]; do [ -e /proc/$$/fd/$i ] && echo $i; i=$((i + 1)); "
                "done; exit 0"),
            "[node 0] 0\n[node 0] 1\n[node 0] 2\n[node 0] 3\nnode 0 exited with code 0\n");
  ::close(leaked);
}

TEST(Child, ReadsNothingFromTheTerminal) {
  EXPECT_EQ(run("cat; readlink /proc/$$/fd/0"), "[node 0] /dev/null\nnode 0 exited with code 0\n");
}

TEST(Child, HasDefaultSignals) {
  const auto previous = ::signal(SIGPIPE, SIG_IGN);
  EXPECT_EQ(run("exec grep -E 'Sig(Blk|Ign)' /proc/self/status"),
            "[node 0] SigBlk:\t0000000000000000\n[node 0] SigIgn:\t0000000000000000\n"
            "node 0 exited with code 0\n");
  ::signal(SIGPIPE, previous);
}

// -- how they end ---------------------------------------------------------------------------------

TEST(ChildEnd, SaysHow) {
  EXPECT_EQ(run("exit 3"), "node 0 exited with code 3\n");
  EXPECT_EQ(run("kill -KILL $$"), "node 0 was killed by signal 9 (Killed)\n");
  EXPECT_EQ(run("kill -SEGV $$"), "node 0 was killed by signal 11 (Segmentation fault)\n");
}

TEST(ChildEnd, NamesTheProcess) {
  std::optional<ChildEnd> end;
  auto children = ChildProcesses::start(
      {shell("node 0", "exit 0")},
      {.on_line = [](auto, auto) {}, .on_end = [&](const ChildEnd& found) { end = found; }});
  ASSERT_TRUE(children);
  ASSERT_TRUE((*children)->wait_for_all(long_enough));
  EXPECT_EQ(end->pid, (*children)->pids().front());
  EXPECT_TRUE(end->succeeded);
}

std::string last_line_of(const std::string& script) {
  std::string line;
  auto children = ChildProcesses::start(
      {shell("node 0", script)},
      {.on_line = [](auto, auto) {}, .on_end = [&](const ChildEnd& end) { line = end.last_line; }});
  EXPECT_TRUE((*children)->wait_for_all(long_enough));
  return line;
}

TEST(ChildEnd, KeepsTheLastLineOfTheErrors) {
  EXPECT_EQ(last_line_of("echo first >&2; echo output; printf 'the reason\n\n' >&2; exit 2"),
            "the reason");
  EXPECT_EQ(last_line_of("printf 'no line\tbreak' >&2"), "no line break");
  EXPECT_EQ(last_line_of("echo output"), "");
  EXPECT_EQ(last_line_of("head -c 150000 /dev/zero | tr '\\0' x >&2"),
            std::string(ChildEnd::last_line_bytes_max, 'x'));
}

TEST(ChildEnd, TakesWithItWhatTheChildStarted) {
  Record record;
  const auto children = started({shell("node 0", "sleep 1000 & echo $!")}, record);
  ASSERT_TRUE(children->wait_for_all(long_enough));
  const auto text = record.text();
  const Watched left{std::stoi(text.substr(text.find("] ") + 2))};
  EXPECT_TRUE(left.ends());
}

TEST(ChildEnd, ComesForEachWhenTheParentHasNoMoreUseForThem) {
  Record record;
  auto children = started({shell("node 0",
                                 "trap 'echo asked; exit 0' TERM; echo ready; "
                                 "while :; do sleep 1000 & wait; done"),
                           shell("node 1", "echo ready; exec sleep 1000")},
                          record);
  record.wait_for("[node 0] ready");
  record.wait_for("[node 1] ready");
  EXPECT_FALSE(children->wait_for_all(std::chrono::milliseconds{0}));
  children.reset();
  for (const auto* text : {"[node 0] asked\n", "node 0 exited with code 0\n",
                           "node 1 was killed by signal 15 (Terminated)\n"}) {
    EXPECT_NE(record.text().find(text), std::string::npos) << record.text();
  }
}

TEST(ChildEnd, ComesByForceToAChildThatIgnoresTheRequest) {
  Record record;
  auto children =
      started({shell("node 0", "trap '' TERM; echo ready; while :; do sleep 1000; done")}, record);
  record.wait_for("ready");
  const Watched child{children->pids().front()};
  EXPECT_TRUE(child.runs());
  children.reset();
  EXPECT_EQ(record.text(), "[node 0] ready\nnode 0 was killed by signal 9 (Killed)\n");
  EXPECT_FALSE(child.runs());
}

TEST(ChildStart, IsOfAllOrOfNone) {
  Record record;
  const auto children = ChildProcesses::start(
      {shell("node 0", "exec sleep 1000"),
       {.name = "node 1", .path = "/nowhere/troupe", .arguments = {}, .secret = {}}},
      record.listener());
  ASSERT_FALSE(children);
  EXPECT_EQ(children.error().context,
            "cannot start node 1, /nowhere/troupe: No such file or directory");
  EXPECT_EQ(::waitpid(-1, nullptr, 0), -1) << "no child is left";
}

// -- the parent's end -----------------------------------------------------------------------------

/// Reads a line from a descriptor, without its end; for a terminal, without "\r" as well.
std::string read_line(int source) {
  std::string line;
  for (char c = 0; ::read(source, &c, 1) == 1 && c != '\n';) {
    if (c != '\r') line += c;
  }
  return line;
}

TEST(ChildParent, KilledTakesItsChildrenWithIt) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const auto parent = ::fork();
  if (parent == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    auto children = ChildProcesses::start({shell("a", "trap '' TERM; echo $$; exec sleep 1000"),
                                           shell("b", "trap '' TERM; echo $$; exec sleep 1000")},
                                          {pass_lines_through(), [](const ChildEnd&) {}});
    for (;;) ::pause();
  }
  const auto pid_in = [](const std::string& line) { return std::stoi(line.substr(4)); };
  const Watched first{pid_in(read_line(ends[0]))};
  const Watched second{pid_in(read_line(ends[0]))};
  EXPECT_TRUE(first.runs());
  EXPECT_TRUE(second.runs());
  ::kill(parent, SIGKILL);
  EXPECT_TRUE(first.ends());
  EXPECT_TRUE(second.ends());
  ::waitpid(parent, nullptr, 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

volatile sig_atomic_t interrupts = 0;

TEST(ChildParent, AloneIsReachedByCtrlC) {
  int terminal = -1;
  const auto parent = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  if (parent == 0) {
    ::signal(SIGINT, [](int) { interrupts = interrupts + 1; });
    const std::string script =
        "trap 'echo interrupted; exit 1' INT; trap 'echo asked; exit 0' TERM; "
        "echo ready; while :; do sleep 1000 & wait; done";
    auto children = ChildProcesses::start(
        {shell("node 0", script)}, {pass_lines_through(), [](const ChildEnd& end) {
                                      pass_lines_through()(end.name + " " + end.how + "\n", false);
                                    }});
    while (interrupts == 0) ::pause();
    pass_lines_through()("director interrupted\n", false);
    children.value().reset();
    ::_exit(0);
  }
  EXPECT_EQ(read_line(terminal), "[node 0] ready");
  ASSERT_EQ(::write(terminal, "\x03", 1), 1);
  EXPECT_EQ(read_line(terminal), "^Cdirector interrupted");
  EXPECT_EQ(read_line(terminal), "[node 0] asked");
  EXPECT_EQ(read_line(terminal), "node 0 exited with code 0");
  int status = 0;
  ::waitpid(parent, &status, 0);
  EXPECT_EQ(status, 0);
  ::close(terminal);
}

}  // namespace
}  // namespace troupe::cli
