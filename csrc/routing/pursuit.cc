#include "routing/pursuit.h"

#include <algorithm>
#include <utility>

#include "core/classification.h"
#include "routing/copy_question.h"

namespace headrace {
namespace {

constexpr Nanoseconds kLeastMargin = std::chrono::milliseconds(2);
constexpr Nanoseconds kMostMargin = std::chrono::milliseconds(100);
// How long a ticket may take to be filed, for requests without a deadline.
constexpr Nanoseconds kFilingTime = std::chrono::seconds(1);

Trigger trigger_of(const Response& failed) {
  if (failed.circuit_open) return Trigger::kCircuitOpen;
  switch (failed.status.code()) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kOutOfRange:
      return Trigger::kInvalidInput;
    case StatusCode::kResourceExhausted:
      return Trigger::kOverload;
    case StatusCode::kDeadlineExceeded:
      return Trigger::kDeadline;
    default:
      return Trigger::kError;
  }
}

}  // namespace

void FallbackChain::Attempt::complete(RequestPtr answered) noexcept {
  pursuit->tried(std::move(answered), number);
}

bool FallbackChain::Attempt::over() const noexcept { return pursuit->over(number); }

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::begin(std::shared_ptr<FallbackChain> chain,
                                                           RequestPtr request) {
  const TimePoint now = chain->options_.now();
  if (request->chain_depth >= kMaxDepth) {
    Todo todo;
    request->response.status = Status::internal("fallbacks lead to one another in a circle");
    todo.answered = std::move(request);
    return todo;
  }
  const auto pursuit = std::make_shared<Pursuit>(std::move(chain));
  const std::lock_guard lock(pursuit->mutex_);
  pursuit->root_ = std::move(request);
  return pursuit->start(now);
}

void FallbackChain::Pursuit::perform(Todo todo) {
  if (todo.gave_up != nullptr) todo.gave_up->gave_up();
  if (todo.attempt != nullptr) todo.target->submit(std::move(todo.attempt));
  if (todo.filing != nullptr) {
    const std::shared_ptr<CaseListener> listener = todo.filing->listener;
    if (!todo.desk->take(std::move(todo.filing)) && listener != nullptr) {
      listener->refused(Status::unavailable("too many tickets wait to be filed"));
    }
  }
  if (todo.answered != nullptr) answer(std::move(todo.answered));
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::start(TimePoint now) {
  const ChainOptions& options = chain_->options_;
  deadline_ = root_->deadline;
  if (options.budget.count() > 0) {
    const TimePoint arrived = root_->times.arrived == TimePoint{} ? now : root_->times.arrived;
    deadline_ = std::min(deadline_, saturating_add(arrived, options.budget));
  }
  if (deadline_ != kNever) {
    cutoff_ =
        deadline_ - std::clamp<Nanoseconds>((deadline_ - now) / 10, kLeastMargin, kMostMargin);
  }
  drifting_ = chain_->drift();
  const auto somebody_answers = [&](Trigger why) {
    return chain_->next_step(0, why, now, cutoff_, true) != kNoStep;
  };
  if (drifting_ && somebody_answers(Trigger::kDrift)) return advance(Trigger::kDrift, now);
  const bool too_late =
      cutoff_ != kNever && (now >= cutoff_ || chain_->latencies_[0].p95(now) > cutoff_ - now);
  if (too_late && somebody_answers(Trigger::kDeadline)) return advance(Trigger::kDeadline, now);
  return attempt(chain_->first_, now);
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::attempt(std::shared_ptr<Servable> target,
                                                             TimePoint now) {
  state_ = State::kTrying;
  ++number_;
  began_ = now;
  target_ = target;
  auto* const made = new Attempt(std::static_pointer_cast<Pursuit>(shared_from_this()), number_);
  Todo todo;
  todo.attempt = RequestPtr(&made->request);
  Request& request = made->request;
  copy_question(*root_, request);
  request.chain_depth = root_->chain_depth + 1;
  request.times.arrived = step_ == 0 ? root_->times.arrived : now;
  const std::optional<Accept>& accept = chain_->options_.accept;
  if (accept && !request.outputs.empty()) {
    const auto found =
        std::find_if(request.outputs.begin(), request.outputs.end(),
                     [&](const RequestedOutput& output) { return output.name == accept->output; });
    if (found != request.outputs.end()) {
      if (found->classification > 0) found->classification = 0;
    } else if (target->spec().find_output(accept->output)) {
      request.outputs.push_back({accept->output, 0});
    }
  }
  limit_ = chain_->give_up_at(step_, why_, now, cutoff_, best_.has_value());
  request.deadline = std::min(deadline_, limit_);
  set_alarm(limit_);
  todo.target = std::move(target);
  return todo;
}

void FallbackChain::Pursuit::set_alarm(TimePoint when) {
  if (when != kNever) alarms().set(*this, when);
}

void FallbackChain::Pursuit::tried(RequestPtr attempt, uint64_t number) noexcept {
  const TimePoint now = chain_->options_.now();
  Todo todo;
  {
    const std::lock_guard lock(mutex_);
    if (root_ == nullptr || number != number_ || state_ != State::kTrying) return;  // given up
    const Response& response = attempt->response;
    const StatusCode code = response.status.code();
    if (code == StatusCode::kOk) {
      chain_->latencies_[step_].record(now - began_, now);
      const std::optional<float> confidence = confidence_of_answer(*attempt);
      const bool unsure =
          attempt->doubtful || (confidence && *confidence < chain_->options_.accept->threshold);
      const bool drifted = drifting_ && step_ == 0;
      if (!unsure && !drifted) {
        if (confidence) attempt->confidence = confidence;
        todo = answer_with(*attempt);
      } else {
        if (!best_ || confidence.value_or(0) > best_->confidence.value_or(0)) {
          best_ = {std::move(attempt->response),
                   std::move(attempt->spec),
                   confidence ? confidence : attempt->confidence,
                   step_,
                   attempt->times,
                   attempt->batch_rows};
        }
        if (root_->ticket.empty()) root_->ticket = attempt->ticket;
        todo = advance(drifted ? Trigger::kDrift : Trigger::kLowConfidence, now);
      }
    } else if (code == StatusCode::kCancelled || root_->cancelled()) {
      todo = answer_with(response.status);
    } else {
      if (error_.ok()) error_ = response.status;
      todo = advance(trigger_of(response), now);
    }
  }
  perform(std::move(todo));
}

std::optional<float> FallbackChain::Pursuit::confidence_of_answer(const Request& attempt) const {
  const std::optional<Accept>& accept = chain_->options_.accept;
  if (!accept) return std::nullopt;
  for (const OutputTensor& output : attempt.response.outputs) {
    if (output.name != accept->output) continue;
    const bool batching = attempt.spec != nullptr && attempt.spec->batching();
    return confidence_of(output.tensor, batching, accept->activation, accept->measure);
  }
  return std::nullopt;
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::advance(Trigger why, TimePoint now) {
  if (why_ == Trigger::kNone) why_ = why;
  ++number_;
  target_.reset();
  self_.reset();
  if (root_->cancelled()) return answer_with(Status::cancelled(""));
  for (;;) {
    step_ = chain_->next_step(step_, why_, now, cutoff_);
    if (step_ == kNoStep) return give_up(now);
    const ChainStep& step = chain_->step(step_);
    if (step.desk != nullptr) return file(now);
    if (step.rule != nullptr) {
      Status status = step.rule->answer(*root_);
      if (!status) {
        if (error_.ok()) error_ = std::move(status);
        continue;
      }
      root_->confidence.reset();
      says_who(step_);
      chain_->count(why_, step_);
      return done();
    }
    if (std::shared_ptr<Servable> target = chain_->target_of(step_)) {
      return attempt(std::move(target), now);
    }
  }
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::file(TimePoint now) {
  const ChainStep& step = chain_->step(step_);
  const std::size_t rank = step_;
  auto filing = std::make_shared<Case>();
  filing->queue = step.queue;
  filing->model = root_->model_name;
  filing->version = chain_->spec().version_text;
  filing->request_id = root_->id;
  filing->trigger = why_;
  if (best_) filing->confidence = best_->confidence;
  filing->wait = step.timeout;
  if (chain_->spec().batching() && !root_->inputs.empty() &&
      !root_->inputs.front().tensor.shape.empty()) {
    filing->rows = root_->inputs.front().tensor.shape[0];
  }
  // The spec's life is that of the servable, which the case keeps.
  filing->spec = {chain_, &chain_->spec()};
  if (step.payload) {
    filing->inputs = root_->inputs;
    filing->message = root_->message;
    filing->converted = root_->converted;
    if (best_) {
      filing->suggestion = best_->response.outputs;
      filing->suggestion_spec = best_->spec;
    }
  }
  Todo todo;
  if (now < cutoff_) {
    state_ = State::kFiling;
    self_ = shared_from_this();
    limit_ = std::min(cutoff_, saturating_add(now, kFilingTime));
    set_alarm(limit_);
    filing->listener = std::static_pointer_cast<Pursuit>(shared_from_this());
  } else {
    // The person gets it, the client cannot wait for the ticket.
    todo = without_person(now);
    if (todo.filing != nullptr) return todo;
  }
  todo.filing = std::move(filing);
  todo.desk = chain_->step(rank).desk;
  return todo;
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::without_person(TimePoint now) {
  return best_ ? give_up(now) : advance(why_, now);
}

void FallbackChain::Pursuit::wake(TimePoint now) noexcept {
  Todo todo;
  {
    const std::lock_guard lock(mutex_);
    if (root_ == nullptr || now < limit_) return;
    if (state_ == State::kTrying) {
      std::shared_ptr<Servable> late = target_;
      todo = advance(Trigger::kDeadline, now);
      todo.gave_up = std::move(late);
    } else {
      todo = without_person(now);
    }
  }
  perform(std::move(todo));
}

void FallbackChain::Pursuit::filed(std::string ticket) noexcept {
  const TimePoint now = chain_->options_.now();
  Todo todo;
  {
    const std::lock_guard lock(mutex_);
    if (root_ == nullptr) return;
    root_->ticket = std::move(ticket);
    if (state_ != State::kFiling) return;
    limit_ = std::min(cutoff_, saturating_add(now, chain_->step(step_).timeout));
    if (limit_ > now) {
      state_ = State::kWaiting;
      set_alarm(limit_);
      return;
    }
    todo = without_person(now);
  }
  perform(std::move(todo));
}

void FallbackChain::Pursuit::refused(Status why) noexcept {
  const TimePoint now = chain_->options_.now();
  Todo todo;
  {
    const std::lock_guard lock(mutex_);
    if (root_ == nullptr || state_ != State::kFiling) return;
    if (error_.ok()) error_ = std::move(why);
    todo = advance(why_, now);
  }
  perform(std::move(todo));
}

void FallbackChain::Pursuit::resolved(std::vector<OutputTensor> outputs) noexcept {
  Todo todo;
  {
    const std::lock_guard lock(mutex_);
    if (root_ == nullptr || (state_ != State::kFiling && state_ != State::kWaiting)) return;
    Response response;
    const ModelSpec& spec = chain_->spec();
    response.model_name = spec.name;
    response.model_version = spec.version_text;
    for (OutputTensor& output : outputs) {
      const auto wanted = [&](const RequestedOutput& r) { return r.name == output.name; };
      if (root_->outputs.empty() ||
          std::any_of(root_->outputs.begin(), root_->outputs.end(), wanted)) {
        response.outputs.push_back(std::move(output));
      }
    }
    if (Status status = finish_outputs(response, spec); !status) {
      todo = answer_with(std::move(status));
    } else {
      root_->response = std::move(response);
      root_->spec = {chain_, &spec};
      root_->confidence.reset();
      says_who(step_);
      chain_->count(why_, step_);
      todo = done();
    }
  }
  perform(std::move(todo));
}

bool FallbackChain::Pursuit::over(uint64_t number) const noexcept {
  const std::lock_guard lock(mutex_);
  return root_ == nullptr || number != number_ || root_->cancelled();
}

void FallbackChain::Pursuit::took(const RequestTimes& times, int64_t batch_rows) {
  const TimePoint arrived = root_->times.arrived;
  root_->times = times;
  root_->times.arrived = arrived;
  root_->batch_rows = batch_rows;
}

void FallbackChain::Pursuit::says_who(std::size_t step) {
  root_->trigger = why_;
  if (step == 0) return;
  root_->fallback_from = chain_->names_[0];
  root_->answered_by = chain_->names_[step];
}

Status FallbackChain::Pursuit::finish_outputs(Response& response, const ModelSpec& spec) const {
  const std::optional<Accept>& accept = chain_->options_.accept;
  if (root_->outputs.empty()) return {};
  std::vector<OutputTensor>& outputs = response.outputs;
  const auto asked = [&](std::string_view name) -> const RequestedOutput* {
    for (const RequestedOutput& output : root_->outputs) {
      if (output.name == name) return &output;
    }
    return nullptr;
  };
  std::erase_if(outputs, [&](const OutputTensor& o) { return asked(o.name) == nullptr; });
  for (OutputTensor& output : outputs) {
    const int64_t classes = asked(output.name)->classification;
    // Only what is not classified yet: a model does it, but for the output that `accept` looks at.
    const bool by_model = state_ == State::kTrying && (!accept || output.name != accept->output);
    const std::optional<std::size_t> index = spec.find_output(output.name);
    if (classes <= 0 || by_model || !index) continue;
    if (Status status = classify(spec.outputs[*index], spec.batching(), classes, output); !status) {
      return status;
    }
  }
  return {};
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::answer_with(Request& attempt) {
  if (attempt.spec != nullptr) {
    if (Status status = finish_outputs(attempt.response, *attempt.spec); !status) {
      return answer_with(std::move(status));
    }
  }
  root_->response = std::move(attempt.response);
  root_->spec = std::move(attempt.spec);
  root_->confidence = attempt.confidence;
  if (!attempt.ticket.empty()) root_->ticket = std::move(attempt.ticket);
  took(attempt.times, attempt.batch_rows);
  if (why_ == Trigger::kNone) {  // what a chain within did, if one did
    root_->trigger = attempt.trigger;
    root_->fallback_from = std::move(attempt.fallback_from);
    root_->answered_by = std::move(attempt.answered_by);
    return done();
  }
  says_who(step_);
  if (attempt.answered_by != nullptr) root_->answered_by = std::move(attempt.answered_by);
  chain_->count(why_, step_);
  return done();
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::give_up(TimePoint) {
  if (!best_) {
    chain_->count(why_, chain_->ended_failed());
    if (error_.ok()) {
      error_ = why_ == Trigger::kDeadline
                   ? Status::deadline_exceeded("too little time is left for any answer")
                   : Status::unavailable("no fallback has an answer");
    }
    if (!root_->ticket.empty()) {
      error_ = Status(error_.code(), error_.message() + " (ticket " + root_->ticket + ")");
    }
    return answer_with(std::move(error_));
  }
  state_ = State::kTrying;  // it is a model's answer
  if (best_->spec != nullptr) {
    if (Status status = finish_outputs(best_->response, *best_->spec); !status) {
      return answer_with(std::move(status));
    }
  }
  root_->response = std::move(best_->response);
  root_->spec = std::move(best_->spec);
  root_->confidence = best_->confidence;
  root_->doubtful = true;
  took(best_->times, best_->batch_rows);
  says_who(best_->step);
  chain_->count(why_, chain_->ended_doubtful());
  return done();
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::answer_with(Status status) {
  root_->response.outputs.clear();
  root_->response.status = std::move(status);
  return done();
}

FallbackChain::Pursuit::Todo FallbackChain::Pursuit::done() {
  state_ = State::kDone;
  ++number_;
  self_.reset();
  Todo todo;
  todo.answered = std::move(root_);
  return todo;
}

}  // namespace headrace
