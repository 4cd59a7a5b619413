#include "transport/connection_cap.h"

#include <doctest/doctest.h>

#include <vector>

using namespace headrace;

TEST_CASE("an address is a peer without its port, of IPv6 the /64") {
  CHECK(address_of_peer("ipv4:127.0.0.1:5000") == "ipv4:127.0.0.1");
  CHECK(address_of_peer("ipv4:127.0.0.1:1") != address_of_peer("ipv4:127.0.0.2:1"));
  CHECK(address_of_peer("ipv6:[2001:db8::1]:1") == address_of_peer("ipv6:[2001:db8::ffff]:2"));
  CHECK(address_of_peer("ipv6:[2001:db8::1]:1") != address_of_peer("ipv6:[2001:db8:0:1::1]:1"));
  CHECK(address_of_peer("ipv6:[::ffff:10.0.0.1]:7") == address_of_peer("ipv4:10.0.0.1:9"));
  for (const char* other :
       {"unix:", "unix:/run/x:1", "", "ipv4:", "ipv6:[", "ipv6:[]", "ipv6:[x]:1", "ipv6:[::1"}) {
    CAPTURE(other);
    CHECK(address_of_peer(other).empty());
  }
}

TEST_CASE("in all and of one address: the last place is given, none after it, and it comes back") {
  ConnectionCap cap(5, 2);
  Limit why{};
  std::vector<ConnectionCap::Admission> held;
  const auto admit = [&](const char* peer) {
    ConnectionCap::Admission place = cap.admit(peer, why);
    if (place == nullptr) return false;
    held.push_back(std::move(place));
    return true;
  };
  CHECK(admit("ipv4:10.0.0.1:1"));
  CHECK(admit("ipv4:10.0.0.1:2"));
  CHECK_FALSE(admit("ipv4:10.0.0.1:3"));
  CHECK(why == Limit::kConnectionsPerPeer);
  CHECK(admit("ipv4:10.0.0.2:1"));
  CHECK(admit("unix:"));
  CHECK(admit("unix:"));
  CHECK(cap.open() == 5);
  CHECK_FALSE(admit("ipv4:10.0.0.3:1"));
  CHECK(why == Limit::kConnections);
  held.erase(held.begin());
  CHECK(admit("ipv4:10.0.0.1:4"));
  held.clear();
  CHECK(cap.open() == 0);
  ConnectionCap open(100, 0);
  for (int i = 0; i < 100; ++i) {
    held.push_back(open.admit("ipv4:10.0.0.1:1", why));
    CHECK(held.back() != nullptr);
  }
}
