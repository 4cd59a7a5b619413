#include "core/request.h"

#include <array>
#include <utility>

namespace headrace {
namespace {

constexpr std::array<std::string_view, kTriggers> kTriggerNames = {
    "none",     "invalid_input", "low_confidence", "error",
    "overload", "circuit_open",  "deadline",       "drift"};

}  // namespace

std::string_view trigger_name(Trigger trigger) {
  return kTriggerNames[static_cast<std::size_t>(trigger)];
}

std::optional<Trigger> trigger_named(std::string_view name) {
  for (std::size_t i = 1; i < kTriggers; ++i) {
    if (kTriggerNames[i] == name) return static_cast<Trigger>(i);
  }
  return std::nullopt;
}

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

void Request::begin_detour(Completion& via, std::shared_ptr<const void> owner) {
  detours_.push_back({completion_, std::move(owner), 0});
  completion_ = &via;
}

std::shared_ptr<const void> Request::end_detour() {
  completion_ = detours_.back().next;
  std::shared_ptr<const void> owner = std::move(detours_.back().owner);
  detours_.pop_back();
  return owner;
}

void Request::reopen() {
  response.clear();
  answered_ = false;
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
  arm.reset();
  fallback_from.reset();
  answered_by.reset();
  trigger = Trigger::kNone;
  confidence.reset();
  doubtful = false;
  ticket.clear();
  chain_depth = 0;
  interest_ = nullptr;
  input_of.clear();
  rows = 1;
  batch_rows = 0;
  times = {};
  response.clear();
  call_id = 0;
  call = nullptr;
  trace.reset();
  cancelled_.store(false, std::memory_order_relaxed);
  answered_ = false;
}

}  // namespace headrace
