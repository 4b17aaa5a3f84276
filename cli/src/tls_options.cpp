#include "tls_options.hpp"

#include <fmt/format.h>

namespace troupe::cli {

Expected<std::optional<transport::TlsFiles>> tls_of(const transport::TlsFiles& given) {
  std::string missing;
  const auto look_at = [&](const char* option, const std::string& path) {
    if (path.empty()) missing += (missing.empty() ? "" : " and ") + std::string{option};
  };
  look_at("--tls-certificate", given.certificate_path);
  look_at("--tls-key", given.key_path);
  look_at("--tls-authority", given.authority_path);
  if (missing.empty()) return std::optional{given};
  if (to_options(given).empty()) return std::optional<transport::TlsFiles>{};
  return Error{
      Errc::invalid_config,
      fmt::format("TLS needs a certificate, its key and the authority: give {} as well", missing)};
}

std::vector<std::string> to_options(const transport::TlsFiles& given) {
  std::vector<std::string> words;
  const auto add = [&](const char* option, const std::string& path) {
    if (!path.empty()) words.insert(words.end(), {option, path});
  };
  add("--tls-certificate", given.certificate_path);
  add("--tls-key", given.key_path);
  add("--tls-authority", given.authority_path);
  return words;
}

}  // namespace troupe::cli
