// The configuration reader: the input is a text and, after each zero byte, an override.

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/engine/config.hpp"

#include "fuzz_target.hpp"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace troupe;
  std::string_view rest{reinterpret_cast<const char*>(data), size_bytes};
  std::vector<std::string> parts;
  for (;;) {
    const auto end = rest.find('\0');
    parts.emplace_back(rest.substr(0, end));
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  const auto text = parts.front();
  parts.erase(parts.begin());

  const auto config = parse_config(text, "fuzz.toml", parts);
  if (!config) {
    check_refusal(config.error(), Errc::invalid_config);
    return 0;
  }
  const auto again = parse_config(to_toml(*config), "again.toml", {});
  TROUPE_ASSERT(again && *again == *config);
  if (const auto valid = validate(*config); !valid) {
    check_refusal(valid.error(), Errc::invalid_config);
  }
  for (const std::uint32_t step : {0U, 1U, config->train.warmup_steps, config->train.steps, ~0U}) {
    TROUPE_ASSERT(std::isfinite(learning_rate_at(config->train, step)));
  }
  return 0;
}
