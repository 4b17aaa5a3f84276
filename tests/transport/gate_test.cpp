#include "troupe/transport/gate.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "troupe/engine/random.hpp"
#include "troupe/transport/tunnel.hpp"

#include "wire.hpp"

namespace troupe::transport {

using namespace std::chrono_literals;

const std::string secret = "correct horse battery staple";
const std::string nodes_only = ": only nodes of troupe may connect there";

/// What a gate reports.
class Log {
public:
  void add(const std::string& sentence) {
    const std::scoped_lock lock{mutex_};
    sentences_.push_back(sentence);
    added_.notify_all();
  }

  /// Returns the sentences when there are `count`, or a minute later.
  [[nodiscard]] std::vector<std::string> wait_for(std::size_t count) {
    std::unique_lock lock{mutex_};
    added_.wait_for(lock, 1min, [&] { return sentences_.size() >= count; });
    return sentences_;
  }

private:
  std::mutex mutex_;
  std::condition_variable added_;
  std::vector<std::string> sentences_;
};

/// A node's connection from end to end.
struct Line {
  std::unique_ptr<Tunnel> tunnel;
  Wire node;
  Wire director;
};

struct GateTest : ::testing::Test {
  GateTest() {
    gate_options.inner_port = server.port();
    gate_options.secret = tunnel_options.secret = secret;
    gate_options.version = tunnel_options.version = "0.1.0";
    gate_options.proof_time_max = 1h;
    gate_options.on_refused = [this](const std::string& sentence) { log.add(sentence); };
    tunnel_options.host = "127.0.0.1";
    tunnel_options.patience = 1min;
  }

  void open_gate() {
    auto opened = Gate::open(gate_options);
    ASSERT_TRUE(opened) << opened.error().context;
    gate = std::move(opened.value());
    tunnel_options.port = gate->port();
    gate_name = "127.0.0.1:" + std::to_string(gate->port());
    gate_port = " port " + std::to_string(gate->port());
  }

  [[nodiscard]] Line make_line() const {
    auto tunnel = Tunnel::connect(tunnel_options);
    EXPECT_TRUE(tunnel) << tunnel.error().context;
    if (!tunnel) return {};
    auto node = Wire::connect(tunnel.value()->local_port());
    return {std::move(tunnel.value()), std::move(node), server.accept()};
  }

  [[nodiscard]] std::string refusal() const {
    const auto tunnel = Tunnel::connect(tunnel_options);
    return tunnel ? "none" : tunnel.error().context;
  }

  static void expect_flow(const Line& line) {
    EXPECT_TRUE(line.node.send("ping"));
    EXPECT_EQ(line.director.receive(4), "ping");
    EXPECT_TRUE(line.director.send("pong"));
    EXPECT_EQ(line.node.receive(4), "pong");
  }

  Log log;
  Server server;
  GateOptions gate_options;
  TunnelOptions tunnel_options;
  std::unique_ptr<Gate> gate;
  std::string gate_name;
  std::string gate_port;
};

using AGate = GateTest;
using ATunnel = GateTest;

std::string random_bytes(std::uint64_t seed, std::size_t size_bytes) {
  Random random{seed};
  std::string bytes(size_bytes, '\0');
  for (auto& byte : bytes) byte = static_cast<char>(random.next());
  return bytes;
}

// -- who is let in --------------------------------------------------------------------------------

TEST_F(AGate, CarriesMebibytesBothWaysIntact) {
  open_gate();
  const auto line = make_line();
  const auto up = random_bytes(1, (8U << 20U) + 7);
  const auto down = random_bytes(2, (8U << 20U) + 13);
  std::jthread node_sends{[&] { EXPECT_TRUE(line.node.send(up)); }};
  std::jthread director_sends{[&] { EXPECT_TRUE(line.director.send(down)); }};
  std::jthread node_receives{[&] { EXPECT_TRUE(line.node.receive(down.size()) == down); }};
  EXPECT_TRUE(line.director.receive(up.size()) == up);
}

TEST_F(AGate, KeepsLinesApart) {
  open_gate();
  std::vector<Line> lines;
  for (auto i = 0; i < 20; ++i) lines.push_back(make_line());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_TRUE(lines[i].node.send("from node " + std::to_string(10 + i)));
  }
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].director.receive(12), "from node " + std::to_string(10 + i));
  }
}

TEST_F(AGate, RefusesAnotherSecretAndBothSidesSaySo) {
  open_gate();
  tunnel_options.secret = secret + "!";
  EXPECT_EQ(refusal(), "the director at " + gate_name
                           + " has another secret than this node: give both the same file");
  EXPECT_EQ(log.wait_for(1), (std::vector<std::string>{
                                 "127.0.0.1 runs troupe with another secret than this director: "
                                 "give both the same file"}));
  EXPECT_TRUE(server.is_alone());
}

TEST_F(AGate, RefusesAnotherVersionAndBothSidesNameBoth) {
  open_gate();
  tunnel_options.version = "0.2.0";
  EXPECT_EQ(refusal(), "the director at " + gate_name
                           + " runs troupe 0.1.0, this node 0.2.0: install the same version on "
                             "every node");
  EXPECT_EQ(log.wait_for(1), (std::vector<std::string>{
                                 "127.0.0.1 runs troupe 0.2.0, this director 0.1.0: install the "
                                 "same version on every node"}));
  EXPECT_TRUE(server.is_alone());
}

TEST_F(AGate, RefusesAnotherIdeaOfTlsAndBothSidesSayWhatToDo) {
  constexpr TlsAuthority one{std::byte{1}};
  constexpr TlsAuthority other{std::byte{2}};
  const std::string options = "--tls-certificate, --tls-key and --tls-authority";
  struct Case {
    TlsAuthority gate;
    TlsAuthority node;
    std::string said;
    std::string logged;
  };
  const std::vector<Case> cases{
      {one, no_tls, " wants TLS, and this node has no certificate: give it " + options,
       "runs troupe without TLS, this director with it: give the node " + options},
      {no_tls, one,
       " runs without TLS, and this node with it: give " + options + " to both or to neither",
       "runs troupe with TLS, this director without: give " + options + " to both or to neither"},
      {one, other,
       " trusts another TLS authority than this node: give both the same file as --tls-authority",
       "runs troupe with another TLS authority than this director: give both the same file as "
       "--tls-authority"},
  };
  std::vector<std::string> expected;
  for (const auto& [gate_authority, node_authority, said, logged] : cases) {
    gate_options.tls_authority = gate_authority;
    tunnel_options.tls_authority = node_authority;
    open_gate();
    EXPECT_EQ(refusal(), "the director at " + gate_name + said);
    expected.push_back("127.0.0.1 " + logged);
    EXPECT_EQ(log.wait_for(expected.size()), expected);
  }
  EXPECT_TRUE(server.is_alone());
  tunnel_options.tls_authority = one;
  expect_flow(make_line());
}

TEST_F(AGate, SaysWhenItIsFull) {
  gate_options.admitted_max = 1;
  open_gate();
  auto line = make_line();
  tunnel_options.patience = 1ms;
  EXPECT_EQ(refusal(), "no way to the director at " + gate_name + " within 1 ms: the director at "
                           + gate_name
                           + " has admitted as many connections as it may: raise its limit; start "
                             "the director, and check host, port and firewall");
  EXPECT_EQ(log.wait_for(1),
            (std::vector<std::string>{"127.0.0.1 has the secret but found 1 connections admitted "
                                      "already: raise the limit or start fewer nodes"}));
  expect_flow(line);
  line = {};
  tunnel_options.patience = 1min;
  expect_flow(make_line());
}

TEST_F(AGate, SaysThatNothingIsBehindIt) {
  std::uint16_t nowhere = 0;
  {
    const Server gone;
    nowhere = gone.port();
  }
  gate_options.inner_port = nowhere;
  open_gate();
  tunnel_options.patience = 1ms;
  EXPECT_EQ(refusal(), "no way to the director at " + gate_name + " within 1 ms: the director at "
                           + gate_name
                           + " lets this node in, but is not listening for it yet: see its log; "
                             "start the director, and check host, port and firewall");
  EXPECT_EQ(log.wait_for(1),
            (std::vector<std::string>{"127.0.0.1 has the secret but was let in to nothing: port "
                                      + std::to_string(nowhere)
                                      + " behind the gate says Connection refused"}));
}

TEST_F(AGate, DoesNotTakeAConversationTwice) {
  open_gate();
  const Server eavesdropper;
  tunnel_options.port = eavesdropper.port();
  std::string overheard;
  std::jthread relay{[&] {
    const auto node = eavesdropper.accept();
    const auto director = Wire::connect(gate->port());
    overheard = node.receive(104);
    director.send(overheard);
    node.send(director.receive(104));
    overheard += node.receive(32);
    director.send(overheard.substr(104));
    node.send(director.receive(33));
  }};
  EXPECT_EQ(refusal(), "none");
  relay.join();
  ASSERT_EQ(overheard.size(), 136U);
  EXPECT_TRUE(server.accept().is_open());

  const auto replay = Wire::connect(gate->port());
  EXPECT_TRUE(replay.send(overheard));
  const auto reply = replay.receive(104 + 33);
  ASSERT_EQ(reply.size(), 104U + 33U);
  EXPECT_EQ(reply[104], '\x02') << "wrong_secret";
  EXPECT_EQ(reply.substr(105), std::string(32, '\0'));
  EXPECT_EQ(replay.end(), "ended");
  EXPECT_TRUE(server.is_alone());
}

// -- strangers ------------------------------------------------------------------------------------

TEST_F(AGate, RefusesEveryStrangerOnceAndDisturbsNobody) {
  open_gate();
  const auto line = make_line();
  const std::string spoke = "127.0.0.1 spoke ";
  const std::string instead = " instead of troupe's greeting at" + gate_port + nodes_only;
  const std::string hello =
      std::string{
          "troupe\0\2"
          "0.1.0",
          13}
      + std::string(91, '\0');
  auto bad_version = hello;
  bad_version[10] = '\n';
  struct Case {
    std::string bytes;
    std::string sentence;
  };
  const std::vector<Case> cases{
      {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", spoke + "HTTP" + instead},
      {"\x16\x03\x01\x02" + std::string(513, 'x'), spoke + "TLS" + instead},
      {"SSH-2.0-OpenSSH_9.2\r\n", spoke + "SSH" + instead},
      {std::string(1U << 20U, '\xff'), spoke + "an unknown protocol" + instead},
      {"", "127.0.0.1 closed the connection too early at" + gate_port + nodes_only},
      {hello.substr(0, 103), ""},
      {hello, ""},
      {bad_version, "127.0.0.1 sent a greeting whose version is not 1 to 32 printable characters at"
                        + gate_port + nodes_only},
      {hello + std::string(1U << 20U, 'p'),
       "127.0.0.1 runs troupe with another secret than this director: give both the same file"},
  };
  std::vector<std::string> expected;
  for (const auto& [bytes, sentence] : cases) {
    if (!sentence.empty()) expected.push_back(sentence);
    for (auto again = 0; again < 3; ++again) {
      const auto stranger = Wire::connect(gate->port());
      ASSERT_TRUE(stranger.is_open());
      stranger.send(bytes);  // The gate may have had enough before the end.
      stranger.finish_sending();
      const auto end = stranger.end();
      EXPECT_TRUE(end == "ended" || end == "broken") << end;
      expect_flow(line);
    }
  }
  EXPECT_EQ(log.wait_for(expected.size()), expected);
  EXPECT_TRUE(server.is_alone());
}

TEST_F(AGate, RefusesWhoeverBreaksOff) {
  open_gate();
  auto stranger = Wire::connect(gate->port());
  stranger.send("troupe");
  stranger.break_off();
  EXPECT_EQ(log.wait_for(1),
            (std::vector<std::string>{"127.0.0.1 broke off: Connection reset by peer at" + gate_port
                                      + nodes_only}));
}

TEST_F(AGate, RefusesWhoeverStaysSilent) {
  gate_options.proof_time_max = 50ms;
  open_gate();
  const auto silent = Wire::connect(gate->port());
  EXPECT_EQ(silent.end(), "ended");
  EXPECT_EQ(log.wait_for(1), (std::vector<std::string>{"127.0.0.1 proved nothing at" + gate_port
                                                       + " within 50 ms" + nodes_only}));
  const auto half = Wire::connect(gate->port());
  half.send("troupe");
  EXPECT_NE(half.end(), "errno 11");
  EXPECT_TRUE(server.is_alone());
}

TEST_F(AGate, WithstandsAThousandHalfOpenConnections) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < 1400) GTEST_SKIP() << "no more than " << limit.rlim_cur << " open files";
  open_gate();
  const auto before = make_line();
  std::vector<Wire> strangers;
  for (auto i = 0; i < 1000; ++i) {
    strangers.push_back(Wire::connect(gate->port()));
    ASSERT_TRUE(strangers.back().is_open()) << i;
    if (i % 2 == 0) strangers.back().send("troupe");
    if (i % 100 == 0) expect_flow(before);
  }
  const auto after = make_line();
  expect_flow(after);
  expect_flow(before);
  // Sixty-four wait at most, and the node that came last was one of them for a while.
  for (auto i = 0; i < 1000 - 63; ++i) {
    const auto end = strangers[static_cast<std::size_t>(i)].end();
    ASSERT_TRUE(end == "ended" || end == "broken") << i << " " << end;
  }
  for (std::size_t i = 1000 - 63; i < 1000; ++i) EXPECT_TRUE(strangers[i].is_silent()) << i;
  EXPECT_EQ(log.wait_for(1),
            (std::vector<std::string>{"127.0.0.1 was dropped unheard from" + gate_port
                                      + ", where more than 64 connections waited without a proof: "
                                        "find out who opens them"}));
  expect_flow(after);
}

// -- how a line ends ------------------------------------------------------------------------------

TEST_F(AGate, PassesOnTheEndOfOneDirectionAlone) {
  open_gate();
  const auto line = make_line();
  EXPECT_TRUE(line.node.send("last words"));
  line.node.finish_sending();
  EXPECT_EQ(line.director.receive(100), "last words");
  EXPECT_TRUE(line.director.send("an answer all the same"));
  EXPECT_EQ(line.node.receive(22), "an answer all the same");
  line.director.finish_sending();
  EXPECT_EQ(line.node.end(), "ended");
}

TEST_F(AGate, PassesOnABrokenConnection) {
  open_gate();
  auto line = make_line();
  expect_flow(line);
  line.node.break_off();
  EXPECT_EQ(line.director.end(), "broken");
  line = make_line();
  expect_flow(line);
  line.director.break_off();
  EXPECT_EQ(line.node.end(), "broken");
}

TEST_F(AGate, PassesOnABrokenConnectionPastBytesThatNobodyTakes) {
  open_gate();
  auto line = make_line();
  EXPECT_GT(line.node.stuff(), 0U);
  line.node.break_off();
  EXPECT_TRUE(line.director.breaks());
  line = make_line();
  EXPECT_GT(line.director.stuff(), 0U);
  line.director.break_off();
  EXPECT_TRUE(line.node.breaks());
}

TEST_F(AGate, HoldsBackWhoeverSendsMoreThanIsTaken) {
  open_gate();
  const auto line = make_line();
  const auto sent = line.node.stuff();
  line.node.finish_sending();
  EXPECT_EQ(line.director.receive(sent + 1), std::string(sent, 's'));
}

TEST_F(AGate, TakesItsLinesWithIt) {
  open_gate();
  const auto line = make_line();
  const auto unused = Tunnel::connect(tunnel_options);
  ASSERT_TRUE(unused);
  const auto other_director = server.accept();
  const auto waiting = Wire::connect(gate->port());
  gate.reset();
  EXPECT_EQ(line.node.end(), "ended");
  EXPECT_EQ(line.director.end(), "ended");
  EXPECT_EQ(other_director.end(), "ended");
  EXPECT_NE(waiting.end(), "errno 11");
  const auto late = Wire::connect(unused.value()->local_port());
  EXPECT_EQ(late.end(), "ended");
  EXPECT_FALSE(Wire::connect(tunnel_options.port).is_open());
  EXPECT_TRUE(log.wait_for(0).empty());
}

TEST_F(ATunnel, TakesItsLineWithIt) {
  open_gate();
  auto line = make_line();
  expect_flow(line);
  line.tunnel.reset();
  EXPECT_EQ(line.node.end(), "ended");
  EXPECT_EQ(line.director.end(), "ended");
}

// -- what goes round it ---------------------------------------------------------------------------

TEST_F(AGate, IsToldFromAStrangerByTheServerBehindIt) {
  const auto own = Wire::connect(server.port());
  EXPECT_TRUE(is_from_this_process(server.accept().descriptor()));
  const auto command = "bash -c 'exec 3<>/dev/tcp/127.0.0.1/" + std::to_string(server.port())
                       + "; read -r -t 60 line <&3'";
  auto* stranger = ::popen(command.c_str(), "r");
  ASSERT_NE(stranger, nullptr);
  EXPECT_FALSE(is_from_this_process(server.accept().descriptor()));
  ::pclose(stranger);
}

// -- where they listen ----------------------------------------------------------------------------

TEST_F(AGate, ListensOnLoopbackAloneUnlessToldOtherwise) {
  open_gate();
  EXPECT_FALSE(Wire::connect(gate->port(), "127.0.0.2").is_open());
  gate_options.listen_host = "0.0.0.0";
  open_gate();
  EXPECT_TRUE(Wire::connect(gate->port(), "127.0.0.2").is_open());
}

TEST_F(AGate, SaysThatItsPortIsTaken) {
  gate_options.port = server.port();
  const auto opened = Gate::open(gate_options);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::invalid_config);
  EXPECT_EQ(opened.error().context,
            "cannot listen on 127.0.0.1:" + std::to_string(server.port())
                + ": Address already in use; choose an address of this machine and a port that no "
                  "program uses");
}

TEST_F(AGate, TakesTheSamePortAgain) {
  open_gate();
  auto line = make_line();
  gate.reset();
  gate_options.port = tunnel_options.port;
  open_gate();
  expect_flow(make_line());
}

TEST_F(AGate, SaysWhatIsWrongWithItsOptions) {
  const auto refusal_of = [](const GateOptions& options) {
    const auto opened = Gate::open(options);
    return opened ? "none" : opened.error().context;
  };
  auto options = gate_options;
  options.secret = "short";
  EXPECT_EQ(refusal_of(options), "the secret of a run must have 16 to 4096 bytes, and has 5");
  options = gate_options;
  options.version = "a b";
  EXPECT_EQ(refusal_of(options),
            "the version 'a b' must be 1 to 32 printable characters, no space");
  options = gate_options;
  options.inner_port = 0;
  EXPECT_EQ(refusal_of(options),
            "a gate needs the port behind it and limits above 0: one of them is 0");
  options = gate_options;
  options.listen_host = "192.0.2.1";
  EXPECT_EQ(refusal_of(options),
            "cannot listen on 192.0.2.1:0: Cannot assign requested address; choose an address of "
            "this machine and a port that no program uses");
}

TEST_F(AGate, WorksOverIpv6) {
  gate_options.listen_host = tunnel_options.host = "::1";
  const auto opened = Gate::open(gate_options);
  if (!opened) GTEST_SKIP() << opened.error().context;
  tunnel_options.port = opened.value()->port();
  expect_flow(make_line());
  tunnel_options.secret = secret + "!";
  EXPECT_EQ(refusal(), "the director at [::1]:" + std::to_string(tunnel_options.port)
                           + " has another secret than this node: give both the same file");
  EXPECT_TRUE(log.wait_for(1).at(0).starts_with("::1 runs troupe with another secret"));
}

TEST_F(AGate, LeavesNothingToChildProcesses) {
  const auto inheritable = [] {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator{"/proc/self/fd"}) {
      const auto name = entry.path().filename().string();
      const auto flags = ::fcntl(std::stoi(name), F_GETFD);
      if (flags >= 0 && (flags & FD_CLOEXEC) == 0) names.insert(name);
    }
    return names;
  };
  const auto before = inheritable();
  open_gate();
  const auto line = make_line();
  const auto unused = Tunnel::connect(tunnel_options);
  const auto waiting = Wire::connect(gate->port());
  expect_flow(line);
  EXPECT_EQ(inheritable(), before);
}

// -- the node's side ------------------------------------------------------------------------------

TEST_F(ATunnel, WaitsForAGateThatComesLater) {
  auto early = std::make_unique<Server>();
  gate_options.port = tunnel_options.port = early->port();
  std::jthread director{[&] {
    EXPECT_EQ(early->accept().receive(104).size(),
              104U);  // The node has tried, and finds nobody for a while.
    early.reset();
    open_gate();
  }};
  const auto line = make_line();
  director.join();
  expect_flow(line);
}

TEST_F(ATunnel, SaysWhereNobodyListens) {
  {
    const Server gone;
    tunnel_options.port = gone.port();
  }
  tunnel_options.patience = 30ms;
  const auto name = "127.0.0.1:" + std::to_string(tunnel_options.port);
  EXPECT_EQ(refusal(), "no way to the director at " + name + " within 30 ms: " + name
                           + " says Connection refused; start the director, and check host, port "
                             "and firewall");
}

TEST_F(ATunnel, SaysThatAHostHasNoAddress) {
  tunnel_options.host = "host.invalid";
  tunnel_options.port = 1;
  tunnel_options.patience = 1ms;
  EXPECT_TRUE(
      refusal().starts_with("no way to the director at host.invalid:1 within 1 ms: the host "
                            "name host.invalid has no address: "))
      << refusal();
}

TEST_F(ATunnel, FindsAGateByName) {
  open_gate();
  tunnel_options.host = "localhost";
  expect_flow(make_line());
}

TEST_F(ATunnel, ConnectsFromTheAddressItIsGiven) {
  gate_options.proof_time_max = 1h;
  open_gate();
  tunnel_options.bind_host = "127.0.0.7";
  expect_flow(make_line());
  tunnel_options.version = "0.2.0";
  EXPECT_NE(refusal(), "none");
  EXPECT_TRUE(log.wait_for(1).at(0).starts_with("127.0.0.7 runs troupe 0.2.0"));
  tunnel_options.bind_host = "192.0.2.1";
  EXPECT_EQ(refusal(), "cannot connect to " + gate_name
                           + " from 192.0.2.1: Cannot assign requested address; give an address "
                             "of this machine, of the same kind");
  tunnel_options.bind_host = "eth0";
  EXPECT_EQ(refusal(), "cannot connect to " + gate_name
                           + " from eth0: Invalid argument; give an address of this machine, of "
                             "the same kind");
}

/// Answers one node by hand and returns what the node says.
std::string refusal_of_impostor(const GateTest& test, const std::function<void(const Wire&)>& act) {
  const Server impostor;
  auto options = test.tunnel_options;
  options.port = impostor.port();
  options.patience = 1ms;
  std::jthread acting{[&] { act(impostor.accept()); }};
  const auto tunnel = Tunnel::connect(options);
  auto sentence = tunnel ? "none" : tunnel.error().context;
  const auto name = "127.0.0.1:" + std::to_string(impostor.port());
  if (const auto at = sentence.find(name); at != std::string::npos) {
    sentence.replace(at, name.size(), "NAME");
  }
  return sentence;
}

TEST_F(ATunnel, RefusesWhatIsNoGate) {
  EXPECT_EQ(refusal_of_impostor(*this,
                                [](const Wire& node) {
                                  EXPECT_EQ(node.receive(104).size(), 104U);
                                  node.send("HTTP/1.1 400 Bad Request\r\n\r\n");
                                }),
            "NAME spoke HTTP instead of troupe's greeting: it is no gate of troupe; check host and "
            "port");
  EXPECT_EQ(refusal_of_impostor(*this,
                                [](const Wire& node) {
                                  node.send(node.receive(104));
                                  EXPECT_EQ(node.receive(32).size(), 32U);
                                  node.send(std::string(33, '\xee'));
                                }),
            "NAME gave an answer of the unknown kind 238: it is no gate of troupe; check host and "
            "port");
}

TEST_F(ATunnel, HasTheGateProveThatItKnowsTheSecret) {
  const std::string sentence =
      "NAME lets this node in but does not know the secret itself: it is not this run's director; "
      "check host and port";
  EXPECT_EQ(refusal_of_impostor(*this,
                                [](const Wire& node) {
                                  node.send(node.receive(104));
                                  EXPECT_EQ(node.receive(32).size(), 32U);
                                  node.send("\x01" + std::string(32, '\0'));
                                }),
            sentence);
  EXPECT_EQ(refusal_of_impostor(*this,
                                [](const Wire& node) {
                                  node.send(node.receive(104));
                                  node.send("\x01" + node.receive(32));
                                }),
            sentence)
      << "its own proof reflected";
}

TEST_F(ATunnel, IsForItsOwnProcessAlone) {
  open_gate();
  auto tunnel = Tunnel::connect(tunnel_options);
  ASSERT_TRUE(tunnel) << tunnel.error().context;
  const auto port = std::to_string(tunnel.value()->local_port());
  const auto command = "bash -c 'exec 3<>/dev/tcp/127.0.0.1/" + port
                       + " && echo connected && ! read -r -t 60 line <&3 && echo ended'";
  auto* stranger = ::popen(command.c_str(), "r");
  ASSERT_NE(stranger, nullptr);
  char text[100] = {};
  EXPECT_EQ(std::fread(text, 1, sizeof text - 1, stranger), 16U) << text;
  ::pclose(stranger);
  EXPECT_STREQ(text, "connected\nended\n");
  const Line line{std::move(tunnel.value()),
                  Wire::connect(static_cast<std::uint16_t>(std::stoi(port))), server.accept()};
  expect_flow(line);
}

TEST_F(ATunnel, TakesOneConnection) {
  open_gate();
  const auto line = make_line();
  expect_flow(line);
  EXPECT_FALSE(Wire::connect(line.tunnel->local_port()).is_open());
  EXPECT_FALSE(Wire::connect(line.tunnel->local_port(), "127.0.0.2").is_open());
}

}  // namespace troupe::transport
