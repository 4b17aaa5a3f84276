#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "troupe/transport/refusals.hpp"

#include "gate/hello.hpp"
#include "gate/proof.hpp"

namespace troupe::transport {

Hello sample(std::string version = "0.1.0") {
  Hello hello;
  hello.version = std::move(version);
  for (std::size_t i = 0; i < nonce_bytes; ++i) hello.nonce[i] = static_cast<std::byte>(i + 1);
  for (std::size_t i = 0; i < hello.tls_authority.size(); ++i) {
    hello.tls_authority[i] = static_cast<std::byte>(i + 0xc1);
  }
  return hello;
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const auto byte : bytes) {
    text += "0123456789abcdef"[std::to_integer<unsigned>(byte) >> 4U];
    text += "0123456789abcdef"[std::to_integer<unsigned>(byte) & 15U];
  }
  return text;
}

/// What the reader says of `bytes`: "more", the version, or the refusal.
std::string reading(std::string_view bytes) {
  const auto read = read_hello(std::as_bytes(std::span{bytes}));
  if (!read) return read.error().context;
  return read->has_value() ? (*read)->version : "more";
}

std::string as_text(const HelloBytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(Hello, ReadsWhatItWrote) {
  for (const auto* version : {"0.1.0", "x", "12345678901234567890123456789012"}) {
    const auto read = read_hello(write_hello(sample(version)));
    ASSERT_TRUE(read && read->has_value());
    EXPECT_EQ(**read, sample(version));
  }
}

TEST(Hello, LooksTheSameOnEveryMachine) {
  EXPECT_EQ(hex(write_hello(sample())),
            "74726f7570650002"  // "troupe\0", 2
            "302e312e30000000000000000000000000000000000000000000000000000000"
            "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
            "c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0");
}

TEST(Hello, IsIncompleteUpToItsLastByte) {
  const auto bytes = as_text(write_hello(sample()));
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_EQ(reading(bytes.substr(0, size)), "more") << size;
  }
  EXPECT_EQ(reading(bytes), "0.1.0");
  EXPECT_EQ(reading(bytes + "x"), "sent a greeting that is too long");
}

TEST(Hello, IsRefusedAtTheFirstWrongByte) {
  const auto bytes = as_text(write_hello(sample()));
  for (std::size_t at = 0; at < 7; ++at) {
    auto wrong = bytes.substr(0, at + 1);
    wrong[at] = '!';
    EXPECT_EQ(reading(wrong), "spoke an unknown protocol instead of troupe's greeting") << at;
  }
}

TEST(Hello, NamesProtocolsThatStray) {
  EXPECT_EQ(reading("GET / HTTP/1.1\r\n\r\n"), "spoke HTTP instead of troupe's greeting");
  EXPECT_EQ(reading("HTTP/1.1 400 Bad"), "spoke HTTP instead of troupe's greeting");
  EXPECT_EQ(reading("\x16\x03\x01\x02"), "spoke TLS instead of troupe's greeting");
  EXPECT_EQ(reading("SSH-2.0-x\r\n"), "spoke SSH instead of troupe's greeting");
}

TEST(Hello, RefusesVersionsThatCannotBePrinted) {
  const auto bytes = as_text(write_hello(sample()));
  const std::string refusal = "sent a greeting whose version is not 1 to 32 printable characters";
  for (const char wrong : {'\n', '\x1b', '\x7f', '\x80', ' ', '\0'}) {
    auto changed = bytes;
    changed[8] = wrong;
    EXPECT_EQ(reading(changed), refusal) << int{wrong};
  }
  auto behind = bytes;
  behind[39] = 'x';
  EXPECT_EQ(reading(behind), refusal) << "a byte behind the zeros";
}

TEST(Hello, TellsTheVersionOfAnotherProtocolWhateverFollows) {
  auto bytes = as_text(write_hello(sample("9.0.0")));
  bytes[7] = '\x03';
  EXPECT_EQ(reading(bytes.substr(0, 39)), "more");
  EXPECT_EQ(reading(bytes.substr(0, 40)), "9.0.0");
  const auto read = read_hello(std::as_bytes(std::span{bytes}));
  ASSERT_TRUE(read && read->has_value());
  EXPECT_EQ((*read)->protocol, 3);
  EXPECT_EQ((*read)->nonce, Nonce{});
  EXPECT_EQ((*read)->tls_authority, no_tls);
}

TEST(Answer, ReadsWhatItWrote) {
  for (const auto verdict :
       {Verdict::admitted, Verdict::wrong_secret, Verdict::full, Verdict::not_ready}) {
    Answer answer;
    answer.verdict = verdict;
    answer.proof.fill(std::byte{0xa5});
    const auto read = read_answer(write_answer(answer));
    ASSERT_TRUE(read);
    EXPECT_EQ(*read, answer);
  }
}

TEST(Answer, RefusesUnknownVerdicts) {
  for (const auto verdict : {0, 5, 255}) {
    AnswerBytes bytes{};
    bytes[0] = static_cast<std::byte>(verdict);
    const auto read = read_answer(bytes);
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().context,
              "gave an answer of the unknown kind " + std::to_string(verdict));
  }
}

/// By Python's hmac and hashlib, over the bytes that hello.hpp specifies.
TEST(Proof, IsTheHmacThatPythonComputes) {
  const Greetings greetings{.node = write_hello(sample()), .gate = write_hello(sample("0.2.0"))};
  const std::string secret = "sixteen bytes it is";
  EXPECT_EQ(hex(prove(Role::node, secret, greetings)),
            "bc820e1d87801fe4d31bfdffc8654bbd49f5a0d955870ee944056fbb5b68dc7d");
  EXPECT_EQ(hex(prove(Role::gate, secret, greetings)),
            "7655783e3198598cd3e826a011d5d50eafcba35499f50cf3dbdad718c4ae8d6e");
}

TEST(Proof, DiffersInEverythingThatEntersIt) {
  const Greetings greetings{.node = write_hello(sample()), .gate = write_hello(sample())};
  auto other_node = greetings;
  other_node.node[hello_bytes - 1] ^= std::byte{1};
  auto other_gate = greetings;
  other_gate.gate[hello_bytes - 1] ^= std::byte{1};
  const std::vector<Proof> proofs{
      prove(Role::node, "secret", greetings),  prove(Role::gate, "secret", greetings),
      prove(Role::node, "Secret", greetings),  prove(Role::node, "secret", other_node),
      prove(Role::node, "secret", other_gate),
  };
  for (std::size_t i = 0; i < proofs.size(); ++i) {
    for (std::size_t j = 0; j < proofs.size(); ++j) {
      EXPECT_EQ(is_same(proofs[i], proofs[j]), i == j) << i << " and " << j;
    }
  }
}

TEST(Refusals, AreSaidOnceAnHour) {
  std::vector<std::string> said;
  Refusals refusals{[&](const std::string& sentence) { said.push_back(sentence); }};
  const Refusals::Clock::time_point noon{std::chrono::hours{12}};
  const std::chrono::minutes minute{1};
  for (auto i = 0; i < 60; ++i) refusals.note("a", noon + i * minute);
  refusals.note("b", noon + minute);
  EXPECT_EQ(said, (std::vector<std::string>{"a", "b"}));
  refusals.note("a", noon + 60 * minute);
  EXPECT_EQ(said, (std::vector<std::string>{"a", "b", "a"}));
}

TEST(Refusals, AreNotSaidBeyondTheirNumber) {
  std::vector<std::string> said;
  Refusals refusals{[&](const std::string& sentence) { said.push_back(sentence); }};
  const Refusals::Clock::time_point noon{std::chrono::hours{12}};
  for (auto i = 0; i < 1000; ++i) refusals.note(std::to_string(i), noon);
  ASSERT_EQ(said.size(), 65U);
  EXPECT_EQ(said[63], "63");
  EXPECT_EQ(said[64],
            "connections were refused for 64 different reasons within an hour: others are not "
            "reported before it is over");
}

}  // namespace troupe::transport
