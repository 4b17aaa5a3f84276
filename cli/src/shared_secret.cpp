#include "shared_secret.hpp"

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <sys/stat.h>

#include "troupe/transport/secret.hpp"

namespace troupe::cli {

namespace {

namespace fs = std::filesystem;

constexpr std::chrono::milliseconds look_interval{100};

bool is_absent(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) != 0 && (errno == ENOENT || errno == ESTALE);
}

}  // namespace

std::string shared_secret_path(const std::string& output_folder, const std::string& run_name) {
  return (fs::path{output_folder} / ("secret-" + run_name)).string();
}

Expected<std::unique_ptr<SharedSecret>> SharedSecret::publish(const std::string& path) {
  const auto unfinished = path + ".new";
  std::error_code failure;
  fs::create_directories(fs::path{path}.parent_path(), failure);
  if (!failure) fs::remove(unfinished, failure);
  if (!failure) {
    if (auto written = transport::write_secret(unfinished); !written) return written.error();
    auto secret = transport::read_secret(unfinished);
    if (!secret) return secret.error();
    fs::rename(unfinished, path, failure);
    if (!failure) {
      return std::unique_ptr<SharedSecret>{new SharedSecret{path, std::move(secret).value()}};
    }
    std::error_code ignored;
    fs::remove(unfinished, ignored);
  }
  return Error{
      Errc::file_failure,
      fmt::format("cannot write the secret {}: {}; choose another run.output, or give every "
                  "task one secret with --secret FILE",
                  path, failure.message())};
}

SharedSecret::SharedSecret(std::string path, std::string secret)
    : path_{std::move(path)}, secret_{std::move(secret)} {}

SharedSecret::~SharedSecret() {
  std::error_code ignored;
  fs::remove(path_, ignored);
}

Expected<std::string> await_shared_secret(const std::string& path,
                                          std::chrono::milliseconds patience) {
  const auto give_up_time = std::chrono::steady_clock::now() + patience;
  // A network file system announces nothing: look again and again.
  while (is_absent(path)) {
    if (std::chrono::steady_clock::now() >= give_up_time) {
      return Error{
          Errc::peer_unreachable,
          fmt::format("task 0 has not left the secret {} in {} seconds; see what task 0 says, and "
                      "whether run.output is one folder on all machines, or give every task one "
                      "secret with --secret FILE",
                      path, std::chrono::duration<double>{patience}.count())};
    }
    std::this_thread::sleep_for(look_interval);
  }
  return transport::read_secret(path);
}

}  // namespace troupe::cli
