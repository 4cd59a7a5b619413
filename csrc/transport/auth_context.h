// AuthContext: who is at the other end of a connection, under gRPC's names for it
// ("transport_security_type", "x509_common_name", "x509_subject_alternative_name", "x509_pem_cert").
// Made once a TLS connection, when its handshake is over; plain connections have none.
//
// Threads: immutable.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace headrace {

struct AuthContext {
  // In order; a name may come several times (one a subject alternative name).
  std::vector<std::pair<std::string, std::string>> properties;
  // The property that tells the client's identity, x509_subject_alternative_name or else
  // x509_common_name. Empty: the client showed no certificate, it is not authenticated.
  std::string identity_key;

  bool authenticated() const { return !identity_key.empty(); }
  // The values of `name`; the views live as long as this.
  std::vector<std::string_view> values(std::string_view name) const {
    std::vector<std::string_view> found;
    for (const auto& [key, value] : properties) {
      if (key == name) found.push_back(value);
    }
    return found;
  }
  // What the verified certificate says: never what the client merely claims.
  std::vector<std::string_view> peer_identity() const { return values(identity_key); }
};

}  // namespace headrace
