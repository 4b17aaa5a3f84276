#include "peer_process.hpp"

#include <algorithm>
#include <csignal>
#include <fstream>
#include <sstream>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace troupe::cli {

namespace fs = std::filesystem;

namespace {

/// Between fork and exec nothing may be allocated.
[[noreturn]] void become_troupe(const char* folder, const char* said, char* const* arguments) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::setpgid(0, 0);
  const int nothing = ::open("/dev/null", O_RDONLY);
  if (::chdir(folder) != 0) ::_exit(126);
  const int output = ::open(said, O_WRONLY | O_CREAT | O_APPEND, 0600);
  ::dup2(nothing, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(output, STDERR_FILENO);
  ::execv(TROUPE_COMMAND, arguments);
  ::_exit(127);
}

std::string text_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream{path, std::ios::binary}.rdbuf();
  return text.str();
}

}  // namespace

PeerProcess::PeerProcess(fs::path folder, std::string name,
                         const std::vector<std::string>& arguments)
    : folder_{std::move(folder)}, name_{std::move(name)} {
  std::vector<std::string> texts{"troupe"};
  texts.insert(texts.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (auto& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  const auto said = name_ + ".said";
  pid_ = ::fork();
  if (pid_ == 0) become_troupe(folder_.c_str(), said.c_str(), pointers.data());
  ::setpgid(pid_, pid_);
  life_ = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
  EXPECT_GE(life_, 0) << name_;
}

PeerProcess::~PeerProcess() {
  if (pid_ > 0 && !has_ended_) {
    signal(SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (life_ >= 0) ::close(life_);
}

PeerProcess::PeerProcess(PeerProcess&& other) noexcept
    : folder_{std::move(other.folder_)},
      name_{std::move(other.name_)},
      pid_{std::exchange(other.pid_, -1)},
      life_{std::exchange(other.life_, -1)},
      has_ended_{other.has_ended_},
      exit_code_{other.exit_code_} {}

void PeerProcess::signal(int number) const {
  if (!has_ended_) ::kill(pid_, number);
}

bool PeerProcess::wait_for(std::chrono::milliseconds time) {
  if (has_ended_) return true;
  pollfd life{life_, POLLIN, 0};
  if (::poll(&life, 1, static_cast<int>(std::max<std::int64_t>(time.count(), 0))) != 1) {
    return false;
  }
  int status = 0;
  ::waitpid(pid_, &status, 0);
  has_ended_ = true;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return true;
}

bool PeerProcess::wait_until(const std::function<bool()>& holds) {
  constexpr std::chrono::milliseconds pause{3};
  const auto limit = Clock::now() + std::chrono::minutes{1};
  while (!holds()) {
    if (Clock::now() > limit || wait_for(pause)) return holds();
  }
  return true;
}

std::string PeerProcess::said() const {
  return text_of(folder_ / (name_ + ".said"));
}

std::string PeerProcess::last_sentence() const {
  constexpr std::string_view begin = "troupe: ";
  std::istringstream lines{said()};
  std::string sentence;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(begin)) sentence = line.substr(begin.size());
  }
  return sentence;
}

std::vector<pid_t> PeerProcess::children() const {
  std::vector<pid_t> result;
  std::error_code ignored;
  const auto tasks = fs::path{"/proc"} / std::to_string(pid_) / "task";
  for (const auto& task : fs::directory_iterator{tasks, ignored}) {
    std::istringstream numbers{text_of(task.path() / "children")};
    for (pid_t child = 0; numbers >> child;) result.push_back(child);
  }
  return result;
}

}  // namespace troupe::cli
