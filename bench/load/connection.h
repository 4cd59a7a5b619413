// Connection: one HTTP/2 connection (cleartext with prior knowledge, or TLS) that makes unary gRPC calls.
//
// Threads: one. Each submitted call is reported exactly once to the Caller, also when the
// connection breaks; a Caller may submit the next call from inside answered(). Nothing is written
// before flush().
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "options.h"

namespace loadgen {

int64_t now_ns();  // CLOCK_MONOTONIC

class Connection;

class Caller {
 public:
  virtual ~Caller() = default;
  // `error` is empty for a right answer, else its kind ("grpc-status 8", "wrong answer", ...);
  // `detail` is the server's text, if any. start_ns is what submit() was given.
  virtual void answered(Connection& connection, int64_t start_ns, const std::string& error,
                        const std::string& detail) = 0;
};

class Connection {
 public:
  // `options` and `caller` outlive the connection.
  Connection(const Options& options, Caller& caller);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Connects and shakes hands (blocking); false with a reason. A broken connection may be opened again.
  bool open(std::string& why);
  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }

  void submit(int64_t start_ns);
  // Reads what is there. False: the connection broke and its calls were reported as such.
  bool read_ready();
  // Writes what is queued. False as above.
  bool flush();
  bool wants_write() const { return written_ < pending_.size(); }
  std::size_t in_flight() const { return in_flight_; }
  // Resets the calls whose deadline has passed; answers when the next one's does (INT64_MAX: none).
  int64_t expire(int64_t now);

 private:
  struct Call {
    int64_t start_ns = 0;
    std::size_t sent = 0;
    int http_status = 0;
    int grpc_status = -1;  // -1: none came
    bool active = false;
    int32_t stream = -1;
    uint64_t number = 0;  // tells the calls that reuse this object
    std::string message;  // with gRPC's prefix
    std::string detail;
  };

  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name,
                       size_t name_size, const uint8_t* value, size_t value_size, uint8_t flags,
                       void* self);
  static int on_data(nghttp2_session*, uint8_t flags, int32_t stream, const uint8_t* data,
                     size_t size, void* self);
  static int on_close(nghttp2_session*, int32_t stream, uint32_t error_code, void* self);
  static ssize_t read_body(nghttp2_session*, int32_t stream, uint8_t* out, size_t room,
                           uint32_t* flags, nghttp2_data_source* source, void* self);

  // As recv() and send(); EAGAIN when TLS waits.
  ssize_t receive(void* to, std::size_t room);
  ssize_t transmit(const void* from, std::size_t size);
  void finish(Call& call, uint32_t error_code);
  std::string judge(const Call& call, uint32_t error_code) const;
  void broke();
  void close();

  const Options& options_;
  Caller& caller_;
  int fd_ = -1;
  SSL* ssl_ = nullptr;  // null: cleartext
  nghttp2_session* session_ = nullptr;
  std::string body_;  // prefix and message, the same for every call
  std::vector<nghttp2_nv> headers_;
  std::vector<std::unique_ptr<Call>> calls_;  // all ever made, reused
  std::vector<Call*> free_;
  std::size_t in_flight_ = 0;
  struct Deadline {
    int64_t at_ns;
    Call* call;
    uint64_t number;
  };
  std::deque<Deadline> deadlines_;  // in order: all calls have the same time
  uint64_t next_number_ = 0;
  std::string timeout_;
  std::string pending_;
  std::size_t written_ = 0;
};

}  // namespace loadgen
