#include "gate/hello.hpp"

#include <algorithm>
#include <cstring>

namespace troupe::transport {

namespace {

constexpr std::string_view magic{"troupe\0", 7};
constexpr std::size_t protocol_at = magic.size();
constexpr std::size_t version_at = protocol_at + 1;
constexpr std::size_t nonce_at = version_at + version_max_bytes;
constexpr std::size_t authority_at = nonce_at + nonce_bytes;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Names the protocols that are likely to stray here, by how they begin.
std::string kind_of(std::string_view text) {
  constexpr std::array http{"GET ", "HEAD ", "POST ", "PUT ", "OPTIONS ", "CONNECT ", "HTTP/"};
  const auto begins_with = [text](std::string_view head) { return text.starts_with(head); };
  if (std::ranges::any_of(http, begins_with)) return "HTTP";
  if (begins_with("\x16\x03")) return "TLS";
  if (begins_with("SSH-")) return "SSH";
  return "an unknown protocol";
}

Error not_a_hello(const std::string& what) {
  return {Errc::invalid_file, what};
}

}  // namespace

bool is_version(std::string_view version) {
  return !version.empty() && version.size() <= version_max_bytes
         && std::ranges::all_of(version, [](char c) { return c > ' ' && c < '\x7f'; });
}

HelloBytes write_hello(const Hello& hello) {
  TROUPE_ASSERT(is_version(hello.version));
  HelloBytes bytes{};
  std::memcpy(bytes.data(), magic.data(), magic.size());
  bytes[protocol_at] = static_cast<std::byte>(hello.protocol);
  std::memcpy(&bytes[version_at], hello.version.data(), hello.version.size());
  std::ranges::copy(hello.nonce, bytes.begin() + nonce_at);
  std::ranges::copy(hello.tls_authority, bytes.begin() + authority_at);
  return bytes;
}

Expected<std::optional<Hello>> read_hello(std::span<const std::byte> bytes) {
  const auto text = as_text(bytes);
  const auto seen = std::min(text.size(), magic.size());
  if (text.substr(0, seen) != magic.substr(0, seen)) {
    return not_a_hello("spoke " + kind_of(text) + " instead of troupe's greeting");
  }
  if (bytes.size() > hello_bytes) return not_a_hello("sent a greeting that is too long");
  if (bytes.size() < nonce_at) return std::optional<Hello>{};
  Hello hello;
  hello.protocol = std::to_integer<std::uint8_t>(bytes[protocol_at]);
  const auto field = text.substr(version_at, version_max_bytes);
  hello.version = field.substr(0, field.find('\0'));
  const auto padding = field.substr(hello.version.size());
  if (!is_version(hello.version) || padding.find_first_not_of('\0') != padding.npos) {
    return not_a_hello("sent a greeting whose version is not 1 to 32 printable characters");
  }
  if (hello.protocol != gate_protocol) return std::optional{hello};
  if (bytes.size() < hello_bytes) return std::optional<Hello>{};
  std::ranges::copy(bytes.subspan(nonce_at, nonce_bytes), hello.nonce.begin());
  std::ranges::copy(bytes.subspan(authority_at), hello.tls_authority.begin());
  return std::optional{hello};
}

AnswerBytes write_answer(const Answer& answer) {
  AnswerBytes bytes{};
  bytes[0] = static_cast<std::byte>(answer.verdict);
  std::ranges::copy(answer.proof, bytes.begin() + 1);
  return bytes;
}

Expected<Answer> read_answer(std::span<const std::byte, answer_bytes> bytes) {
  Answer answer;
  answer.verdict = static_cast<Verdict>(bytes[0]);
  if (answer.verdict < Verdict::admitted || answer.verdict > Verdict::not_ready) {
    return not_a_hello("gave an answer of the unknown kind "
                       + std::to_string(std::to_integer<unsigned>(bytes[0])));
  }
  std::ranges::copy(bytes.subspan(1), answer.proof.begin());
  return answer;
}

}  // namespace troupe::transport
