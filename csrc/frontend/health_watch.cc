#include "frontend/health_watch.h"

#include <iterator>
#include <utility>
#include <vector>

#include "frontend/probe_codec.h"

namespace headrace {

ServingStatus serving_status(const HealthTable& table, std::string_view service) {
  const auto found = table.find(service);
  if (found == table.end()) return ServingStatus::kServiceUnknown;
  return found->second ? ServingStatus::kServing : ServingStatus::kNotServing;
}

void HealthWatch::on_unary(Call& call, BufferRef message) {
  const Result<NameAndVersion> wanted = decode_name_and_version(message.view());
  if (!wanted) return call.fail(wanted.error());
  Watcher& watcher = watchers_.emplace_back();
  watcher.self = std::prev(watchers_.end());
  watcher.call = call.id();
  watcher.service = wanted->name;
  call.context = &watcher;
  tell(call, watcher, serving_status(table_.get(), watcher.service));
  if (ended_.ok()) return;
  watchers_.erase(watcher.self);
  call.finish(ended_);
}

void HealthWatch::tell(Call& call, Watcher& watcher, ServingStatus status) {
  watcher.told = status;
  std::vector<BodyPiece> none;
  call.send_message(encode_number(static_cast<uint32_t>(status)), none);
}

void HealthWatch::update(Call& call, Watcher& watcher) {
  const ServingStatus status = serving_status(table_.get(), watcher.service);
  if (status == watcher.told) return;
  watcher.waits = !call.writable();
  if (!watcher.waits) tell(call, watcher, status);
}

void HealthWatch::refresh() {
  const uint64_t version = health_.version();
  table_.get();
  if (version == told_version_) return;
  told_version_ = version;  // the table may be newer: then the next refresh() finds nothing new
  for (Watcher& watcher : watchers_) {
    if (!watcher.waits) update(*calls_.find(watcher.call), watcher);
  }
}

void HealthWatch::on_writable(Call& call) {
  auto& watcher = *static_cast<Watcher*>(call.context);
  watcher.waits = false;
  update(call, watcher);
}

void HealthWatch::end_all(const Status& status) {
  ended_ = status;
  const std::list<Watcher> watchers = std::exchange(watchers_, {});
  for (const Watcher& watcher : watchers) calls_.find(watcher.call)->finish(status);
}

void HealthWatch::on_cancel(Call& call) {
  watchers_.erase(static_cast<Watcher*>(call.context)->self);
}

}  // namespace headrace
