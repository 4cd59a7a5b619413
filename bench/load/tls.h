// The client's side of TLS on a connected socket, with OpenSSL. ALPN offers h2 and nothing else.
#pragma once

#include <openssl/ssl.h>
#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <string>

namespace loadgen {

// PEM files. certificate and key: empty, or what the client shows.
struct TlsFiles {
  std::string ca;
  std::string certificate;
  std::string key;
};

// Null with a reason.
std::shared_ptr<SSL_CTX> make_tls(const TlsFiles& files, std::string& why);

// Shakes hands on a blocking socket. Null with a reason; else the caller's to SSL_free().
SSL* connect_tls(SSL_CTX& context, int fd, std::string& why);

// As recv() and send() on a non-blocking socket: -1 with errno EAGAIN, or another when it broke.
ssize_t read_tls(SSL& ssl, void* to, std::size_t room);
ssize_t write_tls(SSL& ssl, const void* from, std::size_t size);

}  // namespace loadgen
