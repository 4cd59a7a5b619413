#include "transport/listen_address.h"

#include <doctest/doctest.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

using namespace headrace;
using Kind = ListenAddress::Kind;

TEST_CASE("gRPC's spellings of an address") {
  const std::vector<std::tuple<std::string, std::string, uint16_t>> tcp = {
      {"0.0.0.0:8001", "0.0.0.0", 8001},       {"[::]:0", "::", 0},
      {"[::1]:65535", "::1", 65535},           {"localhost:1", "localhost", 1},
      {"ipv4:1.2.3.4:5", "1.2.3.4", 5},        {"ipv6:[::1]:5", "::1", 5},
      {"dns:example.com:5", "example.com", 5}, {"dns:///example.com:5", "example.com", 5},
      {"[fe80::1%eth0]:7", "fe80::1%eth0", 7},
  };
  for (const auto& [text, host, port] : tcp) {
    CAPTURE(text);
    const Result<ListenAddress> address = parse_listen_address(text);
    REQUIRE(address);
    CHECK(address->kind == Kind::kTcp);
    CHECK(address->host == host);
    CHECK(address->port == port);
    const Result<ListenAddress> again = parse_listen_address(address->text());
    REQUIRE(again);
    CHECK(again->host == host);
    CHECK(again->port == port);
  }
  const std::vector<std::tuple<std::string, Kind, std::string>> unix_sockets = {
      {"unix:/run/h.sock", Kind::kUnix, "/run/h.sock"},
      {"unix:///run/h.sock", Kind::kUnix, "/run/h.sock"},
      {"unix:relative", Kind::kUnix, "relative"},
      {"unix-abstract:name", Kind::kUnixAbstract, "name"},
      {"unix:" + std::string(107, 'a'), Kind::kUnix, std::string(107, 'a')},
  };
  for (const auto& [text, kind, path] : unix_sockets) {
    CAPTURE(text);
    const Result<ListenAddress> address = parse_listen_address(text);
    REQUIRE(address);
    CHECK(address->kind == kind);
    CHECK(address->path == path);
    CHECK(parse_listen_address(address->text())->path == path);
  }
}

TEST_CASE("what is no address is named, with the reason") {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "expected host:port"},
      {"localhost", "expected host:port"},
      {":8001", "names no host"},
      {"::1:8001", "brackets"},
      {"[::1]", "expected [host]:port"},
      {"[::1]8001", "expected [host]:port"},
      {"[::1", "expected [host]:port"},
      {"a:", "'' is no port"},
      {"a:65536", "'65536' is no port"},
      {"a:-1", "'-1' is no port"},
      {"a:1x", "'1x' is no port"},
      {"unix:", "needs a path"},
      {"unix://", "needs a path"},
      {"unix-abstract:", "needs a path"},
      {"unix:" + std::string(108, 'a'), "at most 107 bytes"},
      {std::string("unix:a\0b", 8), "NUL"},
      {std::string("a\0b:1", 5), "NUL"},
  };
  for (const auto& [text, reason] : bad) {
    CAPTURE(text);
    const Result<ListenAddress> address = parse_listen_address(text);
    REQUIRE_FALSE(address);
    CHECK(address.error().code() == StatusCode::kInvalidArgument);
    CHECK(address.error().message().starts_with("'" + text + "'"));
    CHECK(address.error().message().find(reason) != std::string::npos);
  }
}
