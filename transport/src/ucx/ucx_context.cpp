#include "ucx/ucx_context.hpp"

#include <memory>

#include "ucx/ucx_error.hpp"
#include "ucx/ucx_print.hpp"

namespace troupe::transport {

Expected<std::shared_ptr<const UcxContext>> UcxContext::make(
    const std::vector<UcxSetting>& settings) {
  ucp_config_t* config = nullptr;
  if (const auto status = ucp_config_read(nullptr, nullptr, &config); status != UCS_OK) {
    return ucx_error(status, "reading the UCX_* environment variables");
  }
  const std::unique_ptr<ucp_config_t, void (*)(ucp_config_t*)> owner{config, ucp_config_release};
  for (const auto& [name, value, key] : settings) {
    const auto status = ucp_config_modify(config, key.c_str(), value.c_str());
    if (status != UCS_OK) return ucx_error(status, "setting UCX_" + name + " to '" + value + "'");
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  ucp_context_h context = nullptr;
  if (const auto status = ucp_init(&params, config, &context); status != UCS_OK) {
    return ucx_error(status, "starting UCX " + std::string{ucp_get_version_string()});
  }
  return std::shared_ptr<const UcxContext>{new UcxContext{context}};
}

UcxContext::~UcxContext() {
  ucp_cleanup(handle_);
}

std::string UcxContext::print() const {
  return printed_by([this](std::FILE* stream) { ucp_context_print_info(handle_, stream); });
}

}  // namespace troupe::transport
