#include "routing/fallback.h"

#include <algorithm>
#include <utility>

namespace headrace {
namespace {

bool worth_another_try(const Request& request) {
  const StatusCode code = request.response.status.code();
  return code != StatusCode::kOk && code != StatusCode::kCancelled &&
         code != StatusCode::kDeadlineExceeded && !request.cancelled();
}

}  // namespace

std::shared_ptr<Fallback> Fallback::make(std::vector<std::shared_ptr<Servable>> chain,
                                         std::string name) {
  return std::shared_ptr<Fallback>(new Fallback(std::move(chain), std::move(name)));
}

bool Fallback::ready() const noexcept {
  return std::any_of(chain_.begin(), chain_.end(),
                     [](const std::shared_ptr<Servable>& servable) { return servable->ready(); });
}

void Fallback::submit(RequestPtr request) {
  request->begin_detour(*this, shared_from_this());
  chain_.front()->submit(std::move(request));
}

void Fallback::submit_together(std::span<RequestPtr> requests) {
  for (RequestPtr& request : requests) request->begin_detour(*this, shared_from_this());
  chain_.front()->submit_together(requests);
}

void Fallback::complete(RequestPtr request) noexcept {
  Detour& detour = request->detour();
  if (detour.step + 1 < chain_.size() && worth_another_try(*request)) {
    Servable& next = *chain_[++detour.step];
    request->fallback_from = name_;
    request->reopen();
    next.submit(std::move(request));
    return;
  }
  // This object may end with the detour.
  const std::shared_ptr<const void> self = request->end_detour();
  answer(std::move(request));
}

}  // namespace headrace
