// transport/src/ucx/ucx_print.hpp -- what UCX prints, as a string, and what it says of transports.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::transport {

/// Returns what `print` writes to the stream it is called with.
template <class Print>
std::string printed_by(Print print) {
  char* text = nullptr;
  std::size_t size_bytes = 0;
  auto* stream = open_memstream(&text, &size_bytes);
  if (stream == nullptr) return {};
  print(stream);
  std::fclose(stream);
  std::string copy{text, size_bytes};
  std::free(text);
  return copy;
}

/// Returns each `transport/device` of `text` once, in order: `posix/memory`, `tcp/lo`. UCX prints a
/// resource of a context as `-- tcp/lo`, a lane of an endpoint as `1:tcp/lo.0`.
[[nodiscard]] std::vector<std::string> transports_in(std::string_view text);

}  // namespace troupe::transport
