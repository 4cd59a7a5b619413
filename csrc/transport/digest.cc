#include "transport/digest.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

namespace headrace {

Sha256 sha256(std::string_view text) {
  Sha256 digest;
  ::SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
           reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

bool equal_in_constant_time(const Sha256& a, const Sha256& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace headrace
