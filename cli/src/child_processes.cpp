#include "child_processes.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <future>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "troupe/transport/secret.hpp"

namespace troupe::cli {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t line_bytes_max = std::size_t{64} << 10U;
constexpr std::size_t secret_bytes_max = transport::secret_max_bytes;
static_assert(secret_bytes_max <= 4096, "a pipe takes as much without a reader");
constexpr int first_free_descriptor = inherited_secret_fd + 1;

/// A file descriptor, closed at the end of its scope.
class Descriptor {
public:
  explicit Descriptor(int number = -1) noexcept : number_{number} {}
  Descriptor(Descriptor&& other) noexcept : number_{std::exchange(other.number_, -1)} {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  [[nodiscard]] int number() const noexcept { return number_; }
  [[nodiscard]] bool is_open() const noexcept { return number_ >= 0; }
  void close() noexcept { Descriptor{std::exchange(number_, -1)}; }

private:
  int number_;
};

struct Pipe {
  Descriptor read_end;
  Descriptor write_end;
};

/// Both ends are closed in programs that are started, and lie above what a child is given.
std::optional<Pipe> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return std::nullopt;
  const Descriptor read_end{ends[0]};
  const Descriptor write_end{ends[1]};
  const auto lift = [](const Descriptor& end) {
    return Descriptor{::fcntl(end.number(), F_DUPFD_CLOEXEC, first_free_descriptor)};
  };
  Pipe pipe{lift(read_end), lift(write_end)};
  if (!pipe.read_end.is_open() || !pipe.write_end.is_open()) return std::nullopt;
  return pipe;
}

template <class Call>
auto again_if_interrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

Error cannot_start(const ChildProgram& program, int reason) {
  return {Errc::file_failure,
          fmt::format("cannot start {}, {}: {}", program.name, program.path,
                      std::error_code{reason, std::generic_category()}.message())};
}

// -- in the child ---------------------------------------------------------------------------------

/// What a child needs between fork and exec, where it may not allocate.
struct Preparation {
  pid_t parent;
  const char* path;
  char* const* arguments;
  int secret;
  int output;
  int error;
  int failure;  ///< Where to say, in an `int`, why it could not start.
};

void set_default_signals() {
  for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

bool take_descriptors(const Preparation& preparation) {
  const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  return nothing >= 0 && ::dup2(nothing, STDIN_FILENO) >= 0
         && ::dup2(preparation.output, STDOUT_FILENO) >= 0
         && ::dup2(preparation.error, STDERR_FILENO) >= 0
         && ::dup2(preparation.secret, inherited_secret_fd) >= 0
         && ::close_range(first_free_descriptor, ~0U, CLOSE_RANGE_CLOEXEC) == 0;
}

/// Becomes the program. The parent may have died before its death could be listened for.
[[noreturn]] void become(const Preparation& preparation) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != preparation.parent) ::_exit(EXIT_FAILURE);
  ::setpgid(0, 0);
  set_default_signals();
  if (take_descriptors(preparation)) ::execv(preparation.path, preparation.arguments);
  const int reason = errno;
  [[maybe_unused]] const auto told = ::write(preparation.failure, &reason, sizeof reason);
  ::_exit(EXIT_FAILURE);
}

// -- in the parent --------------------------------------------------------------------------------

/// Cuts what a child writes into lines.
class LineReader {
public:
  LineReader(Descriptor source, std::string prefix, bool is_error)
      : source_{std::move(source)}, line_{prefix}, prefix_{std::move(prefix)}, is_error_{is_error} {
    ::fcntl(source_.number(), F_SETFL, O_NONBLOCK);
  }

  /// -1, which `poll` ignores, after the end.
  [[nodiscard]] int descriptor() const noexcept { return source_.number(); }

  /// Reads what is there, at most 64 KiB. Returns whether there may be more.
  bool read(const ChildListener& listener) {
    std::array<char, line_bytes_max> buffer;
    if (!source_.is_open()) return false;
    const auto count = again_if_interrupted(
        [&] { return ::read(source_.number(), buffer.data(), buffer.size()); });
    if (count == 0) source_.close();
    if (count <= 0) return false;
    for (const char c : std::string_view{buffer.data(), static_cast<std::size_t>(count)}) {
      if (c == '\n' || line_.size() == prefix_.size() + line_bytes_max) finish_line(listener);
      if (c != '\n') line_ += c;
    }
    return true;
  }

  /// Reads what a child left when it ended. What others still write is not waited for.
  void finish(const ChildListener& listener) {
    for (int reads = 0; reads < 4 && read(listener); ++reads) {
    }
    if (line_.size() > prefix_.size()) finish_line(listener);
    source_.close();
  }

  /// That was not empty.
  [[nodiscard]] std::string printable_last_line() const {
    auto line = last_line_;
    std::ranges::replace_if(
        line, [](unsigned char c) { return std::iscntrl(c) != 0; }, ' ');
    return line;
  }

private:
  void finish_line(const ChildListener& listener) {
    if (line_.size() > prefix_.size()) {
      last_line_ = line_.substr(prefix_.size(), ChildEnd::last_line_bytes_max);
    }
    line_ += '\n';
    listener.on_line(line_, is_error_);
    line_ = prefix_;
  }

  Descriptor source_;
  std::string line_;
  std::string prefix_;
  std::string last_line_;
  bool is_error_;
};

struct Child {
  std::string name;
  pid_t pid;
  Descriptor life;  ///< Readable when it has ended.
  LineReader output;
  LineReader error;
  bool ended = false;

  /// Its whole group. The process id is its own until it is reaped.
  void signal(int number) const { ::kill(-pid, number); }
};

/// Waits until the program runs, or returns why it does not.
int wait_for_exec(const Descriptor& failure) {
  int reason = 0;
  const auto count =
      again_if_interrupted([&] { return ::read(failure.number(), &reason, sizeof reason); });
  return count == 0 ? 0 : reason;
}

/// glibc 2.36 declares this in <sys/pidfd.h> without C linkage.
int open_life_of(pid_t pid) {
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
}

Expected<Child> start_child(const ChildProgram& program) {
  TROUPE_ASSERT(program.secret.size() <= secret_bytes_max);
  auto secret = make_pipe();
  auto output = make_pipe();
  auto error = make_pipe();
  auto failure = make_pipe();
  if (!secret || !output || !error || !failure) return cannot_start(program, errno);
  const auto written =
      ::write(secret->write_end.number(), program.secret.data(), program.secret.size());
  if (written < 0) return cannot_start(program, errno);

  std::vector<std::string> texts{program.path};
  texts.insert(texts.end(), program.arguments.begin(), program.arguments.end());
  std::vector<char*> arguments;
  for (auto& text : texts) arguments.push_back(text.data());
  arguments.push_back(nullptr);
  const Preparation preparation{.parent = ::getpid(),
                                .path = program.path.c_str(),
                                .arguments = arguments.data(),
                                .secret = secret->read_end.number(),
                                .output = output->write_end.number(),
                                .error = error->write_end.number(),
                                .failure = failure->write_end.number()};
  const pid_t pid = ::fork();
  if (pid < 0) return cannot_start(program, errno);
  if (pid == 0) become(preparation);

  failure->write_end.close();
  int reason = wait_for_exec(failure->read_end);
  Descriptor life{reason == 0 ? open_life_of(pid) : -1};
  if (!life.is_open()) {
    if (reason == 0) reason = errno;
    ::kill(pid, SIGKILL);
    again_if_interrupted([&] { return ::waitpid(pid, nullptr, 0); });
    return cannot_start(program, reason);
  }
  const auto prefix = fmt::format("[{}] ", program.name);
  return Child{.name = program.name,
               .pid = pid,
               .life = std::move(life),
               .output = {std::move(output->read_end), prefix, false},
               .error = {std::move(error->read_end), prefix, true}};
}

/// Collects the status of a process that has ended.
ChildEnd reap(const Child& child) {
  ChildEnd end{.name = child.name, .pid = child.pid, .how = "ended", .last_line = {}};
  int status = 0;
  if (again_if_interrupted([&] { return ::waitpid(child.pid, &status, 0); }) < 0) return end;
  if (WIFEXITED(status)) {
    end.succeeded = WEXITSTATUS(status) == EXIT_SUCCESS;
    end.how = fmt::format("exited with code {}", WEXITSTATUS(status));
  } else {
    const char* name = ::sigdescr_np(WTERMSIG(status));
    end.how = fmt::format("was killed by signal {} ({})", WTERMSIG(status),
                          name == nullptr ? "without a name" : name);
  }
  return end;
}

void block_signals() {
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

}  // namespace

/// Everything happens on one thread, which starts the children too: the kernel takes the end of the
/// thread that started a child for the death of the parent.
class ChildProcesses::Impl {
public:
  explicit Impl(ChildListener listener) : listener_{std::move(listener)} {}
  ~Impl() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(stop_.number(), &one, sizeof one);
    if (thread_.joinable()) thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Expected<Done> start(const std::vector<ChildProgram>& programs) {
    std::promise<Expected<Done>> started;
    thread_ = std::thread{[&] {
      ::pthread_setname_np(::pthread_self(), "children");
      block_signals();  // They are for the other threads.
      auto outcome = start_all(programs);
      const bool running = outcome.has_value();
      started.set_value(std::move(outcome));
      if (running) watch();
    }};
    return started.get_future().get();
  }

  [[nodiscard]] const std::vector<pid_t>& pids() const noexcept { return pids_; }

  [[nodiscard]] bool wait_for_all(std::chrono::milliseconds time) {
    std::unique_lock lock{mutex_};
    return all_ended_.wait_for(lock, time, [&] { return ended_count_ == pids_.size(); });
  }

private:
  Expected<Done> start_all(const std::vector<ChildProgram>& programs) {
    if (!stop_.is_open()) {
      return Error{Errc::file_failure, "too many open files to start processes; see `ulimit -n`"};
    }
    for (const auto& program : programs) {
      auto child = start_child(program);
      if (!child) {
        for (const auto& other : children_) {
          other.signal(SIGKILL);
          reap(other);
        }
        return child.error();
      }
      pids_.push_back(child->pid);
      children_.push_back(std::move(child).value());
    }
    return Done{};
  }

  void signal_all(int number) const {
    for (const auto& child : children_) {
      if (!child.ended) child.signal(number);
    }
  }

  /// Until the last child has ended.
  void watch() {
    std::optional<Clock::time_point> kill_time;
    bool stopping = false;
    while (std::ranges::any_of(children_, [](const Child& child) { return !child.ended; })) {
      const bool stop_wanted = wait(stopping, kill_time);
      for (auto& child : children_) {
        if (!child.ended) attend_to(child);
      }
      if (stop_wanted && !stopping) {
        stopping = true;
        kill_time = Clock::now() + patience;
        signal_all(SIGTERM);
        signal_all(SIGCONT);  // One that was stopped would not hear the request.
      }
      if (kill_time && Clock::now() >= *kill_time) {
        kill_time.reset();
        signal_all(SIGKILL);
      }
    }
  }

  /// Blocks until there is something to do. Returns whether the children are to be ended.
  bool wait(bool stopping, const std::optional<Clock::time_point>& kill_time) const {
    std::vector<pollfd> waits{{stopping ? -1 : stop_.number(), POLLIN, 0}};
    for (const auto& child : children_) {
      if (child.ended) continue;
      waits.push_back({child.output.descriptor(), POLLIN, 0});
      waits.push_back({child.error.descriptor(), POLLIN, 0});
      waits.push_back({child.life.number(), POLLIN, 0});
    }
    int wait_ms = -1;
    if (kill_time) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*kill_time - Clock::now());
      wait_ms = static_cast<int>(std::max<std::int64_t>(left.count(), 0));
    }
    ::poll(waits.data(), waits.size(), wait_ms);
    return (waits.front().revents & POLLIN) != 0;
  }

  void attend_to(Child& child) {
    child.output.read(listener_);
    child.error.read(listener_);
    pollfd life{child.life.number(), POLLIN, 0};
    if (::poll(&life, 1, 0) != 1) return;
    // What it has started. Nobody else has its number before it is reaped.
    child.signal(SIGKILL);
    child.output.finish(listener_);
    child.error.finish(listener_);
    child.ended = true;
    auto end = reap(child);
    end.last_line = child.error.printable_last_line();
    listener_.on_end(end);
    const std::lock_guard lock{mutex_};
    ++ended_count_;
    all_ended_.notify_all();
  }

  ChildListener listener_;
  Descriptor stop_{::eventfd(0, EFD_CLOEXEC)};
  std::vector<Child> children_;  ///< Of the thread alone.
  std::vector<pid_t> pids_;      ///< Constant once started.
  std::mutex mutex_;
  std::condition_variable all_ended_;
  std::size_t ended_count_ = 0;
  std::thread thread_;
};

Expected<std::string> read_inherited_secret(int descriptor) {
  std::string secret;
  std::array<char, transport::secret_max_bytes> bytes{};
  for (ssize_t count = 0; (count = ::read(descriptor, bytes.data(), bytes.size())) > 0;) {
    secret.append(bytes.data(), static_cast<std::size_t>(count));
  }
  ::close(descriptor);
  if (secret.size() >= transport::secret_min_bytes) return secret;
  return Error{Errc::invalid_config,
               fmt::format("--secret-fd {}: found {} bytes, expected a secret of at least {}",
                           descriptor, secret.size(), transport::secret_min_bytes)};
}

std::function<void(std::string_view line, bool is_error)> pass_lines_through() {
  return [](std::string_view line, bool is_error) {
    const int target = is_error ? STDERR_FILENO : STDOUT_FILENO;
    while (!line.empty()) {
      const auto count =
          again_if_interrupted([&] { return ::write(target, line.data(), line.size()); });
      if (count <= 0) return;  // Nobody reads any more.
      line.remove_prefix(static_cast<std::size_t>(count));
    }
  };
}

Expected<std::unique_ptr<ChildProcesses>> ChildProcesses::start(std::vector<ChildProgram> programs,
                                                                ChildListener listener) {
  TROUPE_ASSERT(listener.on_line && listener.on_end);
  auto impl = std::make_unique<Impl>(std::move(listener));
  if (auto started = impl->start(programs); !started) return started.error();
  return std::unique_ptr<ChildProcesses>{new ChildProcesses{std::move(impl)}};
}

ChildProcesses::ChildProcesses(std::unique_ptr<Impl> impl) : impl_{std::move(impl)} {}
ChildProcesses::~ChildProcesses() = default;

const std::vector<pid_t>& ChildProcesses::pids() const noexcept {
  return impl_->pids();
}

bool ChildProcesses::wait_for_all(std::chrono::milliseconds time) {
  return impl_->wait_for_all(time);
}

}  // namespace troupe::cli
