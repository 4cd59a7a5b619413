// TrafficSplit: which arm of a model ("canary", "stable") answers a request that names no version:
// by share, and always the same one for the same key.
//
// Values; any thread. Cost: a hash of the key, no allocation.
// Arms take ranges of the hash in their order, so an arm whose share grows keeps every key it had:
// list the candidate first, and a user who saw it goes on seeing it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/request.h"
#include "core/servable.h"

namespace headrace {

struct Arm {
  std::shared_ptr<const std::string> label;  // what the response calls it
  std::shared_ptr<Servable> servable;
  double share = 0;
};

class TrafficSplit {
 public:
  TrafficSplit() = default;
  // Shares are relative to their sum, which must be > 0; no servable may be null. `key`: the request
  // parameter whose value decides (a user, a session). Requests without it are spread by their id,
  // and those without an id at random. `salt`: makes splits independent of each other.
  TrafficSplit(std::vector<Arm> arms, std::string key, std::string_view salt);

  bool empty() const { return arms_.empty(); }
  const Arm& choose(const Request& request) const;

 private:
  std::vector<Arm> arms_;
  std::vector<uint64_t> upto_;  // arm i takes what is below, and not below that of i - 1
  std::string key_;
  uint64_t salt_ = 0;
};

}  // namespace headrace
