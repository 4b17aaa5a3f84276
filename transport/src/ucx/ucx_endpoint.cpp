#include "ucx/ucx_endpoint.hpp"

#include "ucx/ucx_error.hpp"
#include "ucx/ucx_print.hpp"

namespace troupe::transport {

Expected<std::unique_ptr<UcxEndpoint>> UcxEndpoint::connect(UcxWorker& worker,
                                                            const UcxWorkerAddress& peer,
                                                            Failed failed) {
  std::unique_ptr<UcxEndpoint> endpoint{new UcxEndpoint{worker, std::move(failed)}};
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
                      | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(peer.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = [](void* self, ucp_ep_h, ucs_status_t status) {
    static_cast<UcxEndpoint*>(self)->failed_(status);
  };
  params.err_handler.arg = endpoint.get();
  const auto status = ucp_ep_create(worker.get(), &params, &endpoint->handle_);
  if (status == UCS_OK) return endpoint;
  endpoint->handle_ = nullptr;
  return ucx_error(status, "connecting to another fabric");
}

UcxEndpoint::~UcxEndpoint() {
  if (handle_ != nullptr) worker_.close_by_force(handle_);
}

std::string UcxEndpoint::print() const {
  return printed_by([this](std::FILE* stream) { ucp_ep_print_info(handle_, stream); });
}

}  // namespace troupe::transport
