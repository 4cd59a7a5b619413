#include "frontend/riva_mailbox.h"

namespace headrace {

void RivaNews::tell(uint64_t call) {
  const std::lock_guard lock(mutex_);
  if (loop_ == nullptr) return;
  calls_.push_back(call);
  // Under the lock, so that the loop lives: it is one write at most, and often none.
  if (calls_.size() == 1) loop_->wake();
}

void RivaNews::take(std::vector<uint64_t>& calls) {
  const std::lock_guard lock(mutex_);
  calls.swap(calls_);
  calls_.clear();
}

void RivaNews::close() {
  const std::lock_guard lock(mutex_);
  loop_ = nullptr;
}

void RivaMailbox::tell() { news_->tell(call_); }

void RivaMailbox::on_result(SpeechResult result) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    if (result.is_final) {
      interim_.reset();
      finals_.push_back(std::move(result));
    } else {
      const bool waits = interim_.has_value();
      interim_ = std::move(result);
      if (waits) return;  // it is known that there is one
    }
  }
  tell();
}

void RivaMailbox::on_end(Status status) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = std::move(status);
  }
  tell();
}

void RivaMailbox::on_room() noexcept { tell(); }

std::optional<SpeechResult> RivaMailbox::next() {
  const std::lock_guard lock(mutex_);
  std::optional<SpeechResult> result;
  if (!finals_.empty()) {
    result = std::move(finals_.front());
    finals_.pop_front();
  } else {
    result.swap(interim_);
  }
  return result;
}

std::optional<Status> RivaMailbox::ended() {
  const std::lock_guard lock(mutex_);
  if (!finals_.empty() || interim_) return std::nullopt;
  return ended_;
}

}  // namespace headrace
