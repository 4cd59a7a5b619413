// ServerState: what the control plane told the front-ends: the routes, recognisers, readiness, health, what
// is traced.
// Shared by all I/O threads, read as snapshots.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <string>

#include "base/snapshot.h"
#include "frontend/speech_table.h"
#include "frontend/tracing.h"
#include "routing/router.h"

namespace headrace {

// grpc.health.v1: service name ("" = the server) -> serving. Absent = unknown service.
using HealthTable = std::map<std::string, bool, std::less<>>;

struct ServerState {
  Snapshot<RouteTable> routes;
  Snapshot<SpeechTable> speech;
  Snapshot<HealthTable> health;
  std::atomic<bool> ready{false};
  Tracing tracing;
};

}  // namespace headrace
