// The part of Http2Connection that does what ConnectionGuard decides.
#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "transport/http2_connection.h"

namespace headrace {
namespace {

// A header list over its limit costs its sender: a glitch for so many bytes beyond it ...
constexpr std::size_t kHeaderBytesPerGlitch = 64;
// ... and so many when it goes on to this many times the limit. A list that refers again and again to one
// large field of the HPACK table does that with a byte each: four of them are one too many.
constexpr uint64_t kHeaderBombGlitches = 2500;
constexpr std::size_t kHeaderListFactor = 4;

bool blames_client(Limit limit) {
  return limit != Limit::kWriteTime && limit != Limit::kKeepalive && limit != Limit::kAgeGrace;
}

}  // namespace

void Http2Connection::exceed(Limit limit) {
  if (broken_) return;
  broken_ = true;
  count(limit);
  const std::string_view name = name_of(limit);
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE,
                        nghttp2_session_get_last_proc_stream_id(session_),
                        blames_client(limit) ? NGHTTP2_ENHANCE_YOUR_CALM : NGHTTP2_NO_ERROR,
                        reinterpret_cast<const uint8_t*>(name.data()), name.size());
}

bool Http2Connection::on_header_over(Stream& stream, std::size_t bytes) {
  if (!stream.headers_too_large_) {
    stream.headers_too_large_ = true;
    count(Limit::kHeaderList);
  }
  const ConnectionLimits& limits = options_.limits;
  if (stream.header_bytes_ <= kHeaderListFactor * limits.max_header_list_bytes) {
    guard_.glitch(1 + bytes / kHeaderBytesPerGlitch, now_);
    return true;
  }
  guard_.glitch(kHeaderBombGlitches, now_);
  nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream.id_, NGHTTP2_ENHANCE_YOUR_CALM);
  return false;
}

bool Http2Connection::advance(TimePoint now) {
  now_ = now;
  if (now < guard_.next_step()) return !broken_;
  for (;;) {
    if (broken_) return false;
    const ConnectionGuard::Step step = guard_.step(now);
    if (step.action == ConnectionGuard::Action::kNone) return true;
    if (!take(step)) return false;
  }
}

bool Http2Connection::take(const ConnectionGuard::Step& step) {
  switch (step.action) {
    case ConnectionGuard::Action::kNone:
      break;
    case ConnectionGuard::Action::kPing:
      nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, nullptr);
      resting_ = open_streams_ == 0;
      wake();
      break;
    case ConnectionGuard::Action::kCheckStreams:
      check_streams();
      break;
    case ConnectionGuard::Action::kBeginShutdown:
      count(step.limit);
      begin_shutdown();
      break;
    case ConnectionGuard::Action::kFinishShutdown:
      finish_shutdown();
      break;
    case ConnectionGuard::Action::kClose:
      exceed(step.limit);
      break;
  }
  return !broken_;
}

// Every `body_timeout` or less: slow bodies and shut windows. A stream is looked at twice before it is
// blamed, so that one which has just begun is not.
void Http2Connection::check_streams() {
  const Milliseconds interval = options_.limits.body_timeout;
  const bool bodies = interval != Milliseconds(0) && now_ - bodies_checked_ >= interval;
  if (bodies) bodies_checked_ = now_;
  std::vector<Stream*> stalled;
  Limit limit = Limit::kBodyTime;
  for (const std::unique_ptr<Stream>& stream : streams_) {
    if (stream->handler_ == nullptr) continue;
    const bool body = bodies && body_stalls(*stream);
    const bool window = first_window_stalls(*stream) || window_stalls(*stream);
    if (!body && !window) continue;
    limit = body ? Limit::kBodyTime : Limit::kWindowTime;
    stalled.push_back(stream.get());
  }
  if (stalled.empty()) return;
  if (stalled.size() == open_streams_) return exceed(limit);
  for (Stream* stream : stalled) {
    count(limit);
    stream->reset(Http2Error::kEnhanceYourCalm);
  }
}

bool Http2Connection::body_stalls(Stream& stream) {
  const ConnectionLimits& limits = options_.limits;
  const bool owes = !stream.peer_ended_ && stream.handler_->awaits_body();
  const bool owed = std::exchange(stream.awaited_at_check_, owes);
  const uint64_t came =
      stream.received_ - std::exchange(stream.received_at_check_, stream.received_);
  if (!owes || !owed) return false;
  const auto least =
      static_cast<uint64_t>(limits.body_timeout.count()) * limits.body_min_rate / 1000;
  if (came >= std::max<uint64_t>(1, least)) return false;
  // Held up by us?
  return nghttp2_session_get_stream_local_window_size(session_, stream.id_) > 0 &&
         nghttp2_session_get_local_window_size(session_) > 0;
}

// Seen at two looks at least, `first_window_timeout` apart.
bool Http2Connection::first_window_stalls(Stream& stream) {
  const Milliseconds timeout = options_.limits.first_window_timeout;
  const bool shut = timeout != Milliseconds(0) && stream.unsent_ != 0 && !stream.body_sent_ &&
                    nghttp2_session_get_stream_remote_window_size(session_, stream.id_) <= 0;
  if (!shut) {
    stream.shut_since_ = kNever;
    return false;
  }
  if (stream.shut_since_ == kNever) stream.shut_since_ = now_;
  return now_ - stream.shut_since_ >= timeout;
}

bool Http2Connection::window_stalls(Stream& stream) {
  const bool stands =
      stream.trailers_ready_ && stream.unsent_ != 0 && stream.unsent_ == stream.unsent_at_check_;
  stream.unsent_at_check_ = stream.unsent_;
  if (!stands) {
    stream.unsent_since_ = kNever;
    return false;
  }
  if (stream.unsent_since_ == kNever) stream.unsent_since_ = now_;
  const Milliseconds timeout = options_.limits.window_timeout;
  return timeout != Milliseconds(0) && now_ - stream.unsent_since_ >= timeout;
}

void Stream::count_glitches(uint64_t count) { connection_->glitch(count); }

}  // namespace headrace
