#include "transport/tls_identity.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace headrace {
namespace {

constexpr const char* kAlternativeName = "x509_subject_alternative_name";
constexpr const char* kCommonName = "x509_common_name";

std::string bytes_of(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return size > 0 ? std::string(data, static_cast<std::size_t>(size)) : std::string();
}

std::string subject_of(X509* certificate) {
  BIO* bio = BIO_new(BIO_s_mem());
  if (bio == nullptr) return {};
  X509_NAME_print_ex(bio, X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253);
  std::string text = bytes_of(bio);
  BIO_free(bio);
  return text;
}

std::string pem_of(X509* certificate) {
  BIO* bio = BIO_new(BIO_s_mem());
  if (bio == nullptr) return {};
  PEM_write_bio_X509(bio, certificate);
  std::string text = bytes_of(bio);
  BIO_free(bio);
  return text;
}

std::optional<std::string> utf8_of(const ASN1_STRING* string) {
  unsigned char* data = nullptr;
  const int size = ASN1_STRING_to_UTF8(&data, string);
  if (size < 0) return std::nullopt;
  std::string text(reinterpret_cast<const char*>(data), static_cast<std::size_t>(size));
  OPENSSL_free(data);
  if (text.empty() || text.find('\0') != std::string::npos) return std::nullopt;
  return text;
}

std::optional<std::string> ip_of(const ASN1_OCTET_STRING* string) {
  const int size = ASN1_STRING_length(string);
  if (size != 4 && size != 16) return std::nullopt;
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(size == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(string), text.data(),
              text.size());
  return text.data();
}

// The name as text and the property gRPC gives its kind ("peer_dns").
std::pair<const char*, std::optional<std::string>> text_of(const GENERAL_NAME* name) {
  switch (name->type) {
    case GEN_DNS:
      return {"peer_dns", utf8_of(name->d.dNSName)};
    case GEN_URI:
      return {"peer_uri", utf8_of(name->d.uniformResourceIdentifier)};
    case GEN_EMAIL:
      return {"peer_email", utf8_of(name->d.rfc822Name)};
    case GEN_IPADD:
      return {"peer_ip", ip_of(name->d.iPAddress)};
    default:
      return {nullptr, std::nullopt};
  }
}

void add_certificate(AuthContext& context, X509* certificate) {
  auto& properties = context.properties;
  properties.emplace_back("x509_subject", subject_of(certificate));
  const X509_NAME* subject = X509_get_subject_name(certificate);
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at >= 0) {
    const auto name = utf8_of(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
    if (name) {
      properties.emplace_back(kCommonName, *name);
      context.identity_key = kCommonName;
    }
  }
  properties.emplace_back("x509_pem_cert", pem_of(certificate));

  auto* names = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  std::vector<std::pair<std::string, std::string>> by_kind;
  std::string spiffe_id;
  int uris = 0;
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const auto [kind, text] = text_of(sk_GENERAL_NAME_value(names, i));
    if (!text) continue;
    properties.emplace_back(kAlternativeName, *text);
    context.identity_key = kAlternativeName;
    by_kind.emplace_back(kind, *text);
    if (std::string_view(kind) != "peer_uri") continue;
    ++uris;
    if (text->starts_with("spiffe://")) spiffe_id = *text;
  }
  GENERAL_NAMES_free(names);
  properties.insert(properties.end(), by_kind.begin(), by_kind.end());
  // SPIFFE X.509-SVID, 2: exactly one URI.
  if (uris == 1 && !spiffe_id.empty()) properties.emplace_back("peer_spiffe_id", spiffe_id);
}

}  // namespace

std::shared_ptr<const AuthContext> make_auth_context(ssl_st* ssl) {
  auto context = std::make_shared<AuthContext>();
  auto& properties = context->properties;
  properties.emplace_back("transport_security_type", "ssl");
  X509* certificate = SSL_get0_peer_certificate(ssl);
  if (certificate != nullptr && SSL_get_verify_result(ssl) == X509_V_OK) {
    add_certificate(*context, certificate);
  }
  properties.emplace_back("security_level", "TSI_PRIVACY_AND_INTEGRITY");
  properties.emplace_back("ssl_session_reused", SSL_session_reused(ssl) == 1 ? "true" : "false");
  const char* name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
  if (name != nullptr) properties.emplace_back("ssl_requested_server_name", name);
  properties.emplace_back("ssl_tls_version", SSL_get_version(ssl));
  ERR_clear_error();
  return context;
}

}  // namespace headrace
