// ResponseCache: answers of model versions, kept in memory for the same question. CachedServable: a
// servable with a cache in front of it.
//
// A question that is being answered is not asked again: who asks it meanwhile waits for that answer
// (single flight). Only good answers are kept. The least recently used go when the bytes are full, and
// an answer that would take a large part of them is not kept at all.
//
// Threads: any. Shards have a lock each, held for a look-up, never while a servable works or a request
// is answered.
// Cost of a hit: a hash of the input and one comparison with it; its answer is a view, not a copy. Of a
// miss: a copy of the input and, once, of the answer.
//
//   auto cache = std::make_shared<ResponseCache>(std::size_t{64} << 20);
//   std::shared_ptr<Servable> cached = CachedServable::make(cache, version, {.ttl = 60s});
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/buffer.h"
#include "base/clock.h"
#include "core/request.h"
#include "core/servable.h"

namespace headrace {

class ResponseCache {
 public:
  struct Statistics {
    uint64_t entries = 0;
    uint64_t bytes = 0;
    uint64_t evictions = 0;
  };

  // `bytes`: of keys and answers together.
  explicit ResponseCache(std::size_t bytes);
  ResponseCache(const ResponseCache&) = delete;
  ResponseCache& operator=(const ResponseCache&) = delete;

  std::size_t capacity() const { return shard_bytes_ * kShards; }
  Statistics statistics() const;

 private:
  friend class CachedServable;

  static constexpr std::size_t kShards = 16;
  // What an entry takes beside its key and its answer, about.
  static constexpr std::size_t kOverhead = 256;

  // An answer without its request. Immutable.
  struct Answer {
    std::shared_ptr<const ModelSpec> spec;
    BufferRef bytes;
    std::vector<OutputTensor> outputs;  // views into `bytes` and `spec`, without owners
  };
  struct Entry {
    uint64_t hash = 0;
    uint64_t owner = 0;
    BufferRef key;
    std::shared_ptr<const Answer> answer;  // null: in flight
    std::vector<RequestPtr> waiting;       // for the flight
    std::size_t bytes = 0;
    TimePoint expires = kNever;
  };
  // Most recently used first; flights are in `flights`.
  struct Shard {
    std::mutex mutex;
    std::list<Entry> entries;
    std::list<Entry> flights;
    std::unordered_map<uint64_t, std::list<Entry>::iterator> by_hash;
    std::size_t bytes = 0;
    uint64_t evictions = 0;
  };

  Shard& shard_of(uint64_t hash) { return shards_[hash >> 60]; }
  // Its shard is locked.
  void drop(Shard& shard, std::list<Entry>::iterator entry);
  // Forgets what `owner` had answered.
  void forget(uint64_t owner);

  const std::size_t shard_bytes_;
  const uint64_t seed_;
  std::atomic<uint64_t> last_owner_{0};
  mutable std::array<Shard, kShards> shards_;
};

struct CacheOptions {
  Nanoseconds ttl{0};  // 0: as long as the servable lives
  // While less than this share of look-ups finds an answer, only one question in sixteen is looked up,
  // always the same ones, so that the share can be seen to rise again.
  double bypass_below = 0.02;
};

class CachedServable final : public Servable,
                             public Completion,
                             public std::enable_shared_from_this<CachedServable> {
 public:
  struct Statistics {
    uint64_t hits = 0;    // answered from the cache, or by another request's flight
    uint64_t hit_ns = 0;  // from arrival to answer
    uint64_t misses = 0;
    uint64_t miss_ns = 0;   // looking up and keeping the answer
    uint64_t bypassed = 0;  // not looked up
    bool bypassing = false;
  };

  static std::shared_ptr<CachedServable> make(std::shared_ptr<ResponseCache> cache,
                                              std::shared_ptr<Servable> servable,
                                              CacheOptions options);
  ~CachedServable() override;

  void submit(RequestPtr request) override;
  void submit_together(std::span<RequestPtr> requests) override;
  const ModelSpec& spec() const override { return servable_->spec(); }
  bool ready() const noexcept override { return servable_->ready(); }
  void gave_up() noexcept override { servable_->gave_up(); }

  // The servable has answered the first of a flight.
  void complete(RequestPtr request) noexcept override;

  Statistics statistics() const;

 private:
  CachedServable(std::shared_ptr<ResponseCache> cache, std::shared_ptr<Servable> servable,
                 CacheOptions options);
  // True: answered, or waiting for a flight. False: the servable is to answer it.
  bool look_up(RequestPtr& request);
  bool bypass(uint64_t hash);
  void count_look_up(bool hit);
  // Null for a failure.
  static std::shared_ptr<const ResponseCache::Answer> kept(const Request& request);
  void answer_with(const ResponseCache::Answer& answer, RequestPtr request);
  // Ends the flight of `request`; its waiting requests.
  std::vector<RequestPtr> land(Request& request,
                               std::shared_ptr<const ResponseCache::Answer> answer);

  const std::shared_ptr<ResponseCache> cache_;
  const std::shared_ptr<Servable> servable_;
  const CacheOptions options_;
  const uint64_t owner_;
  std::atomic<uint64_t> hits_{0}, hit_ns_{0}, misses_{0}, miss_ns_{0}, bypassed_{0};
  // Of the last few look-ups: hits in the upper half, all in the lower.
  std::atomic<uint64_t> window_{0};
  std::atomic<bool> bypassing_{false};
};

}  // namespace headrace
