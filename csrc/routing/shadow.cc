#include "routing/shadow.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

namespace headrace {
namespace {

bool chance(double share) {
  if (share >= 1.0) return true;
  thread_local std::minstd_rand random(std::random_device{}());
  return std::uniform_real_distribution<double>(0, 1)(random) < share;
}

template <class T>
TensorDifference compare_values(const TensorView& a, const TensorView& b, double tolerance) {
  TensorDifference found;
  for (std::size_t at = 0; at + sizeof(T) <= a.data.size(); at += sizeof(T)) {
    T x, y;
    std::memcpy(&x, a.data.data() + at, sizeof(T));
    std::memcpy(&y, b.data.data() + at, sizeof(T));
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    const double difference = std::abs(static_cast<double>(x) - static_cast<double>(y));
    if (std::isfinite(difference)) found.largest = std::max(found.largest, difference);
    // Also where one of them is not finite.
    if (!(difference <= tolerance * std::max(1.0, std::abs(static_cast<double>(x))))) {
      found.different = true;
    }
  }
  return found;
}

void raise_to(std::atomic<double>& most, double value) {
  double seen = most.load(std::memory_order_relaxed);
  while (value > seen && !most.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

}  // namespace

TensorDifference compare_tensors(const TensorView& a, const TensorView& b, double tolerance) {
  if (a.dtype != b.dtype || !(a.shape == b.shape) || a.data.size() != b.data.size()) {
    return {true, 0};
  }
  if (a.data.empty() || std::memcmp(a.data.data(), b.data.data(), a.data.size()) == 0) return {};
  if (a.dtype == DType::kFp32) return compare_values<float>(a, b, tolerance);
  if (a.dtype == DType::kFp64) return compare_values<double>(a, b, tolerance);
  return {true, 0};
}

ShadowTally::Values ShadowTally::read() const {
  Values values;
  values.compared = compared_.load(std::memory_order_relaxed);
  values.different = different_.load(std::memory_order_relaxed);
  values.failed = failed_.load(std::memory_order_relaxed);
  values.dropped = dropped_.load(std::memory_order_relaxed);
  values.largest_difference = largest_difference_.load(std::memory_order_relaxed);
  return values;
}

// A request and its copy, until both are answered.
class Shadow::Pair final : public Completion, public std::enable_shared_from_this<Pair> {
 public:
  Pair(std::shared_ptr<ShadowTally> tally, double tolerance)
      : tally_(std::move(tally)), tolerance_(tolerance), original_(*this), copy_(*this) {
    tally_->in_flight_.fetch_add(1, std::memory_order_relaxed);
  }
  ~Pair() override { tally_->in_flight_.fetch_sub(1, std::memory_order_relaxed); }

  RequestPtr begin(Request& request) {
    request.begin_detour(original_, shared_from_this());
    auto* made = new Request(copy_);
    RequestPtr copied(made);
    copied->message = request.message;
    copied->converted = request.converted;
    copied->model_name = request.model_name;
    copied->id = request.id;
    copied->inputs = request.inputs;
    copied->outputs = request.outputs;
    copied->parameters = request.parameters;
    copied->deadline = request.deadline;
    copied->times.arrived = request.times.arrived;
    copy_.self = shared_from_this();
    return copied;
  }

  // Never an answer's way itself: its sides are.
  void complete(RequestPtr) noexcept override {}

 private:
  struct Side final : Completion {
    explicit Side(Pair& owner) : pair(&owner) {}
    void complete(RequestPtr request) noexcept override {
      pair->answered(*this, std::move(request));
    }
    Pair* pair;
    std::shared_ptr<Pair> self;  // the copy's: nobody else keeps the pair for it
    StatusCode code = StatusCode::kOk;
    std::shared_ptr<const ModelSpec> spec;
    std::vector<OutputTensor> outputs;
  };

  void answered(Side& side, RequestPtr request) noexcept {
    const std::shared_ptr<Pair> self = shared_from_this();
    side.code = request->response.status.code();
    side.spec = request->spec;
    if (side.code == StatusCode::kOk) side.outputs = request->response.outputs;
    if (&side == &original_) {
      const std::shared_ptr<const void> kept = request->end_detour();
      answer(std::move(request));
    } else {
      request.reset();
      copy_.self.reset();
    }
    if (waiting_.fetch_sub(1, std::memory_order_acq_rel) == 1) compare();
  }

  void compare() noexcept {
    if (original_.code != StatusCode::kOk) return;  // says nothing about the shadow
    if (copy_.code != StatusCode::kOk) {
      // A client that left or waited too short is not the shadow's failure.
      if (copy_.code != StatusCode::kCancelled && copy_.code != StatusCode::kDeadlineExceeded) {
        tally_->failed_.fetch_add(1, std::memory_order_relaxed);
      }
      return;
    }
    bool different = false;
    for (const OutputTensor& mine : original_.outputs) {
      const OutputTensor* other = nullptr;
      for (const OutputTensor& candidate : copy_.outputs) {
        if (candidate.name == mine.name) other = &candidate;
      }
      if (other == nullptr) {
        different = true;
        continue;
      }
      const TensorDifference found = compare_tensors(mine.tensor, other->tensor, tolerance_);
      different = different || found.different;
      raise_to(tally_->largest_difference_, found.largest);
    }
    tally_->compared_.fetch_add(1, std::memory_order_relaxed);
    if (different) tally_->different_.fetch_add(1, std::memory_order_relaxed);
  }

  const std::shared_ptr<ShadowTally> tally_;
  const double tolerance_;
  Side original_;
  Side copy_;
  std::atomic<int> waiting_{2};
};

Shadow::Shadow(std::shared_ptr<Servable> servable, std::shared_ptr<Servable> shadow,
               std::shared_ptr<ShadowTally> tally, ShadowOptions options)
    : servable_(std::move(servable)),
      shadow_(std::move(shadow)),
      tally_(std::move(tally)),
      options_(options) {}

RequestPtr Shadow::copy(Request& request) {
  if (!chance(options_.share)) return nullptr;
  if (tally_->in_flight_.load(std::memory_order_relaxed) >= options_.most_in_flight) {
    tally_->dropped_.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
  return std::make_shared<Pair>(tally_, options_.tolerance)->begin(request);
}

void Shadow::submit(RequestPtr request) {
  RequestPtr copied = copy(*request);
  servable_->submit(std::move(request));
  if (copied != nullptr) shadow_->submit(std::move(copied));
}

void Shadow::submit_together(std::span<RequestPtr> requests) {
  thread_local std::vector<RequestPtr> copies;
  std::vector<RequestPtr> made = std::move(copies);  // an answer may bring more requests here
  for (RequestPtr& request : requests) {
    if (RequestPtr copied = copy(*request)) made.push_back(std::move(copied));
  }
  servable_->submit_together(requests);
  // Each by itself: queued, never executed by this thread.
  for (RequestPtr& copied : made) shadow_->submit(std::move(copied));
  made.clear();
  copies = std::move(made);
}

}  // namespace headrace
