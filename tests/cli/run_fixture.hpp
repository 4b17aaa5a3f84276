// tests/cli/run_fixture.hpp -- a director and nodes that a test starts one by one.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "command_fixture.hpp"
#include "peer_process.hpp"

namespace troupe::cli {

/// The ranks are a grid of 2 x 2; the heartbeat is a second.
class Run : public Command {
protected:
  void SetUp() override {
    Command::SetUp();
    write("secret", "a-secret-that-nobody-guesses\n");
    fs::permissions(folder_ / "secret", fs::perms::owner_read | fs::perms::owner_write);
  }

  PeerProcess start_director(std::uint32_t node_count, const std::vector<std::string>& more) {
    std::vector<std::string> words{"train", "run.toml", "--set", "parallel.data=2",
                                   "run.threads_per_stage=1"};
    words.insert(words.end(), more.begin(), more.end());
    words.insert(words.end(), {"--heartbeat", "1"});
    if (node_count > 0) {
      words.insert(words.end(), {"--nodes", std::to_string(node_count), "--listen", "127.0.0.1:0",
                                 "--secret", "secret"});
    }
    words.insert(words.end(), more_.begin(), more_.end());
    PeerProcess director{folder_, "director", words};
    if (node_count > 0) {
      EXPECT_TRUE(director.wait_until([&] { return !place_of(director).empty(); }))
          << director.said();
    }
    return director;
  }

  PeerProcess start_node(const PeerProcess& director, const std::string& name,
                         const std::string& secret = "secret", bool shared_memory = true) {
    std::vector<std::string> words{"node",        "--join", place_of(director), "--secret", secret,
                                   "--heartbeat", "1"};
    if (!shared_memory) words.emplace_back("--no-shared-memory");
    words.insert(words.end(), more_.begin(), more_.end());
    return {folder_, name, words};
  }

  /// HOST:PORT, once it is said.
  static std::string place_of(const PeerProcess& director) {
    const auto said = director.said();
    const auto begin = said.find("127.0.0.1:");
    const auto end = said.find(" --secret", begin);
    return begin == std::string::npos || end == std::string::npos ? ""
                                                                  : said.substr(begin, end - begin);
  }

  [[nodiscard]] std::size_t steps_done() const {
    const auto metrics = read("out/metrics.jsonl");
    return static_cast<std::size_t>(std::ranges::count(metrics, '\n'));
  }

  std::vector<std::string> more_;  ///< Options of those that are started from now on.
};

}  // namespace troupe::cli
