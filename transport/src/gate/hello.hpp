// transport/src/gate/hello.hpp -- what a node and a gate say to each other before anything else.
//
//   node  -- hello -->   gate
//   node  <-- hello --   gate       and the end, if versions or authorities differ
//   node  -- proof -->   gate       HMAC-SHA256(secret, "node" + both hellos)
//   node  <-- answer --  gate       a verdict, and HMAC-SHA256(secret, "gate" + both hellos)
//
// A hello. Its first 40 bytes mean the same under every protocol, so that versions can be told:
//
//   0             7          8                  40        72               104
//   +-------------+----------+------------------+---------+----------------+
//   | "troupe\0"  | protocol | version, zeros   |  nonce  | TLS authority  |
//   +-------------+----------+------------------+---------+----------------+
//
// The authority is the one whose certificates its process trusts, as SHA-256, and zeros if it does
// without TLS: so the two are told what does not fit, instead of waiting for each other.
//
// Both nonces enter both proofs, so no proof is good for another connection; the roles do, so none
// is good in the other direction. The node proves first: who has no secret gets nothing from a gate
// on which guesses could be tried.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "troupe/engine/expected.hpp"
#include "troupe/transport/tls_files.hpp"

namespace troupe::transport {

inline constexpr std::uint8_t gate_protocol = 2;
inline constexpr std::size_t version_max_bytes = 32;
inline constexpr std::size_t nonce_bytes = 32;
inline constexpr std::size_t hello_bytes =
    8 + version_max_bytes + nonce_bytes + sizeof(TlsAuthority);
inline constexpr std::size_t proof_bytes = 32;

using Nonce = std::array<std::byte, nonce_bytes>;
using Proof = std::array<std::byte, proof_bytes>;
using HelloBytes = std::array<std::byte, hello_bytes>;

struct Hello {
  std::uint8_t protocol = gate_protocol;
  std::string version;
  Nonce nonce{};
  TlsAuthority tls_authority{};

  friend bool operator==(const Hello&, const Hello&) = default;
};

/// Whether `version` can be said in a hello: 1 to 32 printable characters without a space.
[[nodiscard]] bool is_version(std::string_view version);

/// `hello.version` must be one.
[[nodiscard]] HelloBytes write_hello(const Hello& hello);

/// Reads what anybody may have sent so far. Returns nothing while the bytes may yet become a hello,
/// and fails with `invalid_file` as soon as they cannot, with a clause that says what they are. A
/// hello of another protocol is read up to its version.
[[nodiscard]] Expected<std::optional<Hello>> read_hello(std::span<const std::byte> bytes);

/// How a gate answers a proof.
enum class Verdict : std::uint8_t {
  admitted = 1,
  wrong_secret = 2,
  full = 3,
  not_ready = 4,  ///< Nothing listens behind the gate.
};

struct Answer {
  Verdict verdict = Verdict::wrong_secret;
  Proof proof{};  ///< The gate's own; zero unless admitted.

  friend bool operator==(const Answer&, const Answer&) = default;
};

inline constexpr std::size_t answer_bytes = 1 + proof_bytes;
using AnswerBytes = std::array<std::byte, answer_bytes>;

[[nodiscard]] AnswerBytes write_answer(const Answer& answer);

/// Fails with `invalid_file` on an unknown verdict.
[[nodiscard]] Expected<Answer> read_answer(std::span<const std::byte, answer_bytes> bytes);

}  // namespace troupe::transport
