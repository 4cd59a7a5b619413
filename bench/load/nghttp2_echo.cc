// nghttp2_echo: the bare limit. One epoll thread, nghttp2, nothing else: reads a unary gRPC request
// to its end and answers every one with the same bytes. No protobuf, no model, no deadlines, no
// limits. What a server on nghttp2 costs above this is what its own work costs.
//
//   nghttp2_echo --port P [--response FILE]     FILE: the response message, serialised protobuf
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

namespace {

constexpr std::size_t kBlock = 64 * 1024;

std::string g_answer;  // prefix and message, fixed before the loop starts

struct Stream {
  std::string request;
  std::size_t sent = 0;
};

struct Session {
  int fd = -1;
  nghttp2_session* h2 = nullptr;
  std::unordered_map<int32_t, std::unique_ptr<Stream>> streams;
  std::string out;
  std::size_t written = 0;
  bool watching_out = false;

  ~Session() {
    if (h2 != nullptr) nghttp2_session_del(h2);
    if (fd >= 0) close(fd);
  }
};

nghttp2_nv header(std::string_view name, std::string_view value) {
  return {reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
          reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(),
          NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

ssize_t read_answer(nghttp2_session* h2, int32_t id, uint8_t* out, size_t room, uint32_t* flags,
                    nghttp2_data_source* source, void*) {
  auto* stream = static_cast<Stream*>(source->ptr);
  const std::size_t size = std::min(room, g_answer.size() - stream->sent);
  std::memcpy(out, g_answer.data() + stream->sent, size);
  stream->sent += size;
  if (stream->sent == g_answer.size()) {
    *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    const nghttp2_nv trailer = header("grpc-status", "0");
    nghttp2_submit_trailer(h2, id, &trailer, 1);
  }
  return static_cast<ssize_t>(size);
}

int on_begin(nghttp2_session* h2, const nghttp2_frame* frame, void* user) {
  if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
  auto stream = std::make_unique<Stream>();
  nghttp2_session_set_stream_user_data(h2, frame->hd.stream_id, stream.get());
  static_cast<Session*>(user)->streams[frame->hd.stream_id] = std::move(stream);
  return 0;
}

int on_data(nghttp2_session* h2, uint8_t, int32_t id, const uint8_t* data, size_t size, void*) {
  auto* stream = static_cast<Stream*>(nghttp2_session_get_stream_user_data(h2, id));
  if (stream != nullptr) stream->request.append(reinterpret_cast<const char*>(data), size);
  return 0;
}

int on_frame(nghttp2_session* h2, const nghttp2_frame* frame, void*) {
  if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
  if (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) return 0;
  auto* stream =
      static_cast<Stream*>(nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id));
  if (stream == nullptr) return 0;
  const nghttp2_nv headers[] = {header(":status", "200"),
                                header("content-type", "application/grpc")};
  nghttp2_data_provider body{};
  body.source.ptr = stream;
  body.read_callback = read_answer;
  nghttp2_submit_response(h2, frame->hd.stream_id, headers, 2, &body);
  return 0;
}

int on_close(nghttp2_session*, int32_t id, uint32_t, void* user) {
  static_cast<Session*>(user)->streams.erase(id);
  return 0;
}

bool flush(Session& session) {
  for (;;) {
    if (session.written == session.out.size()) {
      session.out.clear();
      session.written = 0;
      while (session.out.size() < kBlock) {
        const uint8_t* data = nullptr;
        const ssize_t size = nghttp2_session_mem_send(session.h2, &data);
        if (size < 0) return false;
        if (size == 0) break;
        session.out.append(reinterpret_cast<const char*>(data), static_cast<std::size_t>(size));
      }
      if (session.out.empty()) return true;
    }
    const ssize_t size = send(session.fd, session.out.data() + session.written,
                              session.out.size() - session.written, MSG_NOSIGNAL);
    if (size < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    session.written += static_cast<std::size_t>(size);
  }
}

bool serve(Session& session) {
  uint8_t buffer[kBlock];
  for (;;) {
    const ssize_t size = recv(session.fd, buffer, sizeof buffer, 0);
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) break;
    if (size <= 0) return false;
    if (nghttp2_session_mem_recv(session.h2, buffer, static_cast<size_t>(size)) < 0) return false;
    if (static_cast<std::size_t>(size) < sizeof buffer) break;
  }
  if (!flush(session)) return false;
  return nghttp2_session_want_read(session.h2) != 0 || nghttp2_session_want_write(session.h2) != 0;
}

}  // namespace

int main(int argc, char** argv) {
  int port = 0;
  std::string message;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--port") {
      port = std::atoi(argv[i + 1]);
    } else if (name == "--response") {
      std::ifstream file(argv[i + 1], std::ios::binary);
      if (!file) {
        std::fprintf(stderr, "nghttp2_echo: cannot read %s\n", argv[i + 1]);
        return 2;
      }
      message.assign(std::istreambuf_iterator<char>(file), {});
    } else {
      port = 0;
      break;
    }
  }
  if (port <= 0 || port > 65535 || argc % 2 == 0) {
    std::fprintf(stderr, "nghttp2_echo --port P [--response FILE]\n");
    return 2;
  }
  g_answer.push_back('\0');
  for (int shift = 24; shift >= 0; shift -= 8) {
    g_answer.push_back(static_cast<char>(static_cast<uint32_t>(message.size()) >> shift));
  }
  g_answer += message;

  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener, 128) != 0) {
    std::fprintf(stderr, "nghttp2_echo: port %d: %s\n", port, std::strerror(errno));
    return 1;
  }
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);

  nghttp2_session_callbacks* callbacks = nullptr;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);

  for (;;) {
    epoll_event events[64];
    const int count = epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < count; ++i) {
      auto* session = static_cast<Session*>(events[i].data.ptr);
      if (session == nullptr) {
        const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        session = new Session;  // owned by its epoll registration, deleted below
        session->fd = fd;
        nghttp2_session_server_new(&session->h2, callbacks, session);
        const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1000}};
        nghttp2_submit_settings(session->h2, NGHTTP2_FLAG_NONE, settings, 1);
        event.events = EPOLLIN;
        event.data.ptr = session;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        continue;
      }
      if (!serve(*session)) {
        delete session;
        continue;
      }
      const bool wants_out = session->written < session->out.size();
      if (wants_out != session->watching_out) {
        session->watching_out = wants_out;
        event.events = EPOLLIN | (wants_out ? static_cast<uint32_t>(EPOLLOUT) : 0u);
        event.data.ptr = session;
        epoll_ctl(epoll, EPOLL_CTL_MOD, session->fd, &event);
      }
    }
  }
}
