#include "ucx/ucx_listener.hpp"

#include "ucx/ucx_error.hpp"

namespace troupe::transport {

Expected<std::unique_ptr<UcxListener>> UcxListener::make(UcxWorker& worker,
                                                         const SocketAddress& where) {
  std::unique_ptr<UcxListener> listener{new UcxListener};
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr = {.addr = where.get(), .addrlen = where.size_bytes};
  params.conn_handler = {.cb = on_request, .arg = listener.get()};
  auto status = ucp_listener_create(worker.get(), &params, &listener->handle_);
  if (status != UCS_OK) return ucx_error(status, "listening for other fabrics");
  ucp_listener_attr_t attributes{};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  status = ucp_listener_query(listener->handle_, &attributes);
  if (status != UCS_OK) return ucx_error(status, "asking UCX where it listens");
  listener->address_ = {.storage = attributes.sockaddr, .size_bytes = where.size_bytes};
  return listener;
}

UcxListener::~UcxListener() {
  if (handle_ != nullptr) ucp_listener_destroy(handle_);
}

void UcxListener::on_request(ucp_conn_request_h request, void* self) {
  auto& listener = *static_cast<UcxListener*>(self);
  ucp_conn_request_attr_t attributes{};
  attributes.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ID;
  if (ucp_conn_request_query(request, &attributes) != UCS_OK) {
    ucp_listener_reject(listener.handle_, request);
    return;
  }
  listener.requests_.push_back({.handle = request, .from = attributes.client_id});
}

}  // namespace troupe::transport
