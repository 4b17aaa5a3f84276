// tests/cli/strangers_fixture.hpp -- a run that is under way, and who does not belong to it.
#pragma once

#include <csignal>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <utility>

#include <arpa/inet.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "troupe/transport/orphaned_segments.hpp"

#include "run_fixture.hpp"

namespace troupe::cli {

using std::chrono::milliseconds;

/// A stranger's connection to a port of this machine, or to one that is gone.
class Connection {
public:
  explicit Connection(std::uint16_t port)
      : socket_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)} {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0)
        << "port " << port << ": " << std::strerror(errno);
  }
  ~Connection() {
    if (socket_ >= 0) ::close(socket_);
  }
  Connection(Connection&& other) noexcept : socket_{std::exchange(other.socket_, -1)} {}
  Connection& operator=(Connection&&) = delete;

  /// As much as is taken without waiting.
  void send(const std::string& bytes) const {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
      const auto count =
          ::send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (count <= 0) return;
      sent += static_cast<std::size_t>(count);
    }
  }

  /// Ends what it says, and waits until it is hung up on or half a second has passed.
  void part() const {
    ::shutdown(socket_, SHUT_WR);
    char bytes[4096];
    for (pollfd readable{socket_, POLLIN, 0}; ::poll(&readable, 1, 500) == 1;) {
      if (::recv(socket_, bytes, sizeof bytes, MSG_DONTWAIT) <= 0) return;
    }
  }

private:
  int socket_;
};

/// Where a process listens for TCP on IPv4.
inline std::set<std::uint16_t> ports_of(pid_t process) {
  const auto folder = fs::path{"/proc"} / std::to_string(process);
  std::set<std::string> inodes;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator{folder / "fd", ignored}) {
    const auto target = fs::read_symlink(entry.path(), ignored).string();
    if (target.starts_with("socket:[")) inodes.insert(target.substr(8, target.size() - 9));
  }
  std::set<std::uint16_t> ports;
  std::ifstream table{folder / "net/tcp"};
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    std::istringstream words{line};
    std::vector<std::string> columns(10);
    for (auto& column : columns) words >> column;
    constexpr const char* listening = "0A";
    if (columns[3] != listening || !inodes.contains(columns[9])) continue;
    const auto colon = columns[1].find(':');
    ports.insert(static_cast<std::uint16_t>(std::stoul(columns[1].substr(colon + 1), nullptr, 16)));
  }
  return ports;
}

/// What a scanner of ports, a browser and a broken program send.
inline std::vector<std::string> messages_of_strangers() {
  std::mt19937 random{1};
  std::string noise(std::size_t{1} << 20U, '\0');
  for (auto& byte : noise) byte = static_cast<char>(random());
  noise[0] = 'x';  // Neither HTTP nor a greeting of troupe.
  return {"GET / HTTP/1.1\r\nHost: director\r\n\r\n",
          noise.substr(0, 200),
          noise.substr(0, 7),
          noise,
          std::string(16, '\0'),  // By which UCX's own connection manager ends its process.
          std::string(17, '\0'),
          ""};
}

class Strangers : public Run {
protected:
  /// Two nodes that would train for long, once they do. They start with the usual limit of open
  /// files.
  void SetUp() override {
    Run::SetUp();
    set_open_files_limit(1024);
    director_.emplace(
        start_director(2, {"train.steps=100000", "train.validation_interval=100000"}));
    for (const auto* name : {"node0", "node1"}) nodes_.push_back(start_node(*director_, name));
    ASSERT_TRUE(goes_on()) << director_->said();
    const auto place = place_of(*director_);
    gate_port_ = static_cast<std::uint16_t>(std::stoul(place.substr(place.find(':') + 1)));
  }

  static void set_open_files_limit(rlim_t count) {
    rlimit files{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    if (files.rlim_max < count) GTEST_SKIP() << "needs " << count << " open files: ulimit -Hn";
    files.rlim_cur = count;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
  }

  /// Whether further steps are made.
  bool goes_on() {
    const auto steps = steps_done();
    return director_->wait_until([&] { return steps_done() > steps + 2; });
  }

  [[nodiscard]] std::vector<double> losses(const std::string& folder) const {
    std::vector<double> result;
    std::istringstream lines{read(folder + "/metrics.jsonl")};
    for (std::string line; std::getline(lines, line);) {
      result.push_back(nlohmann::json::parse(line)["loss"].get<double>());
    }
    return result;
  }

  /// The run goes on, ends in order, and has learned what one that was left alone learns; nothing
  /// is left behind.
  void expect_undisturbed() {
    EXPECT_TRUE(goes_on()) << director_->said();
    director_->signal(SIGINT);
    constexpr milliseconds patience{20000};
    ASSERT_TRUE(director_->wait_for(patience)) << director_->said();
    EXPECT_EQ(director_->exit_code(), 130) << director_->said();
    for (auto& node : nodes_) {
      ASSERT_TRUE(node.wait_for(patience)) << node.said();
      EXPECT_EQ(node.exit_code(), 0) << node.said();
    }
    EXPECT_EQ(transport::remove_orphaned_segments(), 0U);

    auto theirs = losses("out");
    ASSERT_FALSE(theirs.empty());
    const auto alone = [&] {
      std::ostringstream line;
      line << "\"$TROUPE\" train run.toml --set run.output=alone parallel.data=2 "
              "run.threads_per_stage=1 train.validation_interval=100000 train.steps=100000 "
              ">alone.said & P=$!; until [ $(cat alone/metrics.jsonl 2>/dev/null | wc -l) -ge "
           << theirs.size()
           << " ]; do kill -0 $P || break; sleep 0.05; done; kill -INT $P; wait $P";
      (void)shell(line.str());
      return losses("alone");
    }();
    ASSERT_GE(alone.size(), theirs.size()) << read("alone.said");
    EXPECT_TRUE(std::equal(theirs.begin(), theirs.end(), alone.begin()));
  }

  /// The sentences that a process has said, without "troupe: ".
  [[nodiscard]] static std::vector<std::string> sentences(PeerProcess& process) {
    std::vector<std::string> result;
    std::istringstream lines{process.said()};
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("troupe: ")) result.push_back(line.substr(8));
    }
    return result;
  }

  /// Each of `wanted` is the beginning of one sentence of the process, and it says no others.
  static void expect_said(PeerProcess& process, const std::vector<std::string>& wanted) {
    process.wait_until([&] { return sentences(process).size() >= wanted.size(); });
    const auto said = sentences(process);
    EXPECT_EQ(said.size(), wanted.size()) << process.said();
    for (const auto& beginning : wanted) {
      const auto is_it = [&](const std::string& one) { return one.starts_with(beginning); };
      EXPECT_EQ(std::ranges::count_if(said, is_it), 1) << beginning << "\n" << process.said();
    }
  }

  /// The nodes have nothing to say.
  void expect_said(const std::vector<std::string>& wanted) {
    expect_said(*director_, wanted);
    for (auto& node : nodes_) expect_said(node, {});
  }

  /// Says to `port` what strangers say, each message on a connection of its own.
  static void speak_to(std::uint16_t port) {
    for (const auto& message : messages_of_strangers()) {
      const Connection stranger{port};
      stranger.send(message);
      stranger.part();
    }
  }

  /// Where the director listens, except for its gate: CAF, on 127.0.0.1, and the fabric, which say
  /// so, and UCX, which drops strangers without a word.
  [[nodiscard]] std::set<std::uint16_t> ports_beside_the_gate() const {
    auto ports = ports_of(director_->pid());
    ports.erase(gate_port_);
    return ports;
  }

  [[nodiscard]] std::string gate() const { return "port " + std::to_string(gate_port_); }

  std::optional<PeerProcess> director_;
  std::vector<PeerProcess> nodes_;
  std::uint16_t gate_port_ = 0;
};

}  // namespace troupe::cli
