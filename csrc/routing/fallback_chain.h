// FallbackChain: a model version with others to turn to. When it refuses, fails, is too slow or too
// unsure, the request goes to the next step: another version, another model, a rule, a person. The
// client sees an error only when no step has an answer.
//
// Each try is a request of its own (an Attempt) under the client's one: a try that hangs is given up
// in time for the next, and its late answer is dropped. Every request is answered exactly once.
//
// Triggers (core/request.h) and what raises them:
//   invalid_input   INVALID_ARGUMENT, OUT_OF_RANGE
//   low_confidence  the answer's confidence is below `accept.threshold`; or the step's own policy
//                   doubts it
//   error           every other failure
//   overload        RESOURCE_EXHAUSTED
//   circuit_open    a breaker refused it
//   deadline        less time is left than the step's p95, or the step's time is over
//   drift           set_drift(true)
// The first trigger decides which steps are tried (`on`; `when` in policy.yaml) and is what the
// response says. Cancelled requests are tried no further.
// Deadlines: the client's, or `budget` after the arrival if that is sooner; answers are given `margin`
// (a tenth of it, within 2 to 100 ms) before. No try is begun that takes longer than is left, going
// by its p95; a rule always is in time. A try is given up when the step after it would be too late.
// An answer that is not sure enough is kept: when no later step does better, the best one is given,
// marked `doubtful`.
// Threads: submit() from any; tries go on on the thread that answered the one before, or the alarms'.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/confidence.h"
#include "core/request.h"
#include "core/servable.h"
#include "routing/alarms.h"
#include "routing/human_desk.h"
#include "routing/latency_quantile.h"
#include "routing/rule.h"

namespace headrace {

// A servable that changes, or is not there for a while. Any thread.
class Link {
 public:
  explicit Link(std::shared_ptr<Servable> servable = nullptr) : servable_(std::move(servable)) {}
  void point_to(std::shared_ptr<Servable> servable);
  std::shared_ptr<Servable> get() const;  // null: nobody

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Servable> servable_;  // guarded by mutex_
};

using Triggers = std::bitset<kTriggers>;
inline bool has(const Triggers& triggers, Trigger trigger) {
  return triggers.test(static_cast<std::size_t>(trigger));
}
// All but invalid input: a client's mistake is the client's to hear of.
Triggers usual_triggers();

struct ChainStep {
  // One of the three.
  std::shared_ptr<Link> target;
  std::shared_ptr<const Rule> rule;
  std::shared_ptr<HumanDesk> desk;

  std::string name;  // "digits/6", "rule", "human:nurses": what the response and the metrics say
  Triggers on = usual_triggers();
  Nanoseconds timeout{0};  // of a try at the target, or how long to wait for the person; 0: none
  std::string queue;       // of the desk
  bool payload = false;    // the desk gets the request's inputs and the best answer
};

struct Accept {
  std::string output;
  Activation activation = Activation::kNone;
  Measure measure = Measure::kProbability;
  float threshold = 0;  // an answer below it is not sure enough
};

struct ChainOptions {
  std::string name;              // of the first servable: "digits/7"
  std::vector<ChainStep> steps;  // after it
  std::optional<Accept> accept;
  Nanoseconds budget{0};  // from the arrival to the answer; 0: the client's deadline
  std::function<TimePoint()> now = &Clock::now;
};

class FallbackChain final : public Servable, public std::enable_shared_from_this<FallbackChain> {
 public:
  // Errors: INVALID_ARGUMENT when the output to judge by is none of the model's, or not of
  // floating-point numbers, or a step is not one of the three.
  static Result<std::shared_ptr<FallbackChain>> make(std::shared_ptr<Servable> first,
                                                     ChainOptions options, Alarms& alarms);

  void submit(RequestPtr request) override;
  void submit_together(std::span<RequestPtr> requests) override;
  const ModelSpec& spec() const override { return first_->spec(); }
  // Whether the first servable is, or a step that takes over after an error.
  bool ready() const noexcept override;

  void set_drift(bool drifting) { drift_.store(drifting, std::memory_order_relaxed); }
  bool drift() const { return drift_.load(std::memory_order_relaxed); }

  struct Count {
    Trigger trigger;
    std::string target;  // a step's name; "doubtful": the best answer; "none": it failed
    uint64_t requests;
  };
  // How the requests ended that had a trigger; without the zeros.
  std::vector<Count> counts() const;
  // Of the answers of a step (0: the first servable) to this chain; 0: not known.
  Nanoseconds p95(std::size_t step = 0) const { return latencies_[step].p95(options_.now()); }

 private:
  class Pursuit;
  struct Attempt;
  static constexpr uint32_t kMaxDepth = 8;
  static constexpr std::size_t kNoStep = SIZE_MAX;

  FallbackChain(std::shared_ptr<Servable> first, ChainOptions options, Alarms& alarms);

  // Step 0 is `first_`; step i > 0 is options_.steps[i - 1].
  const ChainStep& step(std::size_t i) const { return options_.steps[i - 1]; }
  std::size_t steps() const { return names_.size(); }
  // Null: not there, or no servable at all.
  std::shared_ptr<Servable> target_of(std::size_t i) const;
  // The next step that takes a request with this trigger and can be in time; kNoStep: none.
  // `answers`: not a person, either.
  std::size_t next_step(std::size_t after, Trigger why, TimePoint now, TimePoint cutoff,
                        bool answers = false) const;
  // When a try of step `i` that begins now is to be given up; kNever: not before its deadline.
  TimePoint give_up_at(std::size_t i, Trigger why, TimePoint now, TimePoint cutoff,
                       bool has_best) const;

  // Ends of a request, beside the steps.
  std::size_t ended_doubtful() const { return steps(); }
  std::size_t ended_failed() const { return steps() + 1; }
  void count(Trigger why, std::size_t end) {
    counts_[static_cast<std::size_t>(why) * (steps() + 2) + end].fetch_add(
        1, std::memory_order_relaxed);
  }

  const std::shared_ptr<Servable> first_;
  const ChainOptions options_;
  Alarms& alarms_;
  std::vector<std::shared_ptr<const std::string>> names_;
  std::vector<LatencyQuantile> latencies_;     // by step
  std::vector<std::atomic<uint64_t>> counts_;  // [trigger][end]
  std::atomic<bool> drift_{false};
};

}  // namespace headrace
