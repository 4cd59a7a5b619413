#include "frontend/tracing.h"

#include <cmath>
#include <cstring>
#include <random>
#include <utility>

namespace headrace {
namespace {

// Not for secrets: ids must only be unlikely to meet.
uint64_t random_bits() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return generator();
}

template <std::size_t kSize>
void fill(std::array<uint8_t, kSize>& id) {
  for (std::size_t at = 0; at < kSize; at += sizeof(uint64_t)) {
    const uint64_t bits = random_bits() | 1;  // an id of zeros is none
    std::memcpy(id.data() + at, &bits, sizeof(bits));
  }
}

// FNV-1a, then splitmix64's finaliser: the same in every server, so that they trace the same ids.
uint64_t hash_of(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111eb;
  return hash ^ hash >> 31;
}

std::string cut(std::string_view text) { return std::string(text.substr(0, Tracing::kMaxText)); }

}  // namespace

void Tracing::configure(double ratio, std::size_t capacity) {
  {
    const std::lock_guard lock(mutex_);
    capacity_ = capacity;
  }
  everything_.store(ratio >= 1, std::memory_order_relaxed);
  threshold_.store(ratio > 0 && ratio < 1 ? static_cast<uint64_t>(std::ldexp(ratio, 64)) : 0,
                   std::memory_order_relaxed);
  on_.store(capacity > 0, std::memory_order_relaxed);
}

std::unique_ptr<TraceContext> Tracing::begin(std::string_view traceparent,
                                             std::string_view request_id) {
  const std::optional<TraceParent> parent = parse_traceparent(traceparent);
  if (parent) {
    if (!parent->sampled) return nullptr;
  } else if (!everything_.load(std::memory_order_relaxed)) {
    const uint64_t bits = request_id.empty() ? random_bits() : hash_of(request_id);
    if (bits >= threshold_.load(std::memory_order_relaxed)) return nullptr;
  }
  auto context = std::make_unique<TraceContext>();
  if (parent) {
    context->trace_id = parent->trace_id;
    context->parent_id = parent->parent_id;
  } else {
    fill(context->trace_id);
  }
  fill(context->span_id);
  return context;
}

void Tracing::record(const Request& request, TimePoint answered) {
  TraceRecord record;
  record.context = *request.trace;
  record.times = request.times;
  record.answered = answered;
  record.code = request.response.status.code();
  record.streamed = request.call != nullptr;
  record.rows = request.rows;
  record.batch_rows = request.batch_rows;
  record.request_id = cut(request.id);
  record.model = cut(request.model_name);
  if (!request.response.model_version.empty()) record.version = cut(request.response.model_version);
  if (request.arm) record.arm = *request.arm;
  if (request.fallback_from) record.fallback_from = *request.fallback_from;
  const std::lock_guard lock(mutex_);
  if (records_.size() >= capacity_) {
    ++dropped_;
  } else {
    records_.push_back(std::move(record));
  }
}

Tracing::Drained Tracing::drain() {
  Drained drained;
  const std::lock_guard lock(mutex_);
  drained.records.swap(records_);
  drained.dropped = dropped_;
  return drained;
}

}  // namespace headrace
