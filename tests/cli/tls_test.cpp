// Runs whose director and nodes talk under TLS.

#include <memory>

#include "troupe/transport/tunnel.hpp"

#include "../transport/authority.hpp"
#include "../transport/wire.hpp"
#include "strangers_fixture.hpp"

namespace troupe::cli {
namespace {

using transport::Authority;
using transport::TlsFiles;

std::vector<std::string> options_of(const TlsFiles& files) {
  return {"--tls-certificate", files.certificate_path, "--tls-key",
          files.key_path,      "--tls-authority",      files.authority_path};
}

class TlsCommand : public Command {
protected:
  void SetUp() override {
    Command::SetUp();
    authority_ = std::make_unique<Authority>(folder_);
    files_ = authority_->issue("node");
    ASSERT_EQ(shell("umask 077 && echo a-secret-that-nobody-guesses > secret").exit_code, 0);
  }

  std::unique_ptr<Authority> authority_;
  TlsFiles files_;
};

constexpr const char* tls =
    " --tls-certificate node.pem --tls-key node.key"
    " --tls-authority authority.pem ";

TEST_F(TlsCommand, LeavesTheSameWeights) {
  (void)authority_->issue("other");
  ASSERT_EQ(shell("troupe train run.toml --set run.output=one").exit_code, 0);
  const auto children =
      shell(std::string{"troupe train run.toml --set run.output=several --processes 2"} + tls);
  ASSERT_EQ(children.exit_code, 0) << children.output;
  EXPECT_EQ(shell("cmp one/weights.safetensors several/weights.safetensors").exit_code, 0);
  const auto by_hand = shell(
      std::string{"troupe train run.toml --set run.output=hand --nodes 2 --listen 127.0.0.1:0 "
                  "--secret secret"}
      + tls
      + "> said & P=$!; until port=$(grep -o '127.0.0.1:[0-9]*' said); do sleep 0.05; done; "
        "for i in node other; do troupe node --join $port --secret secret --tls-certificate $i.pem "
        "--tls-key $i.key --tls-authority authority.pem & N+=\" $!\"; done; "
        "for i in $P $N; do wait $i || exit 1; done");
  ASSERT_EQ(by_hand.exit_code, 0) << by_hand.output << read("said");
  EXPECT_EQ(shell("cmp one/weights.safetensors hand/weights.safetensors").exit_code, 0);
}

TEST_F(TlsCommand, TakesItsOptionsFromALauncher) {
  const auto outcome = shell(
      "export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$(python3 -c 'import socket; "
      "s = socket.socket(); s.bind((\"127.0.0.1\", 0)); print(s.getsockname()[1])'); "
      "for RANK in 0 1; do export RANK; \"$TROUPE\" train run.toml"
      + std::string{tls} + "& P+=\" $!\"; done; for i in $P; do wait $i || exit 1; done");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
}

TEST_F(TlsCommand, RefusesToStartWithLessThanThreeGoodFiles) {
  const std::string all = "TLS needs a certificate, its key and the authority: give ";
  const std::string no_file = ": No such file or directory; name a file in PEM form";
  for (const auto& start : {std::string{"troupe train run.toml --processes 2"},
                            std::string{"troupe train run.toml --nodes 2 --listen 127.0.0.1:0 "
                                        "--secret secret"},
                            std::string{"troupe node --join 127.0.0.1:1 --secret secret"}}) {
    expect_refused(start + " --tls-certificate node.pem",
                   all + "--tls-key and --tls-authority as well\n");
    expect_refused(start + " --tls-certificate node.pem --tls-key node.key",
                   all + "--tls-authority as well\n");
    expect_refused(start + " --tls-key node.key --tls-authority authority.pem",
                   all + "--tls-certificate as well\n");
    expect_refused(start + " --tls-certificate none.pem --tls-key node.key"
                           " --tls-authority authority.pem",
                   "cannot open the TLS certificate none.pem" + no_file);
    expect_refused(start + " --tls-certificate node.pem --tls-key authority.key"
                           " --tls-authority authority.pem",
                   "the TLS key authority.key does not belong to the certificate node.pem: give "
                   "the two that were made together");
    ASSERT_EQ(shell("chmod 640 node.key").exit_code, 0);
    expect_refused(start + tls,
                   "others than its owner have access to the TLS key node.key: run  "
                   "chmod 600 node.key");
    ASSERT_EQ(shell("chmod 600 node.key").exit_code, 0);
  }
}

/// A run under TLS, and whoever does not belong to it.
class TlsStrangers : public Strangers {
protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("troupe-" + std::to_string(getpid()) + "-keys");
    fs::create_directories(folder_);
    keys_ = folder_;
    authority_ = std::make_unique<Authority>(keys_);
    files_ = authority_->issue("node");
    more_ = options_of(files_);
    Strangers::SetUp();
  }
  void TearDown() override {
    Strangers::TearDown();
    fs::remove_all(keys_);
  }

  /// Starts a node that cannot join, and expects the same of it twice.
  void expect_node_refused(const std::string& sentence) {
    for (const auto* name : {"third", "fourth"}) {
      auto other = start_node(*director_, name);
      ASSERT_TRUE(other.wait_for(milliseconds{20000}));
      EXPECT_EQ(other.exit_code(), 2);
      EXPECT_EQ(other.last_sentence(), "the director at " + place_of(*director_) + sentence);
      fs::remove(folder_ / (std::string{name} + ".said"));
    }
  }

  /// A connection of somebody who has the secret, to CAF.
  [[nodiscard]] transport::Wire connect_with_secret() {
    auto tunnel = transport::Tunnel::connect(
        {.host = "127.0.0.1",
         .port = gate_port_,
         .bind_host = {},
         .secret = "a-secret-that-nobody-guesses",
         .version = TROUPE_VERSION,
         .tls_authority = check_tls_files(files_, transport::TlsSide::node).value()});
    EXPECT_TRUE(tunnel) << tunnel.error().context;
    tunnels_.push_back(std::move(tunnel).value());
    return transport::Wire::connect(tunnels_.back()->local_port());
  }

  fs::path keys_;
  std::unique_ptr<Authority> authority_;
  TlsFiles files_;
  std::vector<std::unique_ptr<transport::Tunnel>> tunnels_;
};

const std::string all_options = "--tls-certificate, --tls-key and --tls-authority";

TEST_F(TlsStrangers, NodesWithoutTlsOrOfAnotherAuthorityAreSentAwayAndLoggedOnce) {
  more_.clear();
  expect_node_refused(" wants TLS, and this node has no certificate: give it " + all_options);
  more_ = options_of(Authority{keys_, "stranger"}.issue("strange"));
  expect_node_refused(
      " trusts another TLS authority than this node: give both the same file as --tls-authority");
  expect_said(
      {"127.0.0.1 runs troupe without TLS, this director with it: give the node " + all_options,
       "127.0.0.1 runs troupe with another TLS authority than this director: give both "
       "the same file as --tls-authority"});
  expect_undisturbed();
}

/// By strangers at the ports beside the gate.
const std::vector<std::string> said_of_who_goes_round{
    "127.0.0.1 spoke HTTP", "127.0.0.1 spoke an unknown protocol",
    "127.0.0.1 closed the connection too early",
    "a program of this machine went round the gate, to port "};

TEST_F(TlsStrangers, WhoGoesRoundTheGateIsNotHeardAndLoggedOnce) {
  std::vector<Connection> silent;
  for (const auto port : ports_beside_the_gate()) {
    for (int round = 0; round < 3; ++round) {
      silent.emplace_back(port);
      speak_to(port);
    }
  }
  expect_said(said_of_who_goes_round);
  expect_undisturbed();
}

TEST_F(TlsStrangers, WhoSpeaksAnotherProtocolAtTheGateIsLoggedOnce) {
  std::vector<Connection> silent;
  for (int round = 0; round < 3; ++round) {
    silent.emplace_back(gate_port_);
    speak_to(gate_port_);
  }
  const auto only = " at " + gate() + ": only nodes of troupe may connect there";
  expect_said({"127.0.0.1 spoke HTTP instead of troupe's greeting" + only,
               "127.0.0.1 spoke an unknown protocol instead of troupe's greeting" + only,
               "127.0.0.1 closed the connection too early" + only,
               "127.0.0.1 proved nothing at " + gate() + " within 5000 ms"});
  expect_undisturbed();
}

/// Whether no thread of a process has anything to do at this moment.
bool is_asleep(pid_t process) {
  std::error_code ignored;
  const auto tasks = fs::path{"/proc"} / std::to_string(process) / "task";
  for (const auto& task : fs::directory_iterator{tasks, ignored}) {
    std::string stat;
    std::getline(std::ifstream{task.path() / "stat"}, stat);
    const auto name_end = stat.rfind(") ");
    if (name_end == std::string::npos || stat[name_end + 2] != 'S') return false;
  }
  return true;
}

/// CAF's thread would try to write to it again and again.
TEST_F(TlsStrangers, WhoHasTheSecretAndSaysNothingCostsNoProcessor) {
  const auto before = connect_with_secret();
  EXPECT_TRUE(before.send("\x16\x03\x01"));  // As a handshake begins.
  const auto silent = connect_with_secret();
  EXPECT_TRUE(goes_on()) << director_->said();
  EXPECT_TRUE(director_->wait_until([&] { return is_asleep(director_->pid()); }));
  expect_said({});
  expect_undisturbed();
}

/// Who has the secret gets as far as TLS.
TEST_F(TlsStrangers, WhoHasTheSecretAndNoTlsIsLoggedOnceForEachReason) {
  std::vector<transport::Wire> silent;
  for (int round = 0; round < 3; ++round) {
    silent.push_back(connect_with_secret());
    for (const auto& message : messages_of_strangers()) {
      const auto other = connect_with_secret();
      other.send(message);
      other.finish_sending();
      EXPECT_NE(other.end(), "errno 11");
    }
    EXPECT_TRUE(goes_on()) << director_->said();
  }
  const std::string none = "a node was let in, but no TLS came about: ";
  const std::string advice = "; see its certificate, and compare both clocks";
  expect_said({none + "http request" + advice, none + "wrong version number" + advice,
               none + "unexpected eof while reading" + advice});
  expect_undisturbed();
}

class StrangersWithoutTls : public Strangers {};

TEST_F(StrangersWithoutTls, ANodeWithTlsIsSentAwayAndLoggedOnce) {
  const Authority authority{folder_};
  more_ = options_of(authority.issue("node"));
  for (const auto* name : {"third", "fourth"}) {
    auto other = start_node(*director_, name);
    ASSERT_TRUE(other.wait_for(milliseconds{20000}));
    EXPECT_EQ(other.exit_code(), 2);
    EXPECT_EQ(other.last_sentence(), "the director at " + place_of(*director_)
                                         + " runs without TLS, and this node with it: give "
                                         + all_options + " to both or to neither");
  }
  expect_said({"127.0.0.1 runs troupe with TLS, this director without: give " + all_options
               + " to both or to neither"});
  expect_undisturbed();
}

TEST_F(StrangersWithoutTls, WhoGoesRoundTheGateIsNotHeardAndLoggedOnce) {
  std::vector<Connection> silent;
  for (const auto port : ports_beside_the_gate()) {
    silent.emplace_back(port);
    speak_to(port);
  }
  expect_said(said_of_who_goes_round);
  expect_undisturbed();
}

}  // namespace
}  // namespace troupe::cli
