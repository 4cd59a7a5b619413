#include "transport/connection_cap.h"

#include <arpa/inet.h>

#include <array>
#include <cstring>

namespace headrace {

std::string address_of_peer(std::string_view peer) {
  const std::size_t port = peer.rfind(':');
  if (peer.starts_with("ipv4:") && port > 4) return std::string(peer.substr(0, port));
  const std::size_t bracket = peer.rfind(']');
  if (!peer.starts_with("ipv6:[") || bracket == std::string_view::npos) return {};
  const std::string text(peer.substr(6, bracket - 6));
  struct in6_addr address {};
  if (::inet_pton(AF_INET6, text.c_str(), &address) != 1) return {};
  if (IN6_IS_ADDR_V4MAPPED(&address)) {
    std::array<char, INET_ADDRSTRLEN> v4{};
    ::inet_ntop(AF_INET, &address.s6_addr[12], v4.data(), v4.size());
    return std::string("ipv4:") + v4.data();
  }
  return "ipv6:" + std::string(reinterpret_cast<const char*>(address.s6_addr), 8);
}

ConnectionCap::Admission ConnectionCap::admit(std::string_view peer, Limit& why) {
  std::string address = per_peer_ != 0 ? address_of_peer(peer) : std::string();
  {
    const std::lock_guard lock(mutex_);
    if (open_ >= in_all_) {
      why = Limit::kConnections;
      return nullptr;
    }
    if (!address.empty()) {
      uint32_t& count = by_address_[address];
      if (count >= per_peer_) {
        why = Limit::kConnectionsPerPeer;
        return nullptr;
      }
      ++count;
    }
    ++open_;
  }
  return std::make_shared<const Place>(*this, std::move(address));
}

void ConnectionCap::leave(const std::string& address) {
  const std::lock_guard lock(mutex_);
  --open_;
  if (address.empty()) return;
  const auto it = by_address_.find(address);
  if (--it->second == 0) by_address_.erase(it);
}

std::size_t ConnectionCap::open() const {
  const std::lock_guard lock(mutex_);
  return open_;
}

}  // namespace headrace
