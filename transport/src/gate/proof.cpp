#include "gate/proof.hpp"

#include <algorithm>
#include <array>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

namespace troupe::transport {

Expected<Done> draw(std::span<std::byte> bytes) {
  auto* data = reinterpret_cast<unsigned char*>(bytes.data());
  if (RAND_bytes(data, static_cast<int>(bytes.size())) == 1) return Done{};
  return Error{Errc::internal, "OpenSSL yields no random numbers: the system's source is empty"};
}

Proof prove(Role role, std::string_view secret, const Greetings& greetings) {
  constexpr std::string_view node{"node"};
  constexpr std::string_view gate{"gate"};
  std::array<std::byte, node.size() + 2 * hello_bytes> message{};
  const auto name = std::as_bytes(std::span{role == Role::node ? node : gate});
  auto end = std::ranges::copy(name, message.begin()).out;
  end = std::ranges::copy(greetings.node, end).out;
  std::ranges::copy(greetings.gate, end);

  Proof proof{};
  unsigned length = 0;
  const auto* made = HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
                          reinterpret_cast<const unsigned char*>(message.data()), message.size(),
                          reinterpret_cast<unsigned char*>(proof.data()), &length);
  TROUPE_ASSERT(made != nullptr && length == proof.size());
  return proof;
}

bool is_same(const Proof& one, const Proof& other) {
  return CRYPTO_memcmp(one.data(), other.data(), one.size()) == 0;
}

}  // namespace troupe::transport
