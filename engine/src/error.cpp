#include "troupe/engine/error.hpp"

namespace troupe {

std::string_view to_string(Errc code) noexcept {
  switch (code) {
    case Errc::none:
      return "none";
    case Errc::invalid_config:
      return "invalid_config";
    case Errc::invalid_schedule:
      return "invalid_schedule";
    case Errc::invalid_file:
      return "invalid_file";
    case Errc::file_failure:
      return "file_failure";
    case Errc::out_of_memory:
      return "out_of_memory";
    case Errc::peer_unreachable:
      return "peer_unreachable";
    case Errc::message_truncated:
      return "message_truncated";
    case Errc::invalid_batch:
      return "invalid_batch";
    case Errc::diverged:
      return "diverged";
    case Errc::cancelled:
      return "cancelled";
    case Errc::device_failure:
      return "device_failure";
    case Errc::internal:
      return "internal";
  }
  return "unknown";
}

}  // namespace troupe
