// ListenAddress: where a server listens, from gRPC's spelling.
//
//   parse_listen_address("0.0.0.0:8001")        TCP; "[::1]:0", "localhost:8001", "ipv4:1.2.3.4:5",
//                                               "ipv6:[::]:5" and "dns:host:5" too. Port 0: any free
//   parse_listen_address("unix:/run/h.sock")    a unix socket; "unix:///run/h.sock" is the same
//   parse_listen_address("unix-abstract:name")  Linux's namespace without files
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace headrace {

struct ListenAddress {
  enum class Kind : uint8_t { kTcp, kUnix, kUnixAbstract };

  Kind kind = Kind::kTcp;
  std::string host;   // kTcp: a numeric address without brackets, or a name
  uint16_t port = 0;  // kTcp
  std::string path;   // kUnix: the file; kUnixAbstract: the name

  // As a client would write it: "[::1]:8001", "unix:/run/h.sock".
  std::string text() const;
};

// Errors: INVALID_ARGUMENT naming the text and what is wrong with it.
Result<ListenAddress> parse_listen_address(std::string_view text);

}  // namespace headrace
