// TlsSession: the server's side of one TLS connection, without a socket: the client's bytes go in with
// put(), plain bytes come out with read(); seal() encrypts what is to be sent into output().
//
// OpenSSL works on a BIO of ours between the connection set's read buffer and an OutputQueue. So one
// recv() brings many records and one sendmsg() takes many away, where SSL_set_fd needs a system call
// for each record of at most 16 KiB; against OpenSSL's memory BIOs it saves a copy each way.
//
// Threads: belongs to one I/O thread.
//
//   session.put(bytes);
//   while (const std::size_t n = session.read(plain)) http2.feed(plain.first(n));
//   session.seal(http2_output);
//   write(session.output());
// ---------------------------------------------------------------------------------------------
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "transport/auth_context.h"
#include "transport/output_queue.h"
#include "transport/tls.h"

struct ssl_st;

namespace headrace {

// How a handshake ended.
enum class TlsResult : uint8_t {
  kOk,
  kNoAlpn,             // the client does not offer "h2"
  kVersion,            // nor TLS 1.2 or later
  kClientCertificate,  // it has none, or none that verifies
  kClientAlert,        // it refused us: most often our certificate
  kDisconnected,       // it left in the middle
  kTimeout,            // it was too slow
  kCrowdedOut,         // too many were going on, and this was the oldest
  kMalformed,          // not TLS, or not a handshake that we can agree on
};
inline constexpr std::size_t kTlsResults = 9;
inline constexpr std::array<std::string_view, kTlsResults> kTlsResultNames = {
    "ok",           "no_alpn", "version",     "client_certificate", "client_alert",
    "disconnected", "timeout", "crowded_out", "malformed"};

class TlsSession {
 public:
  enum class State : uint8_t { kHandshake, kOpen, kClosed };
  // A record's plain bytes: what read() must have room for.
  static constexpr std::size_t kRecordBytes = 16 * 1024;

  // Errors: RESOURCE_EXHAUSTED.
  static Result<std::unique_ptr<TlsSession>> make(const TlsContext& context);
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  // Bytes from the client; they stay valid until read() has answered 0.
  void put(std::span<const std::byte> bytes) { input_ = bytes; }
  // How many plain bytes were put into `plain` (of kRecordBytes). 0: all that put() gave is used up, or
  // the session is kClosed: by the client, or broken; output() may hold an alert for it.
  std::size_t read(std::span<std::byte> plain);
  // Moves bytes of `plain` into output(), once the handshake is over and while output() is below its
  // bound. False: the session is broken.
  bool seal(OutputQueue& plain);
  // Puts a close_notify into output(). Nothing is read or sealed any more.
  void close();

  // Encrypted bytes for the socket.
  OutputQueue& output() { return output_; }
  State state() const { return state_; }
  // Of the handshake, when the state is not kHandshake; kOk before.
  TlsResult result() const { return result_; }
  bool resumed() const { return resumed_; }
  // When the handshake is over; null before.
  const std::shared_ptr<const AuthContext>& auth_context() const { return auth_context_; }

 private:
  friend class TlsContext;
  struct Callbacks;
  TlsSession() = default;
  // Sets the callbacks that choose "h2".
  static void prepare(ssl_ctx_st* context);
  void handshake_done();
  void failed(int error);

  ssl_st* ssl_ = nullptr;
  std::span<const std::byte> input_;
  OutputQueue output_;
  State state_ = State::kHandshake;
  TlsResult result_ = TlsResult::kOk;
  bool resumed_ = false;
  bool no_alpn_ = false;
  std::shared_ptr<const AuthContext> auth_context_;
};

}  // namespace headrace
