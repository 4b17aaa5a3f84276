#include "ucx/ucx_settings.hpp"

#include <array>
#include <csignal>
#include <cstdlib>
#include <string_view>

#include <dlfcn.h>
#include <ucs/debug/debug.h>

namespace troupe::transport {

namespace {

bool in_environment(const std::string& name) {
  return std::getenv(("UCX_" + name).c_str()) != nullptr;
}

/// Whether the handler of `signal` is code of libucs.
bool held_by_ucx(int signal) {
  struct sigaction action {};
  if (sigaction(signal, nullptr, &action) != 0) return false;
  const auto* handler = reinterpret_cast<void*>(action.sa_handler);
  Dl_info where{};
  return dladdr(handler, &where) != 0 && where.dli_fname != nullptr
         && std::string_view{where.dli_fname}.find("libucs") != std::string_view::npos;
}

void release(int signal) {
  if (held_by_ucx(signal)) ucs_debug_disable_signal(signal);
}

}  // namespace

std::vector<UcxSetting> settings_for(const UcxOptions& options) {
  std::vector<UcxSetting> settings{
      {"TLS", options.shared_memory ? "posix,tcp,self" : "tcp,self"},
      {"NET_DEVICES", options.network_interface},
      {"TCP_PUT_ENABLE", "n", "PUT_ENABLE"},
      {"ZCOPY_THRESH", "inf"},
      {"TCP_TX_SEG_SIZE", "64kb", "TX_SEG_SIZE"},
      {"KEEPALIVE_INTERVAL", std::to_string(options.keepalive.count()) + "ms"},
  };
  if (options.shared_memory) {
    settings.push_back({"MM_ERROR_HANDLING", "y"});
    settings.push_back({"MM_FIFO_SIZE", "256"});  // 2 MiB: both ends copy at once for longer.
  }
  return settings;
}

std::vector<UcxSetting> without_users_own(std::vector<UcxSetting> settings) {
  std::erase_if(settings, [](const UcxSetting& setting) { return in_environment(setting.name); });
  return settings;
}

void release_signals() {
  if (!in_environment("ERROR_SIGNALS") && !in_environment("HANDLE_ERRORS")) {
    for (const int signal : std::array{SIGILL, SIGSEGV, SIGBUS, SIGFPE}) release(signal);
  }
  if (!in_environment("DEBUG_SIGNO")) release(SIGHUP);
}

}  // namespace troupe::transport
