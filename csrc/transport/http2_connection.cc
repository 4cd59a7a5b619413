#include "transport/http2_connection.h"

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <utility>

namespace headrace {
namespace {

// At or above this a body piece is sent by reference; below, copying it beats another iovec.
constexpr std::size_t kByReferenceBytes = 8 * 1024;

nghttp2_nv to_nv(const HeaderField& field) {
  // The library copies unless told not to; literals need no copy.
  const uint8_t flags = field.constant
                            ? NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
                            : NGHTTP2_NV_FLAG_NONE;
  return {reinterpret_cast<uint8_t*>(const_cast<char*>(field.name.data())),
          reinterpret_cast<uint8_t*>(const_cast<char*>(field.value.data())), field.name.size(),
          field.value.size(), flags};
}

// The library's form of a header list; on the stack but for very long ones.
class NvList {
 public:
  explicit NvList(std::size_t size) : size_(size) {
    if (size > small_.size()) large_.resize(size);
  }
  nghttp2_nv* data() { return large_.empty() ? small_.data() : large_.data(); }
  std::size_t size() const { return size_; }

 private:
  const std::size_t size_;
  std::array<nghttp2_nv, 16> small_;
  std::vector<nghttp2_nv> large_;
};

NvList to_nv(std::span<const HeaderField> fields) {
  NvList list(fields.size());
  for (std::size_t i = 0; i < fields.size(); ++i) list.data()[i] = to_nv(fields[i]);
  return list;
}

std::string_view view_of(const uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace

// nghttp2's callbacks; user_data is the connection, stream user data the Stream.
struct Http2Callbacks {
  static Http2Connection& self(void* user_data) {
    return *static_cast<Http2Connection*>(user_data);
  }
  static Stream* find(nghttp2_session* session, int32_t id) {
    return static_cast<Stream*>(nghttp2_session_get_stream_user_data(session, id));
  }

  // The library ignores HEADERS with an identifier that the client has passed over: it cannot tell them
  // from trailers that crossed our RST_STREAM. RFC 9113 5.1.1 wants the connection ended.
  static int on_begin_frame(nghttp2_session* session, const nghttp2_frame_hd* hd, void* user) {
    if (hd->type != NGHTTP2_HEADERS) return 0;
    Http2Connection& connection = self(user);
    if (hd->stream_id > connection.last_stream_) {
      if (hd->stream_id - connection.last_stream_ > 2) {
        connection.skipped_first_ = connection.last_stream_ + 1;
        connection.skipped_last_ = hd->stream_id - 1;
      }
      connection.last_stream_ = hd->stream_id;
    } else if (hd->stream_id >= connection.skipped_first_ &&
               hd->stream_id <= connection.skipped_last_) {
      nghttp2_session_terminate_session(session, NGHTTP2_PROTOCOL_ERROR);
    }
    return 0;
  }

  static int on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    Http2Connection& connection = self(user);
    if (connection.open_streams_ >= connection.options_.limits.max_concurrent_streams) {
      // Not processed: the client may send it again (RFC 9113 5.1.2, 8.7).
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                NGHTTP2_REFUSED_STREAM);
      connection.count(Limit::kConcurrentStreams);
      connection.glitch();
      return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;  // its header list is not looked at
    }
    connection.resting_ = false;
    Stream* stream = connection.allocate_stream();
    stream->id_ = frame->hd.stream_id;
    nghttp2_session_set_stream_user_data(session, stream->id_, stream);
    stream->handler_ = connection.acceptor_.open(*stream);
    connection.guard_.on_stream_opened(connection.now_);
    return 0;
  }

  static int on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name,
                       size_t name_size, const uint8_t* value, size_t value_size, uint8_t,
                       void* user) {
    if (frame->hd.type != NGHTTP2_HEADERS) return 0;
    Stream* stream = find(session, frame->hd.stream_id);
    if (stream == nullptr) return 0;
    stream->header_bytes_ += name_size + value_size + 32;
    ++stream->header_fields_;
    const ConnectionLimits& limits = self(user).options_.limits;
    if (stream->header_bytes_ > limits.max_header_list_bytes ||
        stream->header_fields_ > limits.max_header_fields) {
      return self(user).on_header_over(*stream, name_size + value_size)
                 ? 0
                 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    // Request trailers (HCAT_HEADERS) carry nothing a gRPC server reads.
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    stream->handler_->on_header(view_of(name, name_size), view_of(value, value_size));
    return 0;
  }

  static int on_frame_recv(nghttp2_session* session, const nghttp2_frame* frame, void*) {
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
    Stream* stream = find(session, frame->hd.stream_id);
    if (stream == nullptr) return 0;
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
      stream->handler_->on_headers_end(stream->headers_too_large_);
      stream = find(session, frame->hd.stream_id);
      if (stream == nullptr) return 0;
    }
    if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0 && !stream->peer_ended_) {
      stream->peer_ended_ = true;
      stream->handler_->on_end();
    }
    return 0;
  }

  static int on_data_chunk(nghttp2_session* session, uint8_t, int32_t id, const uint8_t* data,
                           size_t size, void* user) {
    Stream* stream = find(session, id);
    if (stream == nullptr) {
      nghttp2_session_consume(session, id, size);
      return 0;
    }
    stream->received_ += size;
    stream->handler_->on_data({reinterpret_cast<const std::byte*>(data), size});
    // Messages are bounded one by one above (rpc) and together by the receive budget: within it the
    // windows are re-opened at once.
    if (self(user).over_) {
      self(user).on_received(*stream, size);
    } else if (!stream->window_held_) {
      nghttp2_session_consume(session, id, size);
    } else {
      nghttp2_session_consume_connection(session, size);
    }
    return 0;
  }

  static int on_stream_close(nghttp2_session* session, int32_t id, uint32_t error, void* user) {
    Stream* stream = find(session, id);
    if (stream == nullptr) return 0;
    nghttp2_session_set_stream_user_data(session, id, nullptr);
    self(user).close_stream(*stream, static_cast<Http2Error>(error));
    return 0;
  }

  static int on_frame_send(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    if (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) {
      self(user).guard_.on_sent(frame->hd.type == NGHTTP2_DATA);
    }
    // The library resets a stream for what its client sent. Not every such reset is told otherwise.
    if (frame->hd.type == NGHTTP2_RST_STREAM) {
      const uint32_t error = frame->rst_stream.error_code;
      const bool caused = error == NGHTTP2_PROTOCOL_ERROR || error == NGHTTP2_FLOW_CONTROL_ERROR ||
                          error == NGHTTP2_STREAM_CLOSED || error == NGHTTP2_FRAME_SIZE_ERROR ||
                          error == NGHTTP2_COMPRESSION_ERROR;
      if (caused) self(user).glitch();
    }
    // The response is complete but the client is still sending: tell it to stop (RFC 9113 8.1).
    // Not before the trailers left: nghttp2 drops queued frames of a stream that it resets.
    if ((frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) &&
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
      const Stream* stream = find(session, frame->hd.stream_id);
      if (stream != nullptr && !stream->peer_ended_) {
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                  NGHTTP2_NO_ERROR);
      }
    }
    return 0;
  }

  static int on_frame_not_send(nghttp2_session* session, const nghttp2_frame* frame, int,
                               void* user) {
    // Headers or trailers that the library will not send (a list over 64 KiB): without this the
    // client would wait for ever.
    if (frame->hd.type == NGHTTP2_HEADERS && find(session, frame->hd.stream_id) != nullptr) {
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                NGHTTP2_INTERNAL_ERROR);
      self(user).wake();
    }
    return 0;
  }

  // How much of the body goes into the next DATA frame.
  static ssize_t read_body(nghttp2_session*, int32_t, uint8_t* buffer, size_t size, uint32_t* flags,
                           nghttp2_data_source* source, void* user) {
    Stream& stream = *static_cast<Stream*>(source->ptr);
    if (stream.body_.empty() && !stream.trailers_ready_) {
      stream.deferred_ = true;
      return NGHTTP2_ERR_DEFERRED;
    }
    std::size_t n = 0;
    if (!stream.body_.empty()) {
      const std::size_t left = stream.body_.front().bytes.size() - stream.body_offset_;
      if (left >= kByReferenceBytes) {
        // send_data takes it from the queue.
        n = std::min(left, size);
        *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
        const bool last = n == left && stream.body_.size() == 1;
        if (last && stream.trailers_ready_) finish_body(self(user), stream, flags);
        return static_cast<ssize_t>(n);
      }
      // Small pieces share a frame.
      while (!stream.body_.empty() && n < size) {
        const BodyPiece& piece = stream.body_.front();
        const std::size_t rest = piece.bytes.size() - stream.body_offset_;
        if (n != 0 && rest >= kByReferenceBytes) break;
        const std::size_t take = std::min(rest, size - n);
        std::memcpy(buffer + n, piece.bytes.data() + stream.body_offset_, take);
        n += take;
        advance_body(self(user), stream, take);
      }
    }
    if (stream.body_.empty() && stream.trailers_ready_) finish_body(self(user), stream, flags);
    return static_cast<ssize_t>(n);
  }

  static int send_data(nghttp2_session*, nghttp2_frame* frame, const uint8_t* frame_header,
                       size_t size, nghttp2_data_source* source, void* user) {
    Http2Connection& connection = self(user);
    Stream& stream = *static_cast<Stream*>(source->ptr);
    (void)frame;  // we never pad
    connection.output_->append_copy({reinterpret_cast<const std::byte*>(frame_header), 9});
    const BodyPiece& piece = stream.body_.front();
    connection.output_->append_view(piece.owner, piece.bytes.subspan(stream.body_offset_, size));
    advance_body(connection, stream, size);
    // The library would go on to the next frame by itself; drain() has a bound to keep.
    return connection.output_->size() < connection.options_.max_unsent_bytes ? 0
                                                                             : NGHTTP2_ERR_PAUSE;
  }

 private:
  static void advance_body(Http2Connection& connection, Stream& stream, std::size_t n) {
    stream.body_sent_ = true;
    stream.body_offset_ += n;
    stream.unsent_ -= n;
    connection.unsent_ -= n;
    if (stream.answer_) connection.unsent_answers_ -= n;
    if (stream.body_offset_ == stream.body_.front().bytes.size()) {
      stream.body_.pop();
      stream.body_offset_ = 0;
    }
  }

  static void finish_body(Http2Connection& connection, Stream& stream, uint32_t* flags) {
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    connection.submit_trailers(stream);
  }
};

Http2Connection::Http2Connection(const Http2Options& options, StreamAcceptor& acceptor,
                                 std::string peer, TimePoint now, double jitter,
                                 SessionPages* pages)
    : options_(options),
      acceptor_(acceptor),
      peer_(std::move(peer)),
      now_(now),
      guard_(options.limits, now, jitter, options.max_frame_bytes),
      bodies_checked_(now) {
  // One table for all sessions; nghttp2 copies it into each.
  struct Library {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_option* option = nullptr;
    Library() {
      if (nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0) {
        throw std::bad_alloc();
      }
      nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks,
                                                            Http2Callbacks::on_begin_frame);
      nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks,
                                                              Http2Callbacks::on_begin_headers);
      nghttp2_session_callbacks_set_on_header_callback(callbacks, Http2Callbacks::on_header);
      nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks,
                                                           Http2Callbacks::on_frame_recv);
      nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks,
                                                                Http2Callbacks::on_data_chunk);
      nghttp2_session_callbacks_set_on_stream_close_callback(callbacks,
                                                             Http2Callbacks::on_stream_close);
      nghttp2_session_callbacks_set_on_frame_send_callback(callbacks,
                                                           Http2Callbacks::on_frame_send);
      nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks,
                                                               Http2Callbacks::on_frame_not_send);
      nghttp2_session_callbacks_set_send_data_callback(callbacks, Http2Callbacks::send_data);
      nghttp2_option_set_no_auto_window_update(option, 1);
      // Closed streams are only kept for RFC 7540 priorities, which nothing here uses.
      nghttp2_option_set_no_closed_streams(option, 1);
      // The guard has these limits, adjustable and with a reason that the client is told.
      nghttp2_option_set_stream_reset_rate_limit(option, UINT32_MAX, UINT32_MAX);
      nghttp2_option_set_max_continuations(option, SIZE_MAX);
      nghttp2_option_set_max_outbound_ack(option, SIZE_MAX);
    }
    ~Library() {
      nghttp2_session_callbacks_del(callbacks);
      nghttp2_option_del(option);
    }
  };
  static const Library library;
  if (pages != nullptr) memory_ = std::make_unique<SessionMemory>(*pages);
  if (nghttp2_session_server_new3(&session_, library.callbacks, this, library.option,
                                  memory_ ? memory_->allocator() : nullptr) != 0) {
    throw std::bad_alloc();
  }
  const std::array<nghttp2_settings_entry, 4> settings = {{
      // drain() writes the true number: the library would end the whole connection for one stream too
      // many, on_begin_headers refuses that one.
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, NGHTTP2_MAX_WINDOW_SIZE},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, options_.stream_window_bytes},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, options_.limits.max_header_list_bytes},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, options_.max_frame_bytes},
  }};
  nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings.data(), settings.size());
  nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0,
                                        static_cast<int32_t>(options_.connection_window_bytes));
}

Http2Connection::~Http2Connection() {
  // Handlers hear of the end before the session goes; they may not send any more.
  on_output = nullptr;
  for (const std::unique_ptr<Stream>& stream : streams_) {
    if (stream->handler_ != nullptr) {
      nghttp2_session_set_stream_user_data(session_, stream->id_, nullptr);
      close_stream(*stream, Http2Error::kCancel);
    }
  }
  nghttp2_session_del(session_);
}

Stream* Http2Connection::allocate_stream() {
  ++open_streams_;
  if (free_.empty()) {
    streams_.push_back(std::make_unique<Stream>());
    streams_.back()->connection_ = this;
    return streams_.back().get();
  }
  Stream* stream = free_.back();
  free_.pop_back();
  return stream;
}

void Http2Connection::close_stream(Stream& stream, Http2Error error) {
  StreamHandler* handler = stream.handler_;
  stream.handler_ = nullptr;
  handler->on_closed(error);
  guard_.on_stream_closed(error == Http2Error::kNoError && stream.peer_ended_, now_);
  stream.header_bytes_ = stream.header_fields_ = 0;
  stream.received_ = stream.received_at_check_ = stream.unsent_at_check_ = 0;
  stream.awaited_at_check_ = stream.body_sent_ = false;
  stream.withheld_ = 0;
  grown_ -= std::exchange(stream.grown_, 0);
  stream.unsent_since_ = stream.shut_since_ = kNever;
  stream.headers_too_large_ = stream.peer_ended_ = stream.deferred_ = false;
  stream.trailers_ready_ = stream.window_held_ = false;
  if (stream.wants_writable_) {
    stream.wants_writable_ = false;
    std::erase(waiting_, &stream);
  }
  if (std::exchange(stream.waits_to_begin_, false)) std::erase(beginners_, &stream);
  unsent_ -= stream.unsent_;
  if (std::exchange(stream.answer_, false)) unsent_answers_ -= stream.unsent_;
  stream.body_.clear();
  stream.body_offset_ = stream.unsent_ = 0;
  stream.trailers_.clear();
  free_.push_back(&stream);
  --open_streams_;
  if (over_) settle_received();
}

bool Http2Connection::feed(std::span<const std::byte> bytes) {
  if (broken_) return false;
  if (const std::optional<Limit> limit = guard_.on_bytes(bytes, now_)) {
    exceed(*limit);
    return false;
  }
  feeding_ = true;
  const ssize_t consumed = nghttp2_session_mem_recv(
      session_, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  feeding_ = false;
  if (consumed < 0) broken_ = true;
  if (!broken_ && guard_.exceeded()) exceed(Limit::kGlitches);
  if (!broken_ && nghttp2_session_get_outbound_queue_size(session_) >
                      options_.limits.max_queued_frames + open_streams_) {
    exceed(Limit::kQueuedFrames);
  }
  return !broken_;
}

bool Http2Connection::drain(OutputQueue& output) {
  output_ = &output;
  if (!settings_sent_) send_settings(output);
  // What was found out between two feeds: the answers that were made leave first.
  if (guard_.exceeded()) exceed(Limit::kGlitches);
  while (output.size() < options_.max_unsent_bytes) {
    const uint8_t* data = nullptr;
    const ssize_t n = nghttp2_session_mem_send(session_, &data);
    if (n < 0) broken_ = true;
    output_ended_ = n == 0;
    if (n <= 0) break;
    output.append_copy({reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(n)});
  }
  output_ = nullptr;
  if (!waiting_.empty()) tell_writable();
  if (!beginners_.empty()) begin_requests();
  return !broken_;
}

void Http2Connection::send_settings(OutputQueue& output) {
  // The session's first frame, as submitted in the constructor, MAX_CONCURRENT_STREAMS first.
  constexpr std::size_t kValueAt = 9 + 2;
  const uint8_t* data = nullptr;
  const ssize_t n = nghttp2_session_mem_send(session_, &data);
  if (n <= static_cast<ssize_t>(kValueAt + 4) || data[3] != NGHTTP2_SETTINGS) {
    broken_ = true;
    return;
  }
  settings_sent_ = true;
  std::vector<std::byte> frame(reinterpret_cast<const std::byte*>(data),
                               reinterpret_cast<const std::byte*>(data) + n);
  for (std::size_t i = 0; i < 4; ++i) {
    frame[kValueAt + i] =
        static_cast<std::byte>(options_.limits.max_concurrent_streams >> (8 * (3 - i)) & 0xff);
  }
  output.append_copy(frame);
}

bool Http2Connection::may_write(const Stream& stream, std::size_t share) const {
  return stream.unsent_ < options_.max_stream_queued_bytes / share &&
         unsent_ < options_.max_connection_queued_bytes / share;
}

void Http2Connection::tell_writable() {
  // Those that are told may wait again at once: they get their next turn in the next drain().
  std::vector<Stream*> ready;
  std::erase_if(waiting_, [&](Stream* stream) {
    if (!may_write(*stream, 2)) return false;
    ready.push_back(stream);
    return true;
  });
  for (Stream* stream : ready) stream->wants_writable_ = false;
  // No stream closes here: that is only in the library's callbacks. The first may fill the connection's
  // share again; the others then ask writable() and wait anew.
  for (Stream* stream : ready) stream->handler_->on_writable();
}

// As tell_writable(): none closes here. Their answers may come at once, and then fill the share again.
void Http2Connection::begin_requests() {
  std::size_t begun = 0;
  while (begun < beginners_.size() && unsent_answers_ < options_.max_unsent_answers) {
    Stream* stream = beginners_[begun++];
    stream->waits_to_begin_ = false;
    stream->handler_->on_writable();
  }
  beginners_.erase(beginners_.begin(), beginners_.begin() + static_cast<std::ptrdiff_t>(begun));
}

bool Http2Connection::finished() const {
  return nghttp2_session_want_read(session_) == 0 && nghttp2_session_want_write(session_) == 0;
}

void Http2Connection::begin_shutdown() {
  nghttp2_submit_shutdown_notice(session_);
  wake();
}

void Http2Connection::finish_shutdown() {
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE,
                        nghttp2_session_get_last_proc_stream_id(session_), NGHTTP2_NO_ERROR,
                        nullptr, 0);
  wake();
}

void Http2Connection::submit_trailers(Stream& stream) {
  NvList fields(stream.trailers_.size());
  for (std::size_t i = 0; i < fields.size(); ++i) {
    fields.data()[i] = to_nv({stream.trailers_[i].first, stream.trailers_[i].second});
  }
  nghttp2_submit_trailer(session_, stream.id_, fields.data(), fields.size());
}

const std::string& Stream::peer() const { return connection_->peer(); }

const std::shared_ptr<const AuthContext>& Stream::auth_context() const {
  return connection_->auth_context();
}

void Stream::send_headers(std::span<const HeaderField> headers) {
  NvList fields = to_nv(headers);
  nghttp2_data_provider provider;
  provider.source.ptr = this;
  provider.read_callback = Http2Callbacks::read_body;
  nghttp2_submit_response(connection_->session_, id_, fields.data(), fields.size(), &provider);
  connection_->wake();
}

void Stream::send_body(BodyPiece piece) {
  if (piece.bytes.empty()) return;
  unsent_ += piece.bytes.size();
  connection_->unsent_ += piece.bytes.size();
  body_.push(std::move(piece));
  if (deferred_) {
    deferred_ = false;
    nghttp2_session_resume_data(connection_->session_, id_);
  }
  connection_->wake();
}

void Stream::send_trailers(std::span<const HeaderField> trailers) {
  trailers_.clear();
  for (const HeaderField& field : trailers) trailers_.emplace_back(field.name, field.value);
  trailers_ready_ = true;
  if (deferred_) {
    deferred_ = false;
    nghttp2_session_resume_data(connection_->session_, id_);
  }
  connection_->wake();
}

void Stream::send_headers_only(std::span<const HeaderField> headers) {
  NvList fields = to_nv(headers);
  nghttp2_submit_response(connection_->session_, id_, fields.data(), fields.size(), nullptr);
  connection_->wake();
}

bool Stream::writable() {
  if (connection_->may_write(*this, 1)) return true;
  if (!wants_writable_) {
    wants_writable_ = true;
    connection_->waiting_.push_back(this);
  }
  return false;
}

void Stream::drop_body() {
  connection_->unsent_ -= unsent_;
  if (answer_) connection_->unsent_answers_ -= unsent_;
  unsent_ = body_offset_ = 0;
  body_.clear();
}

void Stream::body_is_answer() {
  answer_ = true;
  connection_->unsent_answers_ += unsent_;
}

bool Stream::may_begin() {
  if (connection_->unsent_answers_ < connection_->options_.max_unsent_answers) return true;
  waits_to_begin_ = true;
  connection_->beginners_.push_back(this);
  return false;
}

void Stream::reset(Http2Error error) {
  nghttp2_submit_rst_stream(connection_->session_, NGHTTP2_FLAG_NONE, id_,
                            static_cast<uint32_t>(error));
  connection_->wake();
}

}  // namespace headrace
