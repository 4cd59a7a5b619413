// Pursuit: one request on its way along a FallbackChain. It holds the client's request until it is
// answered; what goes to the steps are Attempts, requests of its own.
//
// Threads: any; one mutex, never held while a request is submitted or answered. An attempt asks
// whether it is still wanted under that mutex, and so (chains in chains) under its caller's: the
// order is from the inner to the outer.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "routing/fallback_chain.h"

namespace headrace {

struct FallbackChain::Attempt final : public Completion, public Interest {
  Attempt(std::shared_ptr<Pursuit> of, uint64_t its_number)
      : request(*this), pursuit(std::move(of)), number(its_number) {
    request.made_for(*this);
  }
  void complete(RequestPtr answered) noexcept override;
  void release(Request*) noexcept override { delete this; }
  bool over() const noexcept override;

  Request request;
  const std::shared_ptr<Pursuit> pursuit;
  const uint64_t number;
};

class FallbackChain::Pursuit final : public Alarms::Sleeper, public CaseListener {
 public:
  // What is to be done once the mutex is free.
  struct Todo {
    std::shared_ptr<Servable> gave_up;
    RequestPtr attempt;  // for `target`
    std::shared_ptr<Servable> target;
    std::shared_ptr<Case> filing;  // for `desk`
    std::shared_ptr<HumanDesk> desk;
    RequestPtr answered;  // the client's
  };
  static void perform(Todo todo);

  static Todo begin(std::shared_ptr<FallbackChain> chain, RequestPtr request);
  explicit Pursuit(std::shared_ptr<FallbackChain> chain)
      : Sleeper(chain->alarms_), chain_(std::move(chain)) {}

  // An attempt has its answer.
  void tried(RequestPtr attempt, uint64_t number) noexcept;
  // Whether nobody waits for attempt `number` any more.
  bool over(uint64_t number) const noexcept;

  void wake(TimePoint now) noexcept override;
  void filed(std::string ticket) noexcept override;
  void refused(Status why) noexcept override;
  void resolved(std::vector<OutputTensor> outputs) noexcept override;

 private:
  enum class State : uint8_t { kTrying, kFiling, kWaiting, kDone };
  // An answer that is not sure enough.
  struct Best {
    Response response;
    std::shared_ptr<const ModelSpec> spec;
    std::optional<float> confidence;
    std::size_t step = 0;
    RequestTimes times;
    int64_t batch_rows = 0;
  };

  // All of these under mutex_.
  Todo start(TimePoint now);
  // On to the next step, because of `why` if it is the first reason.
  Todo advance(Trigger why, TimePoint now);
  Todo attempt(std::shared_ptr<Servable> target, TimePoint now);
  Todo file(TimePoint now);
  // The person has not answered (yet): the best answer, or the next step.
  Todo without_person(TimePoint now);
  // No step is left.
  Todo give_up(TimePoint now);
  Todo answer_with(Request& attempt);
  Todo answer_with(Status status);
  Todo done();
  // The stamps of the attempt that answered.
  void took(const RequestTimes& times, int64_t batch_rows);
  void says_who(std::size_t step);
  // Makes the response what the client asked for: without the output that only `accept` wanted,
  // classified.
  Status finish_outputs(Response& response, const ModelSpec& spec) const;
  std::optional<float> confidence_of_answer(const Request& attempt) const;
  void set_alarm(TimePoint when);

  const std::shared_ptr<FallbackChain> chain_;
  mutable std::mutex mutex_;
  // All guarded by mutex_.
  RequestPtr root_;  // null: answered
  State state_ = State::kTrying;
  std::size_t step_ = 0;
  uint64_t number_ = 0;  // of the attempt that is wanted
  Trigger why_ = Trigger::kNone;
  bool drifting_ = false;
  Status error_;  // the first
  std::optional<Best> best_;
  TimePoint deadline_ = kNever;
  TimePoint cutoff_ = kNever;  // deadline_ less the margin
  TimePoint limit_ = kNever;   // of the state
  TimePoint began_;            // the attempt
  std::shared_ptr<Servable> target_;
  // Set while filing and waiting, when nobody else need hold it. Whoever ends that does.
  std::shared_ptr<Sleeper> self_;
};

}  // namespace headrace
