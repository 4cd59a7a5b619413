// The part of Call and CallSet that inflates compressed messages within bounds: of a turn's time, of
// memory, and of what one client may have inflated for nothing.
#include <algorithm>
#include <cstddef>
#include <utility>

#include "rpc/call.h"

namespace headrace {
namespace {

// A message that inflates to more than this must not have been smaller than a part of it: a megabyte
// may claim a gigabyte otherwise (deflate's limit is 1032 to 1), which an I/O thread would inflate.
constexpr std::size_t kFreelyInflated = std::size_t{16} << 20;
constexpr std::size_t kMostInflation = 32;
// To find something out after so many bytes took an I/O thread milliseconds.
constexpr std::size_t kCostly = std::size_t{1} << 20;
// So many messages that inflate to too much end the connection.
constexpr uint64_t kBombGlitches = 2000;           // five
constexpr uint64_t kUntrustedBombGlitches = 5001;  // two that were costly
// No client that means well sends what turns out to be broken at a late time.
constexpr uint64_t kBrokenLateGlitches = 5001;            // two end it
constexpr uint64_t kUntrustedBrokenLateGlitches = 10001;  // one
// What inflates to more than this and kMostInflation times its size costs a glitch for so many bytes
// beyond: in a stream, which may never end; and in a unary call, unless it ends well.
constexpr std::size_t kNotedInflation = std::size_t{1} << 20;
constexpr std::size_t kStreamBytesPerGlitch = 64 * 1024;
constexpr std::size_t kFailedBytesPerGlitch = 8 * 1024;
constexpr std::size_t kUntrustedFailedBytesPerGlitch = 4 * 1024;
// Of messages that are inflated as they come, a turn of the loop.
constexpr std::size_t kInflatedPerTurn = 256 * 1024;

}  // namespace

bool Call::inflate() {
  const std::size_t limit = std::min(method_->max_message_bytes,
                                     std::max(kFreelyInflated, message_.size() * kMostInflation));
  inflation_ = std::make_unique<Inflation>(encoding_, message_.span(), limit, stream_->trusted());
  const std::size_t least = inflation_->measured() ? inflation_->size() : Inflation::kPieceBytes;
  Inflating now = Inflating::kMore;
  if (set_->inflates_now(least)) {
    // A piece, where the size is not known.
    do {
      now = inflate_piece();
    } while (now == Inflating::kMore &&
             (set_->loop_ == nullptr || (inflation_->measured() && inflation_->size() <= least)));
  }
  if (now == Inflating::kDone || now == Inflating::kEnded) return now == Inflating::kDone;
  inflation_->rest();
  inflation_queued_ = true;
  stream_->count_packed(static_cast<std::ptrdiff_t>(message_.size()));
  set_->inflate_later(*this);
  return false;
}

Call::Inflating Call::inflate_piece() {
  Inflation& inflation = *inflation_;
  if (inflation.measured() && !inflation.allocated()) {
    const std::size_t size = inflation.size();
    if (set_->loop_ != nullptr && !stream_->may_inflate(size)) return Inflating::kParked;
    if (!reserve(size)) return Inflating::kEnded;
    inflated_ += size;
    stream_->count_inflated(static_cast<std::ptrdiff_t>(size));
    inflation.allocate();
  }
  if (!inflation.done()) {
    const Status status = inflation.run();
    if (!status.ok()) {
      const bool costly = inflation.work() > kCostly;
      stream_->count_glitches(
          status.code() == StatusCode::kResourceExhausted
              ? (costly && !stream_->trusted() ? kUntrustedBombGlitches : kBombGlitches)
          : !costly            ? 1
          : stream_->trusted() ? kBrokenLateGlitches
                               : kUntrustedBrokenLateGlitches);
      abort(status);
      return Inflating::kEnded;
    }
  }
  if (!inflation.done()) return Inflating::kMore;
  inflated();
  return Inflating::kDone;
}

void Call::unqueue() {
  if (!std::exchange(inflation_queued_, false)) return;
  stream_->count_packed(-static_cast<std::ptrdiff_t>(message_.size()));
}

void Call::inflated() {
  const std::size_t packed = message_.size();
  unqueue();
  message_ = inflation_->take();
  inflation_.reset();
  compressed_ = false;
  const std::size_t noted = std::max(kNotedInflation, packed * kMostInflation);
  if (message_.size() > noted) {
    const std::size_t beyond = message_.size() - noted;
    if (streams()) {
      stream_->count_glitches(beyond / kStreamBytesPerGlitch);
    } else {
      glitches_ =
          beyond / (stream_->trusted() ? kFailedBytesPerGlitch : kUntrustedFailedBytesPerGlitch);
    }
  }
  give_back(packed);
}

void Call::give_back_inflated(std::size_t bytes) {
  bytes = std::min(bytes, inflated_);
  inflated_ -= bytes;
  stream_->count_inflated(-static_cast<std::ptrdiff_t>(bytes));
}

void Call::resume() {
  if (!streams()) return hand_over();
  delivering_ = true;
  hand_over();
  delivering_ = false;
  if (state_ == State::kHandled) deliver_held();
}

bool CallSet::inflates_now(std::size_t bytes) {
  if (loop_ == nullptr) return true;
  if (turn_ != now_()) {
    turn_ = now_();
    inflated_in_turn_ = 0;
  }
  if (bytes > kInflatedPerTurn - inflated_in_turn_) return false;
  inflated_in_turn_ += bytes;
  return true;
}

void CallSet::inflate_later(Call& call) {
  const bool trusted = call.stream_->trusted();
  inflating_[trusted].push(call.id());
  request_turn(trusted);
}

void CallSet::request_turn(bool trusted) {
  if (std::exchange(turn_requested_[trusted], true)) return;
  if (trusted) {
    loop_->at_turn_end(*this);
  } else {
    loop_->at_untrusted_turn(*this);
  }
}

void CallSet::unpark() {
  for (const uint64_t id : std::exchange(parked_, {})) {
    if (Call* call = find_any(id)) inflate_later(*call);
  }
}

// One message after the other: what is being inflated is one, however many wait.
bool CallSet::inflate_some(bool trusted) {
  Fifo<uint64_t>& queue = inflating_[trusted];
  if (queue.empty()) return false;
  const uint64_t id = queue.front();
  Call* call = find_any(id);
  if (call == nullptr) {  // ended meanwhile
    queue.pop();
    return true;
  }
  const void* const connection = call->stream_->connection();
  switch (call->inflate_piece()) {
    case Call::Inflating::kMore:
      // One that has lost trust makes way.
      if (!trusted || call->stream_->trusted()) return true;
      queue.pop();
      inflate_later(*call);
      return true;
    case Call::Inflating::kDone:
      queue.pop();
      call->resume();
      return true;
    case Call::Inflating::kParked:
      queue.pop();
      call->inflation_->rest();
      parked_.push_back(id);
      return true;
    case Call::Inflating::kEnded:
      queue.pop();
      inflate_next(connection, queue);
      return true;
  }
  return false;
}

void CallSet::inflate_next(const void* connection, Fifo<uint64_t>& queue) {
  const auto found = std::find_if(queue.begin(), queue.end(), [&](uint64_t id) {
    const Call* call = find_any(id);
    return call != nullptr && call->stream_->connection() == connection;
  });
  if (found != queue.end()) std::rotate(queue.begin(), found, found + 1);
}

void CallSet::on_turn_end() {
  turn_requested_[true] = false;
  const TimePoint end = Clock::now() + UntrustedShare::kSlice;
  while (inflate_some(true) && Clock::now() < end) {
  }
  if (!inflating_[true].empty()) request_turn(true);
}

void CallSet::on_untrusted_turn() {
  turn_requested_[false] = false;
  while (inflate_some(false) && !loop_->slice_over()) {
  }
  if (!inflating_[false].empty()) request_turn(false);
}

}  // namespace headrace
