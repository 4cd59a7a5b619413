#include "tls.h"

#include <openssl/err.h>

#include <cerrno>
#include <string_view>

namespace loadgen {
namespace {

std::string last_error() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* text = ERR_reason_error_string(code);
  return text == nullptr ? "the connection was closed" : text;
}

ssize_t outcome(SSL& ssl, int done, std::size_t size) {
  if (done == 1) return static_cast<ssize_t>(size);
  const int error = SSL_get_error(&ssl, done);
  ERR_clear_error();
  if (error == SSL_ERROR_ZERO_RETURN) return 0;
  errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : ECONNRESET;
  return -1;
}

}  // namespace

std::shared_ptr<SSL_CTX> make_tls(const TlsFiles& files, std::string& why) {
  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_mode(context.get(),
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  const unsigned char alpn[] = {2, 'h', '2'};
  SSL_CTX_set_alpn_protos(context.get(), alpn, sizeof alpn);
  if (SSL_CTX_load_verify_locations(context.get(), files.ca.c_str(), nullptr) != 1) {
    why = files.ca + ": " + last_error();
    return nullptr;
  }
  if (files.certificate.empty() && files.key.empty()) return context;
  if (SSL_CTX_use_certificate_chain_file(context.get(), files.certificate.c_str()) != 1) {
    why = files.certificate + ": " + last_error();
    return nullptr;
  }
  if (SSL_CTX_use_PrivateKey_file(context.get(), files.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    why = files.key + ": " + last_error();
    return nullptr;
  }
  return context;
}

SSL* connect_tls(SSL_CTX& context, int fd, std::string& why) {
  SSL* ssl = SSL_new(&context);
  SSL_set_fd(ssl, fd);
  if (SSL_connect(ssl) == 1) {
    const unsigned char* chosen = nullptr;
    unsigned size = 0;
    SSL_get0_alpn_selected(ssl, &chosen, &size);
    if (std::string_view(reinterpret_cast<const char*>(chosen), size) == "h2") return ssl;
    why = "the server does not speak h2";
  } else {
    why = "TLS handshake: " + last_error();
  }
  SSL_free(ssl);
  return nullptr;
}

ssize_t read_tls(SSL& ssl, void* to, std::size_t room) {
  std::size_t size = 0;
  const int done = SSL_read_ex(&ssl, to, room, &size);
  return outcome(ssl, done, size);
}

ssize_t write_tls(SSL& ssl, const void* from, std::size_t size) {
  std::size_t written = 0;
  const int done = SSL_write_ex(&ssl, from, size, &written);
  return outcome(ssl, done, written);
}

}  // namespace loadgen
