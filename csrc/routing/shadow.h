// Shadow: a servable whose requests are also given, in part, to another one, whose answers nobody gets:
// they are compared. For trying a version on real requests before any client depends on it.
//
// The client's answer waits for nothing: the copy shares the request's bytes and goes its own way. Copies
// that would be too many at a time are not made. What is compared are the outputs that both answered.
//
// Threads: any. No lock; an allocation a copied request, none for the others.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/request.h"
#include "core/servable.h"

namespace headrace {

// What the comparison found; it outlives route tables.
class ShadowTally {
 public:
  struct Values {
    uint64_t compared = 0;  // both answered
    uint64_t different = 0;
    uint64_t failed = 0;            // the shadow alone
    uint64_t dropped = 0;           // not copied: too many were on their way
    double largest_difference = 0;  // of floating-point values
  };
  Values read() const;

 private:
  friend class Shadow;
  std::atomic<uint64_t> compared_{0}, different_{0}, failed_{0}, dropped_{0};
  std::atomic<std::size_t> in_flight_{0};
  std::atomic<double> largest_difference_{0};
};

struct ShadowOptions {
  double share = 1.0;  // of the requests that are copied
  // |a - b| <= tolerance x max(1, |a|) is no difference, for FP32 and FP64; other types must be equal.
  double tolerance = 1e-3;
  std::size_t most_in_flight = 64;
};

class Shadow final : public Servable {
 public:
  // None null.
  Shadow(std::shared_ptr<Servable> servable, std::shared_ptr<Servable> shadow,
         std::shared_ptr<ShadowTally> tally, ShadowOptions options);

  void submit(RequestPtr request) override;
  void submit_together(std::span<RequestPtr> requests) override;
  const ModelSpec& spec() const override { return servable_->spec(); }
  bool ready() const noexcept override { return servable_->ready(); }
  void gave_up() noexcept override { servable_->gave_up(); }

 private:
  class Pair;
  // The copy to submit once its original is on its way; null: none.
  RequestPtr copy(Request& request);

  const std::shared_ptr<Servable> servable_;
  const std::shared_ptr<Servable> shadow_;
  const std::shared_ptr<ShadowTally> tally_;
  const ShadowOptions options_;
};

struct TensorDifference {
  bool different = false;  // in dtype or shape, or in values by more than the tolerance
  double largest = 0;      // |a - b| of floating-point values
};
// NaN equals NaN.
TensorDifference compare_tensors(const TensorView& a, const TensorView& b, double tolerance);

}  // namespace headrace
