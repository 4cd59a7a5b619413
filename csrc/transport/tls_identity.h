// What a TLS connection's handshake says about the client, as an AuthContext.
#pragma once

#include <memory>

#include "transport/auth_context.h"

struct ssl_st;

namespace headrace {

// After the handshake. The names are gRPC's; those of the certificate are there only if it was verified.
// Text with a NUL byte in it (a trick against C programs) is left out.
std::shared_ptr<const AuthContext> make_auth_context(ssl_st* ssl);

}  // namespace headrace
