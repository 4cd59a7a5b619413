#include "transport/listen_address.h"

#include <sys/un.h>

#include <charconv>

namespace headrace {
namespace {

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

Result<ListenAddress> unix_address(std::string_view whole, ListenAddress::Kind kind,
                                   std::string_view path) {
  // "unix://" is an authority that must be empty: "unix:///a" is the path "/a".
  if (kind == ListenAddress::Kind::kUnix && path.starts_with("//")) path.remove_prefix(2);
  // One byte goes to the terminator, or to the leading zero of an abstract name.
  constexpr std::size_t kMax = sizeof(sockaddr_un::sun_path) - 1;
  const std::string quoted = "'" + std::string(whole) + "'";
  if (path.empty()) return Status::invalid_argument(quoted + ": a unix socket needs a path");
  if (path.size() > kMax) {
    return Status::invalid_argument(quoted + ": a unix socket's path has at most " +
                                    std::to_string(kMax) + " bytes");
  }
  if (path.find('\0') != std::string_view::npos) {
    return Status::invalid_argument(quoted + ": a NUL byte in a unix socket's path");
  }
  ListenAddress address;
  address.kind = kind;
  address.path = path;
  return address;
}

}  // namespace

std::string ListenAddress::text() const {
  switch (kind) {
    case Kind::kUnix:
      return "unix:" + path;
    case Kind::kUnixAbstract:
      return "unix-abstract:" + path;
    case Kind::kTcp:
      break;
  }
  const bool brackets = host.find(':') != std::string::npos;
  return (brackets ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Result<ListenAddress> parse_listen_address(std::string_view text) {
  std::string_view rest = text;
  if (take_prefix(rest, "unix-abstract:")) {
    return unix_address(text, ListenAddress::Kind::kUnixAbstract, rest);
  }
  if (take_prefix(rest, "unix:")) return unix_address(text, ListenAddress::Kind::kUnix, rest);
  if (take_prefix(rest, "dns:")) {
    take_prefix(rest, "///");
  } else if (!take_prefix(rest, "ipv4:")) {
    take_prefix(rest, "ipv6:");
  }
  const std::string quoted = "'" + std::string(text) + "'";
  ListenAddress address;
  std::string_view port;
  if (take_prefix(rest, "[")) {
    const std::size_t end = rest.find("]:");
    if (end == std::string_view::npos) {
      return Status::invalid_argument(quoted + " is no address: expected [host]:port");
    }
    address.host = rest.substr(0, end);
    port = rest.substr(end + 2);
  } else {
    const std::size_t colon = rest.find(':');
    if (colon == std::string_view::npos) {
      return Status::invalid_argument(quoted + " is no address: expected host:port, or unix:path");
    }
    if (rest.find(':', colon + 1) != std::string_view::npos) {
      return Status::invalid_argument(quoted + ": an IPv6 address goes in brackets: [host]:port");
    }
    address.host = rest.substr(0, colon);
    port = rest.substr(colon + 1);
  }
  if (address.host.empty()) {
    return Status::invalid_argument(quoted + " names no host; every address is 0.0.0.0 or [::]");
  }
  if (address.host.find('\0') != std::string::npos) {
    return Status::invalid_argument(quoted + ": a NUL byte in the host");
  }
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc() || end != port.data() + port.size()) {
    return Status::invalid_argument(quoted + ": '" + std::string(port) +
                                    "' is no port, which is 0 to 65535");
  }
  return address;
}

}  // namespace headrace
