// Certificates for tests, made on the spot with OpenSSL: an authority, and what it signs.
#pragma once

#include <doctest/doctest.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

namespace headrace::test {

inline std::string take_pem(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<std::size_t>(size));
  BIO_free(bio);
  return text;
}

// A certificate and its key. P-256: quick to make.
class Certificate {
 public:
  struct Shape {
    std::string name = "server";
    std::string alternative_names = "";  // "DNS:localhost,IP:127.0.0.1"
    bool authority = false;
    long from_s = -3600;
    long to_s = 24 * 3600;
  };
  // Signed by itself when there is no issuer.
  explicit Certificate(const Shape& shape, const Certificate* issuer = nullptr) {
    key_.reset(EVP_EC_gen("P-256"), EVP_PKEY_free);
    x509_.reset(X509_new(), X509_free);
    X509* x509 = x509_.get();
    X509_set_version(x509, 2);
    static long serial = 1;
    ASN1_INTEGER_set(X509_get_serialNumber(x509), serial++);
    X509_gmtime_adj(X509_getm_notBefore(x509), shape.from_s);
    X509_gmtime_adj(X509_getm_notAfter(x509), shape.to_s);
    X509_NAME* subject = X509_get_subject_name(x509);
    add_entry(subject, "O", "Headrace tests");
    if (!shape.name.empty()) add_entry(subject, "CN", shape.name);
    X509_set_pubkey(x509, key_.get());
    const Certificate& signer = issuer != nullptr ? *issuer : *this;
    X509_set_issuer_name(x509, X509_get_subject_name(signer.x509_.get()));
    if (shape.authority) add_extension(NID_basic_constraints, "critical,CA:TRUE");
    if (!shape.alternative_names.empty()) {
      add_extension(NID_subject_alt_name, shape.alternative_names);
    }
    REQUIRE(X509_sign(x509, signer.key_.get(), EVP_sha256()) != 0);
  }

  std::string certificate() const {
    BIO* bio = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(bio, x509_.get());
    return take_pem(bio);
  }
  std::string key(const char* password = nullptr) const {
    BIO* bio = BIO_new(BIO_s_mem());
    PEM_write_bio_PKCS8PrivateKey(bio, key_.get(),
                                  password != nullptr ? EVP_aes_128_cbc() : nullptr, nullptr, 0,
                                  nullptr, const_cast<char*>(password));
    return take_pem(bio);
  }
  // This authority's revocation list with `revoked` in it.
  std::string revocation_list(const Certificate& revoked) const {
    X509_CRL* list = X509_CRL_new();
    X509_CRL_set_version(list, 1);
    X509_CRL_set_issuer_name(list, X509_get_subject_name(x509_.get()));
    ASN1_TIME* time = ASN1_TIME_new();
    X509_gmtime_adj(time, -3600);
    X509_CRL_set1_lastUpdate(list, time);
    X509_REVOKED* entry = X509_REVOKED_new();
    X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(revoked.x509_.get()));
    X509_REVOKED_set_revocationDate(entry, time);
    X509_CRL_add0_revoked(list, entry);
    X509_gmtime_adj(time, 24 * 3600);
    X509_CRL_set1_nextUpdate(list, time);
    ASN1_TIME_free(time);
    REQUIRE(X509_CRL_sign(list, key_.get(), EVP_sha256()) != 0);
    BIO* bio = BIO_new(BIO_s_mem());
    PEM_write_bio_X509_CRL(bio, list);
    X509_CRL_free(list);
    return take_pem(bio);
  }

  X509* x509() const { return x509_.get(); }
  EVP_PKEY* evp_key() const { return key_.get(); }

 private:
  static void add_entry(X509_NAME* name, const char* field, const std::string& value) {
    X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char*>(value.data()),
                               static_cast<int>(value.size()), -1, 0);
  }
  void add_extension(int nid, const std::string& value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value.c_str());
    REQUIRE(extension != nullptr);
    X509_add_ext(x509_.get(), extension, -1);
    X509_EXTENSION_free(extension);
  }

  std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> x509_;
};

}  // namespace headrace::test
