#include "transport/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <string_view>
#include <utility>

#include "transport/tls_session.h"

namespace headrace {
namespace {

// A chain, or a system's whole bundle of roots, is well below.
constexpr std::size_t kMaxPemBytes = 4 << 20;
constexpr long kSessionSeconds = 2 * 60 * 60;
// Forward secrecy and AEAD only (RFC 9113 9.2.2 bans the rest); TLS 1.3's three are all fine.
constexpr const char* kCiphers = "ECDHE+AESGCM:ECDHE+CHACHA20";
constexpr std::string_view kSessionContext = "headrace";

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;

// The library's own words for its latest error; clears them.
std::string openssl_reason() {
  const unsigned long error = ERR_peek_last_error();
  const char* reason = error == 0 ? nullptr : ERR_reason_error_string(error);
  ERR_clear_error();
  return reason == nullptr ? "not valid" : reason;
}

struct Pem {
  std::string name;  // for errors
  std::string text;
  Bio bio() const { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }
  Status error(const std::string& what) const {
    return Status::invalid_argument(name + ": " + what);
  }
};

Result<Pem> read_pem(const PemSource& source, const char* option) {
  Pem pem{option, source.pem};
  if (!source.file.empty()) {
    pem.name = std::string(option) + " " + source.file;
    pem.text.clear();
    errno = 0;
    std::ifstream file(source.file, std::ios::binary);
    if (!file) return pem.error(errno != 0 ? std::strerror(errno) : "cannot be read");
    std::string block(64 * 1024, '\0');
    while (pem.text.size() <= kMaxPemBytes &&
           (file.read(block.data(), static_cast<std::streamsize>(block.size())) ||
            file.gcount() > 0)) {
      pem.text.append(block.data(), static_cast<std::size_t>(file.gcount()));
    }
    if (file.bad()) return pem.error("cannot be read");
  }
  if (pem.text.empty()) return pem.error(source.empty() ? "is missing" : "is empty");
  if (pem.text.size() > kMaxPemBytes) return pem.error("is larger than 4 MiB");
  return pem;
}

// An encrypted key is an error, never a question on the terminal.
int no_password(char*, int, int, void*) { return -1; }

// Certificates of `pem`, first to last; the end of the file is no error.
template <class Take>
Status each_certificate(const Pem& pem, Take take) {
  const Bio bio = pem.bio();
  int count = 0;
  for (;;) {
    Certificate certificate(PEM_read_bio_X509_AUX(bio.get(), nullptr, no_password, nullptr));
    if (certificate == nullptr) {
      const bool end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
      if (end && count > 0) {
        ERR_clear_error();
        return {};
      }
      return pem.error(end ? (ERR_clear_error(), "no certificate in PEM form in it")
                           : "certificate " + std::to_string(count + 1) + ": " + openssl_reason());
    }
    if (!take(std::move(certificate), count++)) return pem.error(openssl_reason());
  }
}

int64_t seconds_of(const ASN1_TIME* time) {
  struct tm parts {};
  return ASN1_TIME_to_tm(time, &parts) == 1 ? static_cast<int64_t>(::timegm(&parts)) : 0;
}

Status use_key_pair(SSL_CTX* context, const Pem& chain, const Pem& key) {
  Status status = each_certificate(chain, [&](Certificate certificate, int index) {
    if (index == 0) return SSL_CTX_use_certificate(context, certificate.get()) == 1;
    return SSL_CTX_add1_chain_cert(context, certificate.get()) == 1;
  });
  if (!status.ok()) return status;
  const Key parsed(PEM_read_bio_PrivateKey(key.bio().get(), nullptr, no_password, nullptr));
  if (parsed == nullptr) {
    const bool encrypted = key.text.find("ENCRYPTED") != std::string::npos;
    const std::string reason = openssl_reason();
    return key.error(encrypted ? "the key is encrypted; store it without a password"
                               : "no private key in PEM form: " + reason);
  }
  // Also checks that it belongs to the certificate.
  if (SSL_CTX_use_PrivateKey(context, parsed.get()) != 1 ||
      SSL_CTX_check_private_key(context) != 1) {
    return key.error("does not belong to the certificate of " + chain.name + ": " +
                     openssl_reason());
  }
  return {};
}

Status use_client_ca(SSL_CTX* context, const Pem& ca) {
  STACK_OF(X509_INFO)* items =
      PEM_X509_INFO_read_bio(ca.bio().get(), nullptr, no_password, nullptr);
  if (items == nullptr) return ca.error(openssl_reason());
  X509_STORE* store = SSL_CTX_get_cert_store(context);
  int certificates = 0;
  bool revocation = false;
  bool taken = true;
  for (int i = 0; taken && i < sk_X509_INFO_num(items); ++i) {
    const X509_INFO* item = sk_X509_INFO_value(items, i);
    if (item->x509 != nullptr) {
      // The names are a hint which certificate the client should choose.
      taken = X509_STORE_add_cert(store, item->x509) == 1 &&
              SSL_CTX_add_client_CA(context, item->x509) == 1;
      ++certificates;
    }
    if (taken && item->crl != nullptr) {
      taken = X509_STORE_add_crl(store, item->crl) == 1;
      revocation = true;
    }
  }
  sk_X509_INFO_pop_free(items, X509_INFO_free);
  if (!taken) return ca.error(openssl_reason());
  if (certificates == 0) {
    ERR_clear_error();
    return ca.error("no certificate in PEM form in it");
  }
  if (revocation) X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
  return {};
}

}  // namespace

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

Result<std::shared_ptr<const TlsContext>> TlsContext::make(const TlsOptions& options) {
  ERR_clear_error();
  Result<Pem> chain = read_pem(options.certificate_chain, "TLS certificate");
  if (!chain) return chain.error();
  Result<Pem> key = read_pem(options.private_key, "TLS private key");
  if (!key) return key.error();

  std::shared_ptr<TlsContext> made(new TlsContext);
  made->context_ = SSL_CTX_new(TLS_server_method());
  SSL_CTX* context = made->context_;
  if (context == nullptr) return Status::internal("OpenSSL: " + openssl_reason());
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  if (SSL_CTX_set_cipher_list(context, kCiphers) != 1) {
    return Status::internal("OpenSSL: " + openssl_reason());
  }
  // The server's order, but ChaCha20 for a client that puts it first: it has no AES instructions.
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                   SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // Tickets carry the session, client certificate included, so that nothing is kept here. They are
  // sealed with keys of this context: after a reload, everybody is verified again.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_timeout(context, kSessionSeconds);
  SSL_CTX_set_num_tickets(context, 1);
  SSL_CTX_set_session_id_context(context,
                                 reinterpret_cast<const unsigned char*>(kSessionContext.data()),
                                 kSessionContext.size());
  TlsSession::prepare(context);

  Status status = use_key_pair(context, *chain, *key);
  if (!status.ok()) return status;
  made->not_after_ = seconds_of(X509_get0_notAfter(SSL_CTX_get0_certificate(context)));

  if (options.client_auth != ClientAuth::kNone) {
    Result<Pem> ca = read_pem(options.client_ca, "TLS client CA");
    if (!ca) return ca.error();
    status = use_client_ca(context, *ca);
    if (!status.ok()) return status;
    const bool require = options.client_auth == ClientAuth::kRequire;
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | (require ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0),
                       nullptr);
  }
  return std::shared_ptr<const TlsContext>(std::move(made));
}

}  // namespace headrace
