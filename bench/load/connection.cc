#include "connection.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

namespace loadgen {
namespace {

constexpr std::size_t kWriteBlock = 64 * 1024;
constexpr int32_t kWindow = 64 * 1024 * 1024;  // flow control must not shape the measurement

nghttp2_nv header(std::string_view name, std::string_view value) {
  return {reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
          reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(),
          NGHTTP2_NV_FLAG_NONE};
}

uint32_t big_endian(const char* bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace

int64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

Connection::Connection(const Options& options, Caller& caller)
    : options_(options), caller_(caller) {
  const auto size = static_cast<uint32_t>(options_.message.size());
  body_.push_back('\0');
  for (int shift = 24; shift >= 0; shift -= 8) body_.push_back(static_cast<char>(size >> shift));
  body_ += options_.message;

  headers_ = {header(":method", "POST"),
              header(":scheme", options_.tls == nullptr ? "http" : "https"),
              header(":path", options_.path),
              header(":authority", options_.authority),
              header("te", "trailers"),
              header("content-type", "application/grpc"),
              header("user-agent", "headrace-loadgen/1")};
  if (options_.deadline_s > 0) {
    timeout_ = std::to_string(static_cast<int64_t>(options_.deadline_s * 1e6)) + "u";
    headers_.push_back(header("grpc-timeout", timeout_));
  }
  for (const auto& [name, value] : options_.metadata) headers_.push_back(header(name, value));
}

Connection::~Connection() { close(); }

bool Connection::open(std::string& why) {
  close();
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(options_.host.c_str(), options_.port.c_str(), &hints, &found);
  if (code != 0) {
    why = options_.host + ":" + options_.port + ": " + gai_strerror(code);
    return false;
  }
  int error = 0;
  for (addrinfo* at = found; at != nullptr && fd_ < 0; at = at->ai_next) {
    fd_ = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
    if (fd_ < 0) {
      error = errno;
    } else if (connect(fd_, at->ai_addr, at->ai_addrlen) != 0) {
      error = errno;
      ::close(std::exchange(fd_, -1));
    }
  }
  freeaddrinfo(found);
  if (fd_ < 0) {
    why = options_.host + ":" + options_.port + ": " + std::strerror(error);
    return false;
  }
  const int one = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (options_.tls != nullptr) {
    ssl_ = connect_tls(*options_.tls, fd_, why);
    if (ssl_ == nullptr) {
      ::close(std::exchange(fd_, -1));
      return false;
    }
  }
  fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) | O_NONBLOCK);

  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
  nghttp2_session_client_new(&session_, callbacks, this);
  nghttp2_session_callbacks_del(callbacks);

  const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                             {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kWindow}};
  nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, 2);
  nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0, kWindow);
  return true;
}

void Connection::submit(int64_t start_ns) {
  if (free_.empty()) {
    calls_.push_back(std::make_unique<Call>());
    free_.push_back(calls_.back().get());
  }
  Call* call = free_.back();
  free_.pop_back();
  call->start_ns = start_ns;
  call->sent = 0;
  call->http_status = 0;
  call->grpc_status = -1;
  call->message.clear();
  call->detail.clear();
  call->active = true;
  call->number = next_number_++;
  ++in_flight_;
  nghttp2_data_provider body{};
  body.read_callback = read_body;
  const int32_t stream = session_ == nullptr
                             ? NGHTTP2_ERR_INVALID_STATE
                             : nghttp2_submit_request(session_, nullptr, headers_.data(),
                                                      headers_.size(), &body, call);
  call->stream = stream;
  if (stream >= 0 && options_.deadline_s > 0) {
    const auto time = static_cast<int64_t>(options_.deadline_s * 1e9);
    deadlines_.push_back({now_ns() + time, call, call->number});
  }
  if (stream < 0) {
    call->detail = nghttp2_strerror(stream);
    finish(*call, NGHTTP2_REFUSED_STREAM);
  }
}

ssize_t Connection::read_body(nghttp2_session* session, int32_t stream, uint8_t* out, size_t room,
                              uint32_t* flags, nghttp2_data_source*, void* self) {
  const std::string& body = static_cast<Connection*>(self)->body_;
  auto* call = static_cast<Call*>(nghttp2_session_get_stream_user_data(session, stream));
  if (call == nullptr) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;  // reset at its deadline
  const std::size_t size = std::min(room, body.size() - call->sent);
  std::memcpy(out, body.data() + call->sent, size);
  call->sent += size;
  if (call->sent == body.size()) *flags |= NGHTTP2_DATA_FLAG_EOF;
  return static_cast<ssize_t>(size);
}

int Connection::on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name,
                          size_t name_size, const uint8_t* value, size_t value_size, uint8_t,
                          void*) {
  auto* call =
      static_cast<Call*>(nghttp2_session_get_stream_user_data(session, frame->hd.stream_id));
  if (call == nullptr) return 0;
  const std::string_view key(reinterpret_cast<const char*>(name), name_size);
  const std::string_view text(reinterpret_cast<const char*>(value), value_size);
  if (key == ":status") {
    call->http_status = std::atoi(std::string(text).c_str());
  } else if (key == "grpc-status") {
    call->grpc_status = std::atoi(std::string(text).c_str());
  } else if (key == "grpc-message") {
    call->detail = text;
  }
  return 0;
}

int Connection::on_data(nghttp2_session* session, uint8_t, int32_t stream, const uint8_t* data,
                        size_t size, void*) {
  auto* call = static_cast<Call*>(nghttp2_session_get_stream_user_data(session, stream));
  if (call != nullptr) call->message.append(reinterpret_cast<const char*>(data), size);
  return 0;
}

int64_t Connection::expire(int64_t now) {
  while (!deadlines_.empty()) {
    const Deadline next = deadlines_.front();
    const bool waits = next.call->active && next.call->number == next.number;
    if (waits && next.at_ns > now) return next.at_ns;
    deadlines_.pop_front();
    if (!waits) continue;
    if (session_ != nullptr) {
      nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, next.call->stream, NGHTTP2_CANCEL);
      // What still comes for it is nobody's.
      nghttp2_session_set_stream_user_data(session_, next.call->stream, nullptr);
    }
    next.call->grpc_status = -2;
    finish(*next.call, NGHTTP2_CANCEL);
  }
  return INT64_MAX;
}

int Connection::on_close(nghttp2_session* session, int32_t stream, uint32_t error_code,
                         void* self) {
  auto* call = static_cast<Call*>(nghttp2_session_get_stream_user_data(session, stream));
  if (call != nullptr && call->active) static_cast<Connection*>(self)->finish(*call, error_code);
  return 0;
}

void Connection::finish(Call& call, uint32_t error_code) {
  // The call is given back first: answered() may start the next one, and reuse this object.
  const int64_t start_ns = call.start_ns;
  const std::string error = judge(call, error_code);
  const std::string detail = error.empty() ? std::string() : call.detail;
  call.active = false;
  --in_flight_;
  free_.push_back(&call);
  caller_.answered(*this, start_ns, error, detail);
}

std::string Connection::judge(const Call& call, uint32_t error_code) const {
  if (call.grpc_status == -2) return "deadline";
  if (call.grpc_status < 0) {
    if (error_code != NGHTTP2_NO_ERROR) {
      return std::string("stream reset ") + nghttp2_http2_strerror(error_code);
    }
    if (call.http_status != 200) return "http status " + std::to_string(call.http_status);
    return "no grpc-status";
  }
  if (call.grpc_status != 0) return "grpc-status " + std::to_string(call.grpc_status);
  const std::string& bytes = call.message;
  if (bytes.size() < 5 || bytes[0] != 0 || big_endian(bytes.data() + 1) != bytes.size() - 5) {
    return "bad gRPC framing";
  }
  const std::string_view message = std::string_view(bytes).substr(5);
  if (options_.check_equal && message != options_.expected) return "wrong answer";
  if (options_.check_contains && message.find(options_.expected) == std::string_view::npos) {
    return "wrong answer";
  }
  return {};
}

ssize_t Connection::receive(void* to, std::size_t room) {
  return ssl_ == nullptr ? recv(fd_, to, room, 0) : read_tls(*ssl_, to, room);
}

ssize_t Connection::transmit(const void* from, std::size_t size) {
  return ssl_ == nullptr ? send(fd_, from, size, MSG_NOSIGNAL) : write_tls(*ssl_, from, size);
}

bool Connection::read_ready() {
  uint8_t buffer[kWriteBlock];
  for (;;) {
    const ssize_t size = receive(buffer, sizeof buffer);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
    if (size <= 0 || nghttp2_session_mem_recv(session_, buffer, static_cast<size_t>(size)) < 0) {
      broke();
      return false;
    }
    // TLS reads a record at a time, and keeps what it has read from the socket.
    if (ssl_ == nullptr && static_cast<std::size_t>(size) < sizeof buffer) break;
  }
  if (nghttp2_session_want_read(session_) == 0 && nghttp2_session_want_write(session_) == 0) {
    broke();  // GOAWAY, and everything before it was answered
    return false;
  }
  return true;
}

bool Connection::flush() {
  if (fd_ < 0) return false;
  for (;;) {
    if (written_ == pending_.size()) {
      pending_.clear();
      written_ = 0;
      while (pending_.size() < kWriteBlock) {
        const uint8_t* data = nullptr;
        const ssize_t size = nghttp2_session_mem_send(session_, &data);
        if (size < 0) {
          broke();
          return false;
        }
        if (size == 0) break;
        pending_.append(reinterpret_cast<const char*>(data), static_cast<std::size_t>(size));
      }
      if (pending_.empty()) return true;
    }
    const ssize_t size = transmit(pending_.data() + written_, pending_.size() - written_);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
    if (size < 0) {
      broke();
      return false;
    }
    written_ += static_cast<std::size_t>(size);
  }
}

void Connection::broke() {
  close();
  // Indices: answered() may add calls while we walk; none of those is active, the session is gone.
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    Call& call = *calls_[i];
    if (!call.active) continue;
    call.grpc_status = -1;
    call.detail = "connection lost";
    finish(call, NGHTTP2_REFUSED_STREAM);
  }
}

void Connection::close() {
  // Callbacks run inside nghttp2 only while a session lives; deleting one calls none of ours.
  if (session_ != nullptr) nghttp2_session_del(std::exchange(session_, nullptr));
  if (ssl_ != nullptr) SSL_free(std::exchange(ssl_, nullptr));
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  pending_.clear();
  written_ = 0;
}

}  // namespace loadgen
