// A TLS client without a socket, over OpenSSL's memory BIOs.
#pragma once

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "certificates.h"

namespace headrace::test {

struct TlsClientOptions {
  std::string alpn = "h2";  // "": no such extension
  int min_version = TLS1_2_VERSION;
  int max_version = TLS1_3_VERSION;
  const Certificate* certificate = nullptr;  // mTLS
  const Certificate* trusted = nullptr;      // verifies the server; null: takes any
  SSL_SESSION* session = nullptr;            // to resume; stays the caller's
  std::string server_name = "localhost";
};

class TlsClient {
 public:
  explicit TlsClient(const TlsClientOptions& options = {}) {
    context_ = SSL_CTX_new(TLS_client_method());
    // Old versions are only spoken at the lowest level.
    if (options.max_version < TLS1_2_VERSION) SSL_CTX_set_security_level(context_, 0);
    SSL_CTX_set_min_proto_version(context_, options.min_version);
    SSL_CTX_set_max_proto_version(context_, options.max_version);
    if (options.trusted != nullptr) {
      X509_STORE_add_cert(SSL_CTX_get_cert_store(context_), options.trusted->x509());
      SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
    }
    if (options.certificate != nullptr) {
      SSL_CTX_use_certificate(context_, options.certificate->x509());
      SSL_CTX_use_PrivateKey(context_, options.certificate->evp_key());
    }
    SSL_CTX_set_session_cache_mode(context_, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context_, [](SSL* ssl, SSL_SESSION* session) {
      auto* self = static_cast<TlsClient*>(SSL_get_app_data(ssl));
      SSL_SESSION_free(self->session_);
      self->session_ = session;
      return 1;
    });
    ssl_ = SSL_new(context_);
    SSL_set_app_data(ssl_, this);
    in_ = BIO_new(BIO_s_mem());
    out_ = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl_, in_, out_);
    SSL_set_connect_state(ssl_);
    if (!options.server_name.empty()) {
      SSL_set_tlsext_host_name(ssl_, options.server_name.c_str());
    }
    if (options.session != nullptr) SSL_set_session(ssl_, options.session);
    if (!options.alpn.empty()) {
      const std::string list = static_cast<char>(options.alpn.size()) + options.alpn;
      SSL_set_alpn_protos(ssl_, reinterpret_cast<const unsigned char*>(list.data()),
                          static_cast<unsigned>(list.size()));
    }
    advance();
  }
  ~TlsClient() {
    SSL_SESSION_free(session_);
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }
  TlsClient(const TlsClient&) = delete;
  TlsClient& operator=(const TlsClient&) = delete;

  // Bytes from the server.
  void feed(std::string_view bytes) {
    BIO_write(in_, bytes.data(), static_cast<int>(bytes.size()));
    advance();
  }
  // Bytes for the server.
  std::string take() {
    std::string bytes(BIO_ctrl_pending(out_), '\0');
    const int n = bytes.empty() ? 0 : BIO_read(out_, bytes.data(), static_cast<int>(bytes.size()));
    bytes.resize(static_cast<std::size_t>(n < 0 ? 0 : n));
    return bytes;
  }
  // After the handshake.
  void write(std::string_view plain) {
    if (!plain.empty()) {
      REQUIRE(SSL_write(ssl_, plain.data(), static_cast<int>(plain.size())) ==
              static_cast<int>(plain.size()));
    }
  }
  void close() { SSL_shutdown(ssl_); }

  bool open() const { return SSL_is_init_finished(ssl_) == 1; }
  // Of the alert that the server sent, or 0.
  int alert() const { return alert_; }
  bool failed() const { return failed_; }
  bool closed_by_server() const {
    return (SSL_get_shutdown(ssl_) & SSL_RECEIVED_SHUTDOWN) != 0 && alert_ == 0;
  }
  bool resumed() const { return SSL_session_reused(ssl_) == 1; }
  // What the server sent last; the caller's.
  SSL_SESSION* take_session() {
    SSL_SESSION* session = session_;
    session_ = nullptr;
    return session;
  }
  SSL* ssl() { return ssl_; }
  std::string received;  // plain

 private:
  void advance() {
    ERR_clear_error();
    if (!open() && SSL_do_handshake(ssl_) != 1) return look();
    char buffer[20000];
    for (;;) {
      ERR_clear_error();
      const int n = SSL_read(ssl_, buffer, sizeof(buffer));
      if (n <= 0) return look();
      received.append(buffer, static_cast<std::size_t>(n));
    }
  }
  void look() {
    const unsigned long error = ERR_peek_error();
    if (error == 0) return;
    failed_ = true;
    const int reason = ERR_GET_REASON(error);
    if (reason >= SSL_AD_REASON_OFFSET) alert_ = reason - SSL_AD_REASON_OFFSET;
    ERR_clear_error();
  }

  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
  BIO* in_ = nullptr;   // ssl_'s
  BIO* out_ = nullptr;  // ssl_'s
  SSL_SESSION* session_ = nullptr;
  int alert_ = 0;
  bool failed_ = false;
};

}  // namespace headrace::test
