// Recovery of a ModelVersion's sick instances: probe, quarantine, rebuild, return to service.
#include <exception>
#include <utility>

#include "serving/model_version.h"

namespace headrace {

bool ModelVersion::recover(std::size_t number) {
  InstanceHealth& health = health_[number];
  if (closed_.load(std::memory_order_relaxed)) {
    health.forgiven();  // what is queued gets its answers, whatever they are
    return true;
  }
  const TimePoint began = Clock::now();
  if (probe(*instances_[number])) {
    const TimePoint now = Clock::now();
    health.cleared(now, now - began);
    return true;
  }

  const Status fault = health.fault();
  batcher_->leave(
      number, Status::unavailable("model '" + spec_->name + "', version " + spec_->version_text +
                                  ": every instance is being rebuilt, after: " + fault.message())
                  .with_pushback(std::chrono::ceil<Milliseconds>(rebuild_pushback_)));
  tell(InstanceEvent::Kind::kQuarantined, number, fault);
  instances_[number].reset();
  while (wait_to_rebuild(health.next_rebuild(Clock::now()))) {
    Result<std::unique_ptr<Instance>> made = make_instance();
    Status status = made ? probe(**made) : made.error();
    // A sample that no instance ever ran may be none that the model takes: it proves nothing.
    if (made && (status || !sample_proven_)) {
      instances_[number] = std::move(*made);
      health.rebuilt(status.ok(), Clock::now());
      batcher_->enter(number);
      tell(InstanceEvent::Kind::kReturned, number, fault);
      return true;
    }
    tell(InstanceEvent::Kind::kRebuildFailed, number, status);
  }
  return false;
}

Status ModelVersion::probe(Instance& instance) {
  if (!sample_) return Status(StatusCode::kFailedPrecondition, "there is no sample to probe with");
  Instance* const instances[] = {&instance};
  Status status = run_sample(sample_->inputs(), instances);
  if (status) sample_proven_ = true;
  return status;
}

void ModelVersion::probe_idle(std::size_t number) {
  if (!sample_proven_) return;  // a failure would say nothing
  Status status = probe(*instances_[number]);
  if (!status) health_[number].failed_idle(status, Clock::now());
}

Result<std::unique_ptr<Instance>> ModelVersion::make_instance() noexcept try {
  return model_->make_instance();
} catch (const std::exception& e) {
  return Status::internal(e.what());
} catch (...) {
  return Status::internal("the backend threw an unknown exception");
}

bool ModelVersion::wait_to_rebuild(TimePoint until) {
  std::unique_lock lock(mutex_);
  return !closing_.wait_until(lock, until,
                              [this] { return closed_.load(std::memory_order_relaxed); });
}

void ModelVersion::tell(InstanceEvent::Kind kind, std::size_t instance, const Status& reason) {
  const std::size_t in_service = batcher_->in_service();
  {
    const std::lock_guard lock(mutex_);
    if (kind == InstanceEvent::Kind::kQuarantined) ++quarantines_;
    if (kind != InstanceEvent::Kind::kReturned) {
      fault_ = reason.message();
    } else if (in_service == instances_.size()) {
      fault_.clear();
    }
  }
  if (on_instance_event_) on_instance_event_({kind, instance, in_service, reason});
}

HealthValues ModelVersion::health() const {
  const std::lock_guard lock(mutex_);
  return {instances_.size(), batcher_->in_service(), quarantines_, fault_};
}

}  // namespace headrace
