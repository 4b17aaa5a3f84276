#include "troupe/transport/secret.hpp"

#include <array>
#include <cerrno>
#include <span>
#include <string_view>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gate/file.hpp"
#include "gate/proof.hpp"

namespace troupe::transport {

namespace {

Error failure(const std::string& verb, const std::string& path, const std::string& advice) {
  const std::error_code reason{errno, std::generic_category()};
  return {Errc::file_failure,
          "cannot " + verb + " the secret " + path + ": " + reason.message() + "; " + advice};
}

bool write_all(const File& file, std::string_view text) {
  while (!text.empty()) {
    const auto written = ::write(file.descriptor(), text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return ::fsync(file.descriptor()) == 0;
}

}  // namespace

Expected<std::string> make_secret() {
  std::array<std::byte, 32> bytes{};
  if (const auto drawn = draw(bytes); !drawn) return drawn.error();
  constexpr std::string_view digits = "0123456789abcdef";
  std::string secret;
  for (const auto byte : bytes) {
    secret += digits[std::to_integer<unsigned>(byte >> 4U)];
    secret += digits[std::to_integer<unsigned>(byte & std::byte{15})];
  }
  return secret;
}

Expected<Done> write_secret(const std::string& path) {
  const auto secret = make_secret();
  if (!secret) return secret.error();
  const File file{path, O_WRONLY | O_CREAT | O_EXCL};
  if (!file.is_open()) {
    return failure("create", path,
                   errno == EEXIST ? "use the one that is there, or remove it first"
                                   : "choose a folder that can be written to");
  }
  if (!write_all(file, *secret + "\n")) {
    auto error = failure("write", path, "nothing is left of it");
    ::unlink(path.c_str());
    return error;
  }
  return Done{};
}

Expected<std::string> read_secret(const std::string& path) {
  const File file{path, O_RDONLY};
  struct stat status {};
  if (!file.is_open() || ::fstat(file.descriptor(), &status) != 0) {
    return failure("open", path, "name the file that the director was started with");
  }
  if (!S_ISREG(status.st_mode)) {
    return Error{Errc::file_failure, "the secret " + path + " is not a regular file"};
  }
  if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return Error{Errc::invalid_file, "others than its owner have access to the secret " + path
                                         + ": run  chmod 600 " + path};
  }
  std::string secret;
  if (!read_all(file, secret_max_bytes + 1, secret))
    return failure("read", path, "copy it here again");
  if (secret.ends_with('\n')) secret.pop_back();
  if (secret.size() < secret_min_bytes || secret.size() > secret_max_bytes) {
    const auto bounds =
        std::to_string(secret_min_bytes) + " to " + std::to_string(secret_max_bytes);
    const auto found = secret.size() > secret_max_bytes ? "more" : std::to_string(secret.size());
    return Error{Errc::invalid_file, "the secret " + path + " must have " + bounds
                                         + " bytes without the line break at its end, and has "
                                         + found};
  }
  return secret;
}

}  // namespace troupe::transport
