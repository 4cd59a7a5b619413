// HealthWatch: grpc.health.v1.Health/Watch (grpc/grpc doc/health-checking.md): the status of a service at
// once, and again each time it is another. An unknown service is SERVICE_UNKNOWN, and is watched too.
//
// Threads: its loop's. Bounds: a client that does not read fills its share of the queue (Http2Options); then
// it is sent the status that holds when it reads on, not the ones between. Names have at most kMaxRequestBytes.
// A watch has no end of its own: end_all() ends them for a server that stops.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>

#include "base/snapshot.h"
#include "frontend/server_state.h"
#include "rpc/call.h"

namespace headrace {

// HealthCheckResponse.ServingStatus (proto/headrace/health.proto).
enum class ServingStatus : uint8_t { kServing = 1, kNotServing = 2, kServiceUnknown = 3 };

ServingStatus serving_status(const HealthTable& table, std::string_view service);

class HealthWatch final : public Handler {
 public:
  static constexpr std::size_t kMaxRequestBytes = 4096;

  HealthWatch(CallSet& calls, const Snapshot<HealthTable>& health)
      : calls_(calls), health_(health), table_(health) {}

  // Tells the watchers what has changed since the last time.
  void refresh();
  // Ends every watch with `status`, and from now on each new one after its first message.
  void end_all(const Status& status);

  std::size_t watchers() const { return watchers_.size(); }

  void on_unary(Call& call, BufferRef message) override;
  void on_writable(Call& call) override;
  void on_cancel(Call& call) override;

 private:
  // A call's context.
  struct Watcher {
    uint64_t call = 0;
    std::string service;
    ServingStatus told = ServingStatus::kServiceUnknown;
    bool waits = false;  // for on_writable
    std::list<Watcher>::iterator self;
  };

  void tell(Call& call, Watcher& watcher, ServingStatus status);
  // tell(), if there is news and room.
  void update(Call& call, Watcher& watcher);

  CallSet& calls_;
  const Snapshot<HealthTable>& health_;
  SnapshotReader<HealthTable> table_;
  uint64_t told_version_ = 0;
  std::list<Watcher> watchers_;
  Status ended_;  // not OK: by end_all()
};

}  // namespace headrace
