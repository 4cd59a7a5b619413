// ConnectionCap: how many connections may be open, in all and from one address.
//
// Threads: any; it is asked once when a connection comes and once when it goes. An Admission outlives
// neither the cap nor, for longer than its connection, anything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "transport/connection_limits.h"

namespace headrace {

class ConnectionCap {
 public:
  // A place; given back by the destructor.
  class Place {
   public:
    Place(ConnectionCap& cap, std::string address) : cap_(cap), address_(std::move(address)) {}
    ~Place() { cap_.leave(address_); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    ConnectionCap& cap_;
    const std::string address_;
  };
  using Admission = std::shared_ptr<const Place>;  // shared: it travels in std::function

  // 0 for `per_peer`: no limit.
  ConnectionCap(uint32_t in_all, uint32_t per_peer) : in_all_(in_all), per_peer_(per_peer) {}

  // `peer` as Stream::peer() says it: "ipv4:127.0.0.1:5000", "ipv6:[::1]:5000"; anything else (a unix
  // socket) counts only in all. Null: no; `why` says which limit.
  Admission admit(std::string_view peer, Limit& why);
  std::size_t open() const;

 private:
  void leave(const std::string& address);

  const uint32_t in_all_;
  const uint32_t per_peer_;
  mutable std::mutex mutex_;
  std::size_t open_ = 0;                                    // guarded by mutex_
  std::unordered_map<std::string, uint32_t> by_address_{};  // guarded by mutex_
};

// The address without its port; an IPv6 one by its /64, which one host usually has all of. Empty: not a
// TCP peer.
std::string address_of_peer(std::string_view peer);

}  // namespace headrace
