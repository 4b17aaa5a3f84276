#include "troupe/transport/tls_files.hpp"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <sys/stat.h>

#include "gate/file.hpp"

namespace troupe::transport {

namespace {

constexpr std::size_t file_max_bytes = std::size_t{1} << 20U;

/// What OpenSSL refuses in a handshake by default: less than 112 bits, which 2048 bits of RSA have.
constexpr int security_level = 2;

template <auto release>
struct Releaser {
  template <class T>
  void operator()(T* owned) const noexcept {
    release(owned);
  }
};
using BioPtr = std::unique_ptr<BIO, Releaser<BIO_free>>;
using CertificatePtr = std::unique_ptr<X509, Releaser<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Releaser<EVP_PKEY_free>>;
using StorePtr = std::unique_ptr<X509_STORE, Releaser<X509_STORE_free>>;
using CheckPtr = std::unique_ptr<X509_STORE_CTX, Releaser<X509_STORE_CTX_free>>;
using DigestPtr = std::unique_ptr<EVP_MD_CTX, Releaser<EVP_MD_CTX_free>>;

/// Leaves no errors behind for whoever uses OpenSSL next on this thread.
class ErrorsOfThisScope {
public:
  ErrorsOfThisScope() { ERR_clear_error(); }
  ~ErrorsOfThisScope() { ERR_clear_error(); }
  ErrorsOfThisScope(const ErrorsOfThisScope&) = delete;
  ErrorsOfThisScope& operator=(const ErrorsOfThisScope&) = delete;
};

Error malformed(const std::string& what) {
  return {Errc::invalid_file, what};
}

Error unreadable(const std::string& what) {
  const std::error_code reason{errno, std::generic_category()};
  return {Errc::file_failure,
          "cannot open " + what + ": " + reason.message() + "; name a file in PEM form"};
}

/// `what` is the file's part and its path.
Expected<std::string> read_file(const std::string& what, const std::string& path,
                                bool is_for_its_owner) {
  const File file{path, O_RDONLY};
  struct stat status {};
  if (!file.is_open() || ::fstat(file.descriptor(), &status) != 0) return unreadable(what);
  if (!S_ISREG(status.st_mode)) {
    return Error{Errc::file_failure, what + " is not a regular file"};
  }
  if (is_for_its_owner && (status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return malformed("others than its owner have access to " + what + ": run  chmod 600 " + path);
  }
  std::string text;
  if (!read_all(file, file_max_bytes, text)) return unreadable(what);
  if (text.size() <= file_max_bytes) return text;
  return malformed(what + " has more than 1 MiB: it is no file in PEM form");
}

BioPtr as_bio(const std::string& text) {
  return BioPtr{BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))};
}

/// The certificates of a file, in its order. What stands between them is passed over.
Expected<std::vector<CertificatePtr>> read_certificates(const std::string& what,
                                                        const std::string& path) {
  const auto text = read_file(what, path, false);
  if (!text) return text.error();
  const auto bio = as_bio(*text);
  std::vector<CertificatePtr> certificates;
  while (auto* one = PEM_read_bio_X509_AUX(bio.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(one);
  }
  const auto reason = ERR_GET_REASON(ERR_peek_last_error());
  ERR_clear_error();
  if (certificates.empty() && reason == PEM_R_NO_START_LINE) {
    return malformed(what + " holds no certificate in PEM form: expected a line "
                            "-----BEGIN CERTIFICATE-----");
  }
  if (reason == PEM_R_NO_START_LINE) return certificates;
  return malformed(what + " holds a certificate that is damaged: copy the file anew");
}

/// Is asked for the passphrase of a key that has one.
int refuse_passphrase(char* /*buffer*/, int /*size*/, int /*is_for_writing*/, void* was_asked) {
  *static_cast<bool*>(was_asked) = true;
  return -1;
}

Expected<KeyPtr> read_key(const std::string& path) {
  const auto what = "the TLS key " + path;
  const auto text = read_file(what, path, true);
  if (!text) return text.error();
  bool was_asked = false;
  KeyPtr key{PEM_read_bio_PrivateKey(as_bio(*text).get(), nullptr, refuse_passphrase, &was_asked)};
  if (key) return key;
  if (was_asked) {
    return malformed(what + " has a passphrase, which nobody can enter here: take it off with  "
                     + "openssl pkey -in " + path + " -out NEW");
  }
  return malformed(what + " holds no private key in PEM form: expected a line "
                          "-----BEGIN PRIVATE KEY-----");
}

std::string text_of(const ASN1_TIME* time) {
  const BioPtr bio{BIO_new(BIO_s_mem())};
  ASN1_TIME_print(bio.get(), time);
  char* text = nullptr;
  const auto size_bytes = BIO_get_mem_data(bio.get(), &text);
  return {text, static_cast<std::size_t>(size_bytes)};
}

/// Why `certificate` is not valid at this time, or nothing.
std::optional<std::string> out_of_time(const X509* certificate) {
  const auto* begin = X509_get0_notBefore(certificate);
  const auto* end = X509_get0_notAfter(certificate);
  if (X509_cmp_current_time(end) < 0) {
    return " expired on " + text_of(end) + ": make a new one";
  }
  if (X509_cmp_current_time(begin) > 0) {
    return " is not valid before " + text_of(begin) + ": see whether this machine's clock is right";
  }
  return std::nullopt;
}

/// One of the certificates above the first of the chain.
std::string name_of(const X509* issuer, const TlsFiles& files,
                    const std::vector<CertificatePtr>& chain) {
  const auto found = std::ranges::find(chain, issuer, &CertificatePtr::get);
  if (found == chain.end()) return "the TLS authority " + files.authority_path;
  return "certificate " + std::to_string(found - chain.begin() + 1) + " in "
         + files.certificate_path;
}

/// Judges as a peer would who trusts `authorities` and nobody else.
Expected<Done> check_issuer(const TlsFiles& files, TlsSide side,
                            const std::vector<CertificatePtr>& chain,
                            const std::vector<CertificatePtr>& authorities) {
  const StorePtr store{X509_STORE_new()};
  for (const auto& one : authorities) X509_STORE_add_cert(store.get(), one.get());
  auto* between = sk_X509_new_null();
  for (std::size_t i = 1; i < chain.size(); ++i) sk_X509_push(between, chain[i].get());
  const CheckPtr check{X509_STORE_CTX_new()};
  X509_STORE_CTX_init(check.get(), store.get(), chain.front().get(), between);
  X509_STORE_CTX_set_default(check.get(), side == TlsSide::director ? "ssl_server" : "ssl_client");
  X509_VERIFY_PARAM_set_auth_level(X509_STORE_CTX_get0_param(check.get()), security_level);
  const bool is_good = X509_verify_cert(check.get()) == 1;
  const auto reason = X509_STORE_CTX_get_error(check.get());
  const auto* judged = X509_STORE_CTX_get_current_cert(check.get());
  const auto late = is_good || judged == nullptr ? std::nullopt : out_of_time(judged);
  sk_X509_free(between);
  if (is_good) return Done{};
  // The first certificate itself is in time.
  if (late) return malformed(name_of(judged, files, chain) + *late);
  return malformed("the TLS certificate " + files.certificate_path
                   + " is not accepted by who trusts " + files.authority_path + ": "
                   + X509_verify_cert_error_string(reason)
                   + "; have this authority issue one for a "
                   + (side == TlsSide::director ? "server" : "client"));
}

TlsAuthority mark_of(const std::vector<CertificatePtr>& authorities) {
  TlsAuthority mark{};
  const DigestPtr digest{EVP_MD_CTX_new()};
  EVP_DigestInit_ex(digest.get(), EVP_sha256(), nullptr);
  for (const auto& one : authorities) {
    unsigned char* bytes = nullptr;
    const auto size_bytes = i2d_X509(one.get(), &bytes);
    EVP_DigestUpdate(digest.get(), bytes, static_cast<std::size_t>(size_bytes));
    OPENSSL_free(bytes);
  }
  EVP_DigestFinal_ex(digest.get(), reinterpret_cast<unsigned char*>(mark.data()), nullptr);
  return mark;
}

}  // namespace

Expected<TlsAuthority> check_tls_files(const TlsFiles& files, TlsSide side) {
  if (files.certificate_path.empty() || files.key_path.empty() || files.authority_path.empty()) {
    return Error{Errc::invalid_config,
                 "TLS needs three files: a certificate, its key, and the authority's certificate"};
  }
  const ErrorsOfThisScope errors;
  const auto certificate_name = "the TLS certificate " + files.certificate_path;
  const auto authority_name = "the TLS authority " + files.authority_path;
  const auto chain = read_certificates(certificate_name, files.certificate_path);
  if (!chain) return chain.error();
  const auto key = read_key(files.key_path);
  if (!key) return key.error();
  const auto authorities = read_certificates(authority_name, files.authority_path);
  if (!authorities) return authorities.error();
  if (X509_check_private_key(chain.value().front().get(), key.value().get()) != 1) {
    return malformed("the TLS key " + files.key_path + " does not belong to the certificate "
                     + files.certificate_path + ": give the two that were made together");
  }
  if (const auto why = out_of_time(chain.value().front().get())) {
    return malformed(certificate_name + *why);
  }
  if (auto issued = check_issuer(files, side, *chain, *authorities); !issued) return issued.error();
  return mark_of(*authorities);
}

}  // namespace troupe::transport
