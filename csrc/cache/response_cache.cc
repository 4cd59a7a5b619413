#include "cache/response_cache.h"

#include <cstring>
#include <new>
#include <random>
#include <utility>

#include "cache/request_key.h"

namespace headrace {
namespace {

constexpr uint64_t kWindow = 1024;     // look-ups after which the hit rate is looked at
constexpr uint64_t kSampleMask = 0xf;  // of the hash: who is looked up while bypassing
constexpr uint64_t kHit = uint64_t{1} << 32;
constexpr std::size_t kAlignment = 64;

uint64_t random_seed() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

std::size_t aligned(std::size_t size) { return (size + kAlignment - 1) & ~(kAlignment - 1); }

// Whether the others that ask the same are to ask the servable themselves: what went wrong with this
// request says nothing about them.
bool is_of_its_own(const Request& request) {
  switch (request.response.status.code()) {
    case StatusCode::kOk:  // but there was no memory to keep it
    case StatusCode::kCancelled:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kResourceExhausted:
    case StatusCode::kUnavailable:
      return true;
    default:
      return request.cancelled();
  }
}

}  // namespace

ResponseCache::ResponseCache(std::size_t bytes)
    : shard_bytes_(bytes / kShards), seed_(random_seed()) {}

ResponseCache::Statistics ResponseCache::statistics() const {
  Statistics all;
  for (Shard& shard : shards_) {
    const std::lock_guard lock(shard.mutex);
    all.entries += shard.entries.size();
    all.bytes += shard.bytes;
    all.evictions += shard.evictions;
  }
  return all;
}

void ResponseCache::drop(Shard& shard, std::list<Entry>::iterator entry) {
  shard.bytes -= entry->bytes;
  shard.by_hash.erase(entry->hash);
  shard.entries.erase(entry);
}

void ResponseCache::forget(uint64_t owner) {
  for (Shard& shard : shards_) {
    const std::lock_guard lock(shard.mutex);
    for (auto entry = shard.entries.begin(); entry != shard.entries.end();) {
      const auto next = std::next(entry);
      if (entry->owner == owner) drop(shard, entry);
      entry = next;
    }
  }
}

std::shared_ptr<CachedServable> CachedServable::make(std::shared_ptr<ResponseCache> cache,
                                                     std::shared_ptr<Servable> servable,
                                                     CacheOptions options) {
  return std::shared_ptr<CachedServable>(
      new CachedServable(std::move(cache), std::move(servable), options));
}

CachedServable::CachedServable(std::shared_ptr<ResponseCache> cache,
                               std::shared_ptr<Servable> servable, CacheOptions options)
    : cache_(std::move(cache)),
      servable_(std::move(servable)),
      options_(options),
      owner_(cache_->last_owner_.fetch_add(1, std::memory_order_relaxed) + 1) {}

CachedServable::~CachedServable() { cache_->forget(owner_); }

void CachedServable::submit(RequestPtr request) {
  if (!look_up(request)) servable_->submit(std::move(request));
}

void CachedServable::submit_together(std::span<RequestPtr> requests) {
  std::size_t left = 0;
  for (RequestPtr& request : requests) {
    if (!look_up(request)) std::swap(requests[left++], request);
  }
  if (left != 0) servable_->submit_together(requests.first(left));
}

bool CachedServable::look_up(RequestPtr& request) {
  const uint64_t hash = hash_key(owner_, *request, cache_->seed_);
  if (bypass(hash)) {
    bypassed_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  const TimePoint now = Clock::now();
  if (request->times.arrived == TimePoint{}) request->times.arrived = now;
  // What could not be kept with any answer is not copied.
  const std::size_t key_bytes = key_size(*request);
  const bool too_large = key_bytes + ResponseCache::kOverhead > cache_->shard_bytes_;

  ResponseCache::Shard& shard = cache_->shard_of(hash);
  std::shared_ptr<const ResponseCache::Answer> answer;
  {
    std::unique_lock lock(shard.mutex);
    auto found = shard.by_hash.find(hash);
    if (found != shard.by_hash.end() && found->second->expires <= now) {
      cache_->drop(shard, found->second);
      found = shard.by_hash.end();
    }
    if (found != shard.by_hash.end()) {
      ResponseCache::Entry& entry = *found->second;
      // Two questions of one hash: the one that is there stays.
      if (!matches(std::as_const(entry.key).span(), owner_, *request)) {
        lock.unlock();
        count_look_up(false);
        return false;
      }
      if (entry.answer == nullptr) {
        entry.waiting.push_back(std::move(request));
        lock.unlock();
        count_look_up(true);
        return true;
      }
      shard.entries.splice(shard.entries.begin(), shard.entries, found->second);
      answer = entry.answer;
    }
  }
  if (answer != nullptr) {
    count_look_up(true);
    answer_with(*answer, std::move(request));
    return true;
  }
  count_look_up(false);
  if (too_large) return false;

  // Copied without the lock; somebody else may begin the same flight meanwhile.
  ResponseCache::Entry flight;
  flight.hash = hash;
  flight.owner = owner_;
  flight.key = key_of(owner_, *request);
  {
    const std::lock_guard lock(shard.mutex);
    if (shard.by_hash.contains(hash)) return false;
    shard.flights.push_front(std::move(flight));
    shard.by_hash.emplace(hash, shard.flights.begin());
  }
  request->begin_detour(*this, shared_from_this());
  request->detour().step = hash;
  miss_ns_.fetch_add(elapsed_ns(now, Clock::now()), std::memory_order_relaxed);
  return false;
}

bool CachedServable::bypass(uint64_t hash) {
  return (hash & kSampleMask) != 0 && bypassing_.load(std::memory_order_relaxed);
}

void CachedServable::count_look_up(bool hit) {
  (hit ? hits_ : misses_).fetch_add(1, std::memory_order_relaxed);
  const uint64_t added = hit ? kHit + 1 : 1;
  const uint64_t window = window_.fetch_add(added, std::memory_order_relaxed) + added;
  const uint64_t look_ups = window & (kHit - 1);
  if (look_ups != kWindow) return;
  bypassing_.store(
      static_cast<double>(window >> 32) < options_.bypass_below * static_cast<double>(look_ups),
      std::memory_order_relaxed);
  window_.fetch_sub(window, std::memory_order_relaxed);
}

std::shared_ptr<const ResponseCache::Answer> CachedServable::kept(const Request& request) try {
  if (!request.response.status.ok()) return nullptr;
  auto answer = std::make_shared<ResponseCache::Answer>();
  answer->spec = request.spec;
  std::size_t total = 0;
  for (const OutputTensor& output : request.response.outputs) {
    total += aligned(output.tensor.data.size());
  }
  answer->bytes = BufferRef::allocate(total);
  answer->outputs.reserve(request.response.outputs.size());
  std::byte* at = answer->bytes.data();
  for (const OutputTensor& output : request.response.outputs) {
    const std::span<const std::byte> data = output.tensor.data;
    if (!data.empty()) std::memcpy(at, data.data(), data.size());
    answer->outputs.push_back(
        {output.name, {output.tensor.dtype, output.tensor.shape, {at, data.size()}}, {}});
    at += aligned(data.size());
  }
  return answer;
} catch (const std::bad_alloc&) {
  return nullptr;
}

void CachedServable::answer_with(const ResponseCache::Answer& kept, RequestPtr request) {
  request->spec = kept.spec;
  Response& response = request->response;
  response.model_name = kept.spec->name;
  response.model_version = kept.spec->version_text;
  for (const OutputTensor& output : kept.outputs) {
    response.outputs.push_back({output.name, output.tensor, kept.bytes});
  }
  hit_ns_.fetch_add(elapsed_ns(request->times.arrived, Clock::now()), std::memory_order_relaxed);
  answer(std::move(request));
}

std::vector<RequestPtr> CachedServable::land(Request& request,
                                             std::shared_ptr<const ResponseCache::Answer> answer) {
  const uint64_t hash = request.detour().step;
  ResponseCache::Shard& shard = cache_->shard_of(hash);
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.by_hash.find(hash);
  const std::list<ResponseCache::Entry>::iterator flight = found->second;
  std::vector<RequestPtr> waiting = std::move(flight->waiting);
  flight->waiting.clear();
  const std::size_t bytes =
      answer == nullptr ? 0 : flight->key.size() + answer->bytes.size() + ResponseCache::kOverhead;
  if (answer == nullptr || bytes > cache_->shard_bytes_) {
    shard.by_hash.erase(found);
    shard.flights.erase(flight);
    return waiting;
  }
  flight->answer = std::move(answer);
  flight->bytes = bytes;
  if (options_.ttl.count() > 0) flight->expires = saturating_add(Clock::now(), options_.ttl);
  shard.entries.splice(shard.entries.begin(), shard.flights, flight);
  shard.bytes += bytes;
  while (shard.bytes > cache_->shard_bytes_) {
    cache_->drop(shard, std::prev(shard.entries.end()));
    ++shard.evictions;
  }
  return waiting;
}

void CachedServable::complete(RequestPtr request) noexcept {
  const TimePoint began = Clock::now();
  const std::shared_ptr<const ResponseCache::Answer> answered = kept(*request);
  std::vector<RequestPtr> waiting = land(*request, answered);
  const Status status = request->response.status;
  const bool of_its_own = answered == nullptr && is_of_its_own(*request);
  miss_ns_.fetch_add(elapsed_ns(began, Clock::now()), std::memory_order_relaxed);
  // This object may end with the detour, and `answered` goes on.
  const std::shared_ptr<const void> self = request->end_detour();
  answer(std::move(request));
  if (of_its_own) {
    // Each by itself: a flight of the next could fail in the same way, and so on.
    // Queued, not executed here: this may be an instance's thread.
    for (RequestPtr& other : waiting) servable_->submit(std::move(other));
    return;
  }
  for (RequestPtr& other : waiting) {
    if (answered != nullptr) {
      answer_with(*answered, std::move(other));
    } else {
      answer(std::move(other), status);
    }
  }
}

CachedServable::Statistics CachedServable::statistics() const {
  Statistics values;
  values.hits = hits_.load(std::memory_order_relaxed);
  values.hit_ns = hit_ns_.load(std::memory_order_relaxed);
  values.misses = misses_.load(std::memory_order_relaxed);
  values.miss_ns = miss_ns_.load(std::memory_order_relaxed);
  values.bypassed = bypassed_.load(std::memory_order_relaxed);
  values.bypassing = bypassing_.load(std::memory_order_relaxed);
  return values;
}

}  // namespace headrace
