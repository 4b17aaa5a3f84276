#include "ucx/ucx_worker.hpp"

#include <cerrno>
#include <chrono>
#include <system_error>

#include <sys/epoll.h>

#include "ucx/ucx_error.hpp"

namespace troupe::transport {

namespace {

/// The number under which fabrics' messages travel among UCX's active messages.
constexpr unsigned message_id = 1;

/// How long UCX may take to let go of a peer. It needs a fraction of a millisecond, or for ever.
constexpr std::chrono::milliseconds closing_max{50};

/// A worker that UCX does not let go of, and what it still refers to: kept until the process ends.
struct LeftBehind {
  std::shared_ptr<const UcxContext> context;
  ucp_worker_h worker;
};

void leave_behind(std::shared_ptr<const UcxContext> context, ucp_worker_h worker) {
  static auto* const left_behind = new std::vector<LeftBehind>;
  left_behind->push_back({std::move(context), worker});
}

ucs_status_t on_message(void* inbox, const void* header, std::size_t header_length, void* data,
                        std::size_t length, const ucp_am_recv_param_t* param) {
  const bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  const bool kept = static_cast<UcxInbox*>(inbox)->take_in(
      {static_cast<const std::byte*>(header), header_length},
      {.handle = length == 0 ? nullptr : data,
       .size_bytes = length,
       .place = rendezvous ? UcxArrival::Place::rendezvous : UcxArrival::Place::here});
  return kept && length != 0 ? UCS_INPROGRESS : UCS_OK;
}

}  // namespace

Expected<std::unique_ptr<UcxWorker>> UcxWorker::make(std::shared_ptr<const UcxContext> context,
                                                     UcxInbox& inbox, int events) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h handle = nullptr;
  const auto status = ucp_worker_create(context->get(), &params, &handle);
  if (status != UCS_OK) return ucx_error(status, "making a UCX worker");
  std::unique_ptr<UcxWorker> worker{new UcxWorker{std::move(context), handle, events}};
  // Without a handler UCX crashes on the first message.
  if (auto delivering = worker->deliver_to(inbox); !delivering) return delivering.error();
  if (auto reporting = worker->report_events(); !reporting) return reporting.error();
  return worker;
}

UcxWorker::~UcxWorker() {
  const auto busy = [this] { return closings_ != 0 || has_in_flight(); };
  const auto deadline = std::chrono::steady_clock::now() + closing_max;
  while (busy() && std::chrono::steady_clock::now() < deadline) progress();
  epoll_ctl(events_, EPOLL_CTL_DEL, event_descriptor_, nullptr);
  if (busy()) {
    leave_behind(std::move(context_), handle_);
  } else {
    ucp_worker_destroy(handle_);
  }
  while (has_in_flight()) end(*in_flight_.back(), UCS_ERR_CANCELED);
}

Expected<Done> UcxWorker::deliver_to(UcxInbox& inbox) {
  ucp_am_handler_param_t params{};
  params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS
                      | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  params.id = message_id;
  params.flags = UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA;
  params.cb = on_message;
  params.arg = &inbox;
  const auto status = ucp_worker_set_am_recv_handler(handle_, &params);
  if (status != UCS_OK) return ucx_error(status, "registering for active messages");
  return Done{};
}

Expected<Done> UcxWorker::report_events() {
  const auto status = ucp_worker_get_efd(handle_, &event_descriptor_);
  if (status != UCS_OK) return ucx_error(status, "asking UCX for a descriptor to wait on");
  epoll_event readable{};
  readable.events = EPOLLIN;
  if (epoll_ctl(events_, EPOLL_CTL_ADD, event_descriptor_, &readable) == 0) return Done{};
  return Error{Errc::internal,
               "waiting for a UCX worker failed: " + std::generic_category().message(errno)};
}

Expected<UcxWorkerAddress> UcxWorker::address() const {
  ucp_address_t* address = nullptr;
  std::size_t size_bytes = 0;
  const auto status = ucp_worker_get_address(handle_, &address, &size_bytes);
  if (status != UCS_OK) return ucx_error(status, "asking UCX for the address of a worker");
  const auto* bytes = reinterpret_cast<const std::byte*>(address);
  UcxWorkerAddress copy{bytes, bytes + size_bytes};
  ucp_worker_release_address(handle_, address);
  return copy;
}

bool UcxWorker::progress() {
  in_progress_ = true;
  const bool progressed = ucp_worker_progress(handle_) != 0;
  in_progress_ = false;
  for (auto& work : deferred_) work();
  deferred_.clear();
  return progressed;
}

void UcxWorker::outside_of_callbacks(Work work) {
  if (!in_progress_) return work();
  deferred_.push_back(std::move(work));
}

void UcxWorker::send(ucp_ep_h endpoint, std::span<const std::byte> header, BufferView bytes,
                     UcxCompletion& completion) {
  begin(completion);
  outside_of_callbacks([this, endpoint, header, bytes, &completion] {
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    params.cb.send = end;
    params.user_data = &completion;
    end_if_ended(ucp_am_send_nbx(endpoint, message_id, header.data(), header.size(), bytes.data,
                                 bytes.size_bytes, &params),
                 completion);
  });
}

void UcxWorker::fetch(const UcxArrival& arrival, BufferView target, UcxCompletion& completion) {
  begin(completion);
  outside_of_callbacks([this, handle = arrival.handle, target, &completion] {
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    params.cb.recv_am = [](void* request, ucs_status_t status, std::size_t /*length*/,
                           void* fetched) { end(request, status, fetched); };
    params.user_data = &completion;
    end_if_ended(ucp_am_recv_data_nbx(handle_, handle, target.data, target.size_bytes, &params),
                 completion);
  });
}

void UcxWorker::release(const UcxArrival& arrival) {
  if (arrival.handle == nullptr || arrival.place == UcxArrival::Place::offered) return;
  outside_of_callbacks([this, handle = arrival.handle] { ucp_am_data_release(handle_, handle); });
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

void UcxWorker::begin(UcxCompletion& completion) {
  completion.flight = {.worker = this, .position = in_flight_.size()};
  in_flight_.push_back(&completion);
}

void UcxWorker::end_if_ended(ucs_status_ptr_t outcome, UcxCompletion& completion) {
  if (outcome == nullptr) return end(completion, UCS_OK);
  if (UCS_PTR_IS_ERR(outcome)) return end(completion, UCS_PTR_STATUS(outcome));
  begun_ = true;
}

void UcxWorker::end(void* request, ucs_status_t status, void* completion) {
  ucp_request_free(request);
  auto& ended = *static_cast<UcxCompletion*>(completion);
  ended.flight.worker->end(ended, status);
}

void UcxWorker::end(UcxCompletion& completion, ucs_status_t status) {
  const auto position = completion.flight.position;
  in_flight_.back()->flight.position = position;
  in_flight_[position] = in_flight_.back();
  in_flight_.pop_back();
  completion.completed(status);
}

}  // namespace troupe::transport
