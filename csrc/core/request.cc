#include "core/request.h"

#include <utility>

namespace headrace {

void Completion::release(Request* request) noexcept { delete request; }

void ReleaseRequest::operator()(Request* request) const noexcept {
  if (request->answered_) {
    request->completion_->release(request);
    return;
  }
  answer(RequestPtr(request), Status::internal("the request was dropped by the server"));
}

void answer(RequestPtr request) noexcept {
  request->answered_ = true;
  Completion* completion = request->completion_;
  completion->complete(std::move(request));
}

void answer(RequestPtr request, Status status) noexcept {
  request->response.outputs.clear();
  request->response.status = std::move(status);
  answer(std::move(request));
}

void Request::reset() {
  message.reset();
  converted.reset();
  model_name = model_version = id = {};
  inputs.clear();
  outputs.clear();
  parameters.clear();
  priority = 0;
  timeout.reset();
  deadline = kNever;
  spec.reset();
  input_of.clear();
  rows = 1;
  times = {};
  response.clear();
  call_id = 0;
  call = nullptr;
  cancelled_.store(false, std::memory_order_relaxed);
  answered_ = false;
}

}  // namespace headrace
