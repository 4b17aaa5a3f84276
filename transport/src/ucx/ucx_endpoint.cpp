#include "ucx/ucx_endpoint.hpp"

#include "ucx/ucx_error.hpp"
#include "ucx/ucx_print.hpp"

namespace troupe::transport {

Expected<std::unique_ptr<UcxEndpoint>> UcxEndpoint::make(UcxWorker& worker, ucp_ep_params_t params,
                                                         Failed failed) {
  std::unique_ptr<UcxEndpoint> endpoint{new UcxEndpoint{worker, std::move(failed)}};
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
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

Expected<std::unique_ptr<UcxEndpoint>> UcxEndpoint::connect(UcxWorker& worker,
                                                            const SocketAddress& peer,
                                                            Failed failed) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER | UCP_EP_PARAMS_FLAGS_SEND_CLIENT_ID;
  params.sockaddr = {.addr = peer.get(), .addrlen = peer.size_bytes};
  return make(worker, params, std::move(failed));
}

Expected<std::unique_ptr<UcxEndpoint>> UcxEndpoint::accept(UcxWorker& worker,
                                                           const UcxRequest& request,
                                                           Failed failed) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request.handle;
  return make(worker, params, std::move(failed));
}

UcxEndpoint::~UcxEndpoint() {
  if (handle_ != nullptr) worker_.close_by_force(handle_);
}

std::string UcxEndpoint::print() const {
  return printed_by([this](std::FILE* stream) { ucp_ep_print_info(handle_, stream); });
}

}  // namespace troupe::transport
