// TLS for a listener. TlsOptions: what it shows and asks of clients. TlsContext: that, read and
// checked, ready to make sessions of (tls_session.h).
//
// TLS 1.2 and 1.3, forward-secret AEAD ciphers only, ALPN "h2" required, no renegotiation, no
// compression, stateless session tickets whose keys live and die with the context.
//
// Threads: a TlsContext is immutable. New certificates are a new TlsContext; sessions made of the old
// one keep it alive and go on.
//
//   Result<std::shared_ptr<const TlsContext>> context = TlsContext::make(options);
// ---------------------------------------------------------------------------------------------
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"

struct ssl_ctx_st;

namespace headrace {

// PEM text: as given, or read from a file each time a context is made.
struct PemSource {
  std::string pem;
  std::string file;  // when not empty, instead of `pem`
  bool empty() const { return pem.empty() && file.empty(); }
};

enum class ClientAuth : uint8_t {
  kNone,     // no certificate is asked for
  kRequest,  // one is asked for; the client may have none, but a bad one ends the handshake
  kRequire,  // mTLS: no handshake without a verified one
};

struct TlsOptions {
  PemSource certificate_chain;  // the server's certificate, then the intermediate ones
  PemSource private_key;        // not encrypted
  // Roots (and intermediates) that client certificates are verified against; also revocation lists:
  // with any in it, every client certificate is looked up in its issuer's.
  PemSource client_ca;
  ClientAuth client_auth = ClientAuth::kNone;
};

class TlsContext {
 public:
  // Reads the files. Errors: INVALID_ARGUMENT naming the file (or which option) and what is wrong.
  static Result<std::shared_ptr<const TlsContext>> make(const TlsOptions& options);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  ssl_ctx_st* get() const { return context_; }
  // When the server's certificate ends, in seconds since 1970.
  int64_t not_after() const { return not_after_; }

 private:
  TlsContext() = default;
  ssl_ctx_st* context_ = nullptr;
  int64_t not_after_ = 0;
};

}  // namespace headrace
