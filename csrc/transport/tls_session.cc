#include "transport/tls_session.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cstring>

#include "transport/tls_identity.h"

namespace headrace {
namespace {

// Encrypted bytes that wait for the socket: enough that one sendmsg() takes many records, little
// beside the connection's other queue.
constexpr std::size_t kMaxSealedBytes = 128 * 1024;
constexpr std::string_view kAlpn = "h2";

}  // namespace

// What OpenSSL calls. A BIO's data and an SSL's app data are the session.
struct TlsSession::Callbacks {
  static TlsSession& of(BIO* bio) { return *static_cast<TlsSession*>(BIO_get_data(bio)); }

  static int read(BIO* bio, char* data, size_t size, size_t* got) {
    std::span<const std::byte>& input = of(bio).input_;
    BIO_clear_retry_flags(bio);
    *got = std::min(size, input.size());
    if (*got == 0) {
      BIO_set_retry_read(bio);
      return 0;
    }
    std::memcpy(data, input.data(), *got);
    input = input.subspan(*got);
    return 1;
  }

  static int write(BIO* bio, const char* data, size_t size, size_t* written) {
    BIO_clear_retry_flags(bio);
    of(bio).output_.append_copy({reinterpret_cast<const std::byte*>(data), size});
    *written = size;
    return 1;
  }

  static long control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

  static int create(BIO* bio) {
    BIO_set_init(bio, 1);
    return 1;
  }

  // Made once; OpenSSL's BIOs refer to it for as long as the process lives.
  static const BIO_METHOD* method() {
    static BIO_METHOD* const made = [] {
      BIO_METHOD* method =
          BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "headrace connection");
      if (method == nullptr) return method;
      BIO_meth_set_read_ex(method, read);
      BIO_meth_set_write_ex(method, write);
      BIO_meth_set_ctrl(method, control);
      BIO_meth_set_create(method, create);
      return method;
    }();
    return made;
  }

  // OpenSSL asks choose_alpn() only when the client has the extension at all.
  static int on_client_hello(SSL* ssl, int* alert, void*) {
    const unsigned char* data = nullptr;
    size_t size = 0;
    if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &data,
                                  &size) == 1) {
      return SSL_CLIENT_HELLO_SUCCESS;
    }
    *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
    static_cast<TlsSession*>(SSL_get_app_data(ssl))->no_alpn_ = true;
    return SSL_CLIENT_HELLO_ERROR;
  }

  static int choose_alpn(SSL* ssl, const unsigned char** chosen, unsigned char* chosen_size,
                         const unsigned char* offered, unsigned int size, void*) {
    for (unsigned int i = 0; i < size; i += 1U + offered[i]) {
      const std::string_view name(reinterpret_cast<const char*>(offered + i + 1), offered[i]);
      if (name == kAlpn) {
        *chosen = offered + i + 1;
        *chosen_size = offered[i];
        return SSL_TLSEXT_ERR_OK;
      }
    }
    static_cast<TlsSession*>(SSL_get_app_data(ssl))->no_alpn_ = true;
    return SSL_TLSEXT_ERR_ALERT_FATAL;  // no_application_protocol
  }
};

void TlsSession::prepare(ssl_ctx_st* context) {
  SSL_CTX_set_client_hello_cb(context, Callbacks::on_client_hello, nullptr);
  SSL_CTX_set_alpn_select_cb(context, Callbacks::choose_alpn, nullptr);
}

Result<std::unique_ptr<TlsSession>> TlsSession::make(const TlsContext& context) {
  std::unique_ptr<TlsSession> session(new TlsSession);
  session->ssl_ = SSL_new(context.get());
  BIO* bio = Callbacks::method() == nullptr ? nullptr : BIO_new(Callbacks::method());
  if (session->ssl_ == nullptr || bio == nullptr) {
    BIO_free(bio);
    ERR_clear_error();
    return Status::resource_exhausted("no memory for a TLS session");
  }
  BIO_set_data(bio, session.get());
  SSL_set_bio(session->ssl_, bio, bio);
  SSL_set_app_data(session->ssl_, session.get());
  SSL_set_accept_state(session->ssl_);
  return session;
}

TlsSession::~TlsSession() { SSL_free(ssl_); }

std::size_t TlsSession::read(std::span<std::byte> plain) {
  if (state_ == State::kClosed) return 0;
  // The library's error queue belongs to the thread: what another session left must not be read as ours.
  ERR_clear_error();
  if (state_ == State::kHandshake) {
    const int done = SSL_do_handshake(ssl_);
    if (done != 1) {
      failed(SSL_get_error(ssl_, done));
      return 0;
    }
    handshake_done();
  }
  std::size_t n = 0;
  const int rc = SSL_read_ex(ssl_, plain.data(), plain.size(), &n);
  if (rc == 1) return n;
  failed(SSL_get_error(ssl_, rc));
  return 0;
}

bool TlsSession::seal(OutputQueue& plain) {
  if (state_ != State::kOpen) return state_ == State::kHandshake;
  if (plain.empty()) return true;
  ERR_clear_error();
  std::array<struct iovec, 16> vectors;
  std::array<std::byte, kRecordBytes> record;
  while (output_.size() < kMaxSealedBytes && !plain.empty()) {
    const int count = plain.front(vectors.data(), static_cast<int>(vectors.size()));
    const void* data = vectors[0].iov_base;
    std::size_t size = std::min(vectors[0].iov_len, kRecordBytes);
    if (size < kRecordBytes && count > 1) {
      // Frame headers and bodies lie apart: full records cost less than the copy saves.
      size = 0;
      for (int i = 0; i < count && size < kRecordBytes; ++i) {
        const std::size_t n = std::min(vectors[i].iov_len, kRecordBytes - size);
        std::memcpy(record.data() + size, vectors[i].iov_base, n);
        size += n;
      }
      data = record.data();
    }
    std::size_t written = 0;
    const int rc = SSL_write_ex(ssl_, data, size, &written);
    if (rc != 1) {
      failed(SSL_get_error(ssl_, rc));
      return state_ != State::kClosed;
    }
    plain.pop(written);
  }
  return true;
}

void TlsSession::close() {
  // Not after a fatal error (SSL_shutdown's rule), nor in the handshake.
  if (state_ == State::kOpen) {
    ERR_clear_error();
    SSL_shutdown(ssl_);
  }
  state_ = State::kClosed;
}

void TlsSession::handshake_done() {
  state_ = State::kOpen;
  resumed_ = SSL_session_reused(ssl_) == 1;
  auth_context_ = make_auth_context(ssl_);
}

void TlsSession::failed(int error) {
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return;
  const bool handshake = state_ == State::kHandshake;
  // The client's close_notify: ours goes back, and what it sent before has been read.
  if (error == SSL_ERROR_ZERO_RETURN && !handshake) return close();
  state_ = State::kClosed;
  if (handshake) {
    const int reason = ERR_GET_REASON(ERR_peek_error());
    if (no_alpn_) {
      result_ = TlsResult::kNoAlpn;
    } else if (error == SSL_ERROR_ZERO_RETURN) {
      result_ = TlsResult::kDisconnected;
    } else if (reason == SSL_R_UNSUPPORTED_PROTOCOL || reason == SSL_R_VERSION_TOO_LOW) {
      result_ = TlsResult::kVersion;
    } else if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED ||
               reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE) {
      result_ = TlsResult::kClientCertificate;
    } else if (reason >= SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256) {
      result_ = TlsResult::kClientAlert;
    } else {
      result_ = TlsResult::kMalformed;
    }
  }
  ERR_clear_error();
}

}  // namespace headrace
