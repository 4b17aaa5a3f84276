// troupe/transport/tls_files.hpp -- the files of a process that encrypts what it says to others.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "troupe/engine/expected.hpp"

namespace troupe::transport {

/// Three files in PEM form. TLS without one of them would be TLS with anybody.
struct TlsFiles {
  std::string certificate_path;  ///< Of this process; those between it and the authority follow it.
  std::string key_path;          ///< The certificate's private key, for its owner alone to read.
  std::string authority_path;    ///< The certificates of those who may issue others' certificates.
};

/// SHA-256 of the certificates in a file of authorities, one after the other.
using TlsAuthority = std::array<std::byte, 32>;

/// What a process without TLS has in its place.
inline constexpr TlsAuthority no_tls{};

/// As what a process shows its certificate.
enum class TlsSide : std::uint8_t { director, node };

/// Checks that a connection can be made with these files: that each can be read and is what it
/// should be, that others than its owner have no access to the key, that the key is the
/// certificate's, and that a peer who trusts the authority would accept the certificate now.
/// Returns the authority's mark. Fails with `invalid_config` if a path is empty, with
/// `file_failure` if a file cannot be read, otherwise with `invalid_file`.
[[nodiscard]] Expected<TlsAuthority> check_tls_files(const TlsFiles& files, TlsSide side);

}  // namespace troupe::transport
