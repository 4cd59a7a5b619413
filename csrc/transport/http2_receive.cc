// The part of Http2Connection that keeps to its receive budget (ConnectionLimits::max_received_bytes).
//
// As long as it is not trusted, messages in parts, and those that wait to be inflated, have less:
// untrusted_received_bytes.
//
// While as much as that is held, streams whose message is not whole get no more window, but for one: it
// can always complete, however large it is, and then the next one. What whole messages hold is their
// handlers' to give back; when they alone fill the budget the connection's window stays shut as well. So a
// connection holds at most its budget, one message, and what its streams' windows had already allowed.
#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <utility>

#include "transport/http2_connection.h"

namespace headrace {

// A crowd of attackers has less.
std::size_t Http2Connection::receive_budget() const {
  const ConnectionLimits& limits = options_.limits;
  const uint32_t less = limits.untrusted_received_bytes;
  if (less == 0 || limits.max_received_bytes == 0 || trusted()) return limits.max_received_bytes;
  return std::min(limits.max_received_bytes, less);
}

void Http2Connection::on_received(Stream& stream, std::size_t bytes) {
  if (full_) {
    withheld_ += bytes;
  } else {
    nghttp2_session_consume_connection(session_, bytes);
  }
  if (!stream.window_held_) open_window(stream, bytes);
}

void Http2Connection::open_window(Stream& stream, std::size_t bytes) {
  stream.withheld_ += bytes;
  if (!stream.handler_->awaits_body()) return give_window(stream);
  if (preferred_ == nullptr && !full_) preferred_ = &stream;
  if (preferred_ == &stream) give_window(stream);
}

void Http2Connection::give_window(Stream& stream) {
  if (stream.withheld_ == 0) return;
  nghttp2_session_consume_stream(session_, stream.id_, std::exchange(stream.withheld_, 0));
  stream.restart_body_clock();
}

void Http2Connection::settle_received() {
  const std::size_t budget = receive_budget();
  if (!over_ && held_ >= budget) {
    over_ = true;
    count(Limit::kReceivedBytes);
  }
  const bool over = held_ >= budget;
  std::size_t whole = 0;
  if (over) {
    for (const std::unique_ptr<Stream>& stream : streams_) {
      if (stream->handler_ != nullptr) whole += stream->handler_->whole_bytes();
    }
  }
  // Handlers may hold as much as those of trusted ones.
  full_ = over && (whole >= options_.limits.max_received_bytes || packed_ >= budget);
  if (!full_ && withheld_ != 0) {
    // They could not send: what they owe counts from now.
    for (const std::unique_ptr<Stream>& stream : streams_) stream->restart_body_clock();
    nghttp2_session_consume_connection(session_, std::exchange(withheld_, 0));
  }
  const auto awaits = [](const Stream& stream) {
    return stream.handler_ != nullptr && stream.handler_->awaits_body();
  };
  if (!over || (preferred_ != nullptr && !awaits(*preferred_))) preferred_ = nullptr;
  for (const std::unique_ptr<Stream>& stream : streams_) {
    if (stream->withheld_ == 0) continue;
    if (over && preferred_ == nullptr && !full_ && awaits(*stream)) preferred_ = stream.get();
    if (!over || stream.get() == preferred_ || !awaits(*stream)) give_window(*stream);
  }
  over_ = over;
  wake();
}

void Stream::charge(std::size_t bytes) {
  connection_->held_ += bytes;
  const std::size_t budget = connection_->receive_budget();
  if (connection_->held_ >= budget && budget != 0 && !connection_->over_) {
    connection_->settle_received();
  }
}

void Stream::discharge(std::size_t bytes) {
  connection_->held_ -= bytes;
  if (connection_->over_) connection_->settle_received();
}

bool Stream::may_inflate(std::size_t bytes) const {
  const std::size_t budget = connection_->receive_budget();
  return budget == 0 || connection_->inflated_ == 0 || connection_->held_ + bytes <= budget;
}

void Stream::count_inflated(std::ptrdiff_t more) {
  connection_->inflated_ += static_cast<std::size_t>(more);
}

void Stream::count_packed(std::ptrdiff_t more) {
  connection_->packed_ += static_cast<std::size_t>(more);
  if (connection_->over_) connection_->settle_received();
}

bool Stream::trusted() const { return connection_->trusted(); }

void Stream::message_complete() {
  if (connection_->over_) connection_->settle_received();
}

void Stream::consume(std::size_t bytes) {
  if (connection_->over_) {
    connection_->open_window(*this, bytes);
  } else {
    nghttp2_session_consume_stream(connection_->session_, id_, bytes);
  }
  connection_->wake();
}

void Stream::grow_window(std::size_t bytes) {
  const auto size = static_cast<int32_t>(std::min<std::size_t>(bytes, INT32_MAX));
  const int32_t current =
      nghttp2_session_get_stream_effective_local_window_size(connection_->session_, id_);
  if (current >= size) return;
  // What larger windows allow is held to the budget, too.
  const auto more = static_cast<std::size_t>(size - current);
  const std::size_t budget = connection_->receive_budget();
  if (budget != 0 && connection_->held_ + connection_->grown_ + more > budget) return;
  grown_ += more;
  connection_->grown_ += more;
  nghttp2_session_set_local_window_size(connection_->session_, NGHTTP2_FLAG_NONE, id_, size);
  connection_->wake();
}

}  // namespace headrace
