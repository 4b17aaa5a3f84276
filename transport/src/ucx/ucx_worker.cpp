#include "ucx/ucx_worker.hpp"

#include "ucx/ucx_error.hpp"

namespace troupe::transport {

namespace {

ucs_status_t on_message(void* inbox, const void* header, std::size_t header_length, void* data,
                        std::size_t length, const ucp_am_recv_param_t* param) {
  const bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  const bool kept = static_cast<UcxInbox*>(inbox)->take_in(
      {static_cast<const std::byte*>(header), header_length},
      {.handle = length == 0 ? nullptr : data, .size_bytes = length, .rendezvous = rendezvous});
  return kept && length != 0 ? UCS_INPROGRESS : UCS_OK;
}

void on_fetched(void* request, ucs_status_t status, std::size_t /*length*/, void* completion) {
  ucp_request_free(request);
  static_cast<UcxCompletion*>(completion)->completed(status);
}

}  // namespace

Expected<std::unique_ptr<UcxWorker>> UcxWorker::make(const UcxContext& context, std::uint64_t id) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_CLIENT_ID;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  params.client_id = id;
  ucp_worker_h worker = nullptr;
  const auto status = ucp_worker_create(context.get(), &params, &worker);
  if (status != UCS_OK) return ucx_error(status, "making a UCX worker");
  return std::unique_ptr<UcxWorker>{new UcxWorker{worker}};
}

UcxWorker::~UcxWorker() {
  while (closings_ != 0) progress();
  ucp_worker_destroy(handle_);
}

Expected<Done> UcxWorker::deliver_to(UcxInbox& inbox) {
  ucp_am_handler_param_t params{};
  params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS
                      | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  params.id = ucx_message_id;
  params.flags = UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA;
  params.cb = on_message;
  params.arg = &inbox;
  const auto status = ucp_worker_set_am_recv_handler(handle_, &params);
  if (status != UCS_OK) return ucx_error(status, "registering for active messages");
  return Done{};
}

Expected<int> UcxWorker::event_descriptor() const {
  int descriptor = -1;
  const auto status = ucp_worker_get_efd(handle_, &descriptor);
  if (status != UCS_OK) return ucx_error(status, "asking UCX for a descriptor to wait on");
  return descriptor;
}

void UcxWorker::fetch(const UcxArrival& arrival, BufferView target, UcxCompletion& completion) {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.cb.recv_am = on_fetched;
  params.user_data = &completion;
  settle_at_once(
      ucp_am_recv_data_nbx(handle_, arrival.handle, target.data, target.size_bytes, &params),
      completion);
}

void UcxWorker::release(const UcxArrival& arrival) {
  if (arrival.handle != nullptr) ucp_am_data_release(handle_, arrival.handle);
}

void UcxWorker::close_by_force(ucp_ep_h endpoint) {
  ucp_request_param_t params{};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;
  params.cb.send = [](void* request, ucs_status_t, void* closings) {
    ucp_request_free(request);
    --*static_cast<std::uint32_t*>(closings);
  };
  params.user_data = &closings_;
  ++closings_;
  const auto* outcome = ucp_ep_close_nbx(endpoint, &params);
  if (outcome == nullptr || UCS_PTR_IS_ERR(outcome)) --closings_;
}

}  // namespace troupe::transport
