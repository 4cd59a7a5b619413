// RouteTable: who answers a request for (model, version). Published whole by the control plane and
// swapped atomically; a request sees one table from its lookup on.
//
// Threads: RouteTable is immutable; lookups are const.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "core/servable.h"
#include "routing/traffic_split.h"

namespace headrace {

struct ModelRoutes {
  // By version number. Null: known, but not ready (loading or unloading).
  std::map<int64_t, std::shared_ptr<Servable>> versions;
  // Answers requests that name no version: the highest ready one. Null: none is ready.
  std::shared_ptr<Servable> default_version;
  // Names that clients may use in the place of a version number ("stable", "canary"). Without a
  // servable: not ready.
  std::map<std::string, Arm, std::less<>> labels{};
  // Shares the requests that name no version; empty: default_version has all.
  TrafficSplit split{};
  // Its old version was unloaded to make room for the one that is being loaded: UNAVAILABLE for now.
  bool replacing = false;
};

struct Route {
  std::shared_ptr<Servable> servable;
  std::shared_ptr<const std::string> arm;  // null: it was no choice between arms
};

class RouteTable {
 public:
  RouteTable() = default;
  // By model name. A model without versions is known but has none available. `starting`: more are
  // being loaded, so what is not found is UNAVAILABLE for now: clients may try again, or elsewhere.
  explicit RouteTable(std::map<std::string, ModelRoutes, std::less<>> models, bool starting = false)
      : models_(std::move(models)), starting_(starting) {}

  // Where a request goes; its version is a number or a label, empty for the model's choice.
  // Errors (Triton's texts): NOT_FOUND for an unknown model or version, UNAVAILABLE for one that is
  // not ready, INVALID_ARGUMENT for a version that is no positive integer.
  Result<Route> route(const Request& request) const;
  // The same without a request: what names no version goes to the default.
  Result<std::shared_ptr<Servable>> find(std::string_view model, std::string_view version) const;

 private:
  Status missing(std::string text) const;

  std::map<std::string, ModelRoutes, std::less<>> models_;
  bool starting_ = false;
};

}  // namespace headrace
