// transport/src/gate/proof.hpp -- random numbers, and proofs that somebody knows a secret.
#pragma once

#include <span>
#include <string_view>

#include "troupe/engine/expected.hpp"

#include "gate/hello.hpp"

namespace troupe::transport {

/// Fills `bytes` with numbers that nobody can predict. Fails with `internal`.
Expected<Done> draw(std::span<std::byte> bytes);

/// Both hellos of a conversation, as they travelled.
struct Greetings {
  HelloBytes node{};
  HelloBytes gate{};
};

enum class Role : std::uint8_t { node, gate };

/// Returns HMAC-SHA256(secret, role + node's hello + gate's hello).
[[nodiscard]] Proof prove(Role role, std::string_view secret, const Greetings& greetings);

/// Compares in a time that does not depend on the bytes.
[[nodiscard]] bool is_same(const Proof& one, const Proof& other);

}  // namespace troupe::transport
