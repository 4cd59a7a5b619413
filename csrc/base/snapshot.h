// Snapshot<T>: a value that is replaced whole and never changed. Readers never wait: each reading
// thread owns a SnapshotReader that keeps its own reference and takes the lock only when the version
// number moved.
//
// Threads: publish() and load() from any; a SnapshotReader belongs to one thread.
// An idle reader keeps the old value alive until its next get(): who publishes and wants the old
// value gone makes each reader call get() (the server posts that to its I/O loops).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace headrace {

template <class T>
class Snapshot {
 public:
  explicit Snapshot(std::shared_ptr<const T> value = std::make_shared<const T>())
      : value_(std::move(value)) {}

  void publish(std::shared_ptr<const T> value) {
    // The old value is released after the lock: its destructor may be long.
    const std::lock_guard lock(mutex_);
    value_.swap(value);
    version_.fetch_add(1, std::memory_order_release);
  }

  std::shared_ptr<const T> load() const {
    const std::lock_guard lock(mutex_);
    return value_;
  }

  uint64_t version() const { return version_.load(std::memory_order_acquire); }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const T> value_;  // guarded by mutex_
  std::atomic<uint64_t> version_{1};
};

template <class T>
class SnapshotReader {
 public:
  explicit SnapshotReader(const Snapshot<T>& source) : source_(&source) {}

  // The newest value; the reference holds until the next get() on this reader.
  const T& get() {
    const uint64_t version = source_->version();
    if (version != seen_) {
      value_ = source_->load();
      seen_ = version;
    }
    return *value_;
  }

 private:
  const Snapshot<T>* source_;
  std::shared_ptr<const T> value_;
  uint64_t seen_ = 0;
};

}  // namespace headrace
