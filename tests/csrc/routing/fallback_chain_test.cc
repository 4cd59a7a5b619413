#include "routing/fallback_chain.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

ModelSpec spec_named(std::string name) {
  ModelSpec spec;
  spec.name = std::move(name);
  spec.outputs.push_back({"probs", DType::kFp32, {2}, {}, false, 0, {}});
  return spec;
}

BufferRef floats(std::initializer_list<float> values) {
  BufferRef buffer = BufferRef::allocate(values.size() * sizeof(float));
  std::memcpy(buffer.data(), values.begin(), buffer.size());
  return buffer;
}

void fill(Request& request, const std::shared_ptr<const ModelSpec>& spec, float p) {
  request.spec = spec;
  request.response.model_name = spec->name;
  request.response.model_version = spec->version_text;
  BufferRef owner = floats({p, 1 - p});
  const std::span<const std::byte> bytes = std::as_const(owner).span();
  request.response.outputs.push_back(
      {spec->outputs[0].name, {DType::kFp32, Shape{2}, bytes}, std::move(owner)});
}

// A model that answers as it is told, at once or when asked to.
class Scripted final : public Servable {
 public:
  explicit Scripted(std::string name)
      : spec_(std::make_shared<const ModelSpec>(spec_named(std::move(name)))) {}
  void submit(RequestPtr request) override {
    ++asked;
    last_deadline = request->deadline;
    if (hold) {
      held.push_back(std::move(request));
      return;
    }
    if (on_submit) on_submit();
    reply(std::move(request));
  }
  void reply(RequestPtr request) const {
    request->response.circuit_open = circuit_open;
    if (!status.ok()) return answer(std::move(request), status);
    fill(*request, spec_, probability);
    answer(std::move(request));
  }
  const ModelSpec& spec() const override { return *spec_; }
  void gave_up() noexcept override { ++given_up; }
  bool ready() const noexcept override { return well; }

  Status status;
  bool well = true;
  float probability = 0.99F;
  bool circuit_open = false;
  bool hold = false;
  std::deque<RequestPtr> held;
  std::function<void()> on_submit;
  int asked = 0;
  int given_up = 0;
  TimePoint last_deadline;

 private:
  const std::shared_ptr<const ModelSpec> spec_;
};

class Desk final : public HumanDesk {
 public:
  bool take(std::shared_ptr<Case> taken) noexcept override {
    if (full) return false;
    cases.push_back(std::move(taken));
    return true;
  }
  bool full = false;
  std::vector<std::shared_ptr<Case>> cases;
};

class Client final : public Completion {
 public:
  void complete(RequestPtr request) noexcept override {
    ++answers;
    last = std::move(request);
  }
  float probability() const {
    float value = 0;
    REQUIRE(last->response.outputs.size() == 1);
    std::memcpy(&value, last->response.outputs[0].tensor.data.data(), sizeof(value));
    return value;
  }
  std::string by() const { return last->answered_by != nullptr ? *last->answered_by : ""; }
  int answers = 0;
  RequestPtr last;
};

// Steps are made by name; the clock is moved by hand.
struct Rig {
  TimePoint now = Clock::now();
  Alarms alarms{Alarms::Run::kByHand, now};
  std::shared_ptr<Scripted> first = std::make_shared<Scripted>("digits");
  std::shared_ptr<Scripted> second = std::make_shared<Scripted>("older");
  std::shared_ptr<Desk> desk = std::make_shared<Desk>();
  ChainOptions options;
  std::shared_ptr<FallbackChain> chain;
  Client client;

  Rig() {
    options.name = "digits/7";
    options.now = [this] { return now; };
    first->spec();
  }
  // What a test leaves open holds the chain, which holds where it lies.
  ~Rig() {
    for (const std::shared_ptr<Scripted>& servable : {first, second, first}) {
      servable->hold = false;
      const std::deque<RequestPtr> left = std::exchange(servable->held, {});
    }
    const auto cases = std::exchange(desk->cases, {});
    for (const auto& one : cases) {
      if (one != nullptr && one->listener != nullptr) one->listener->resolved({});
    }
  }
  ChainStep& model() {
    ChainStep& step = options.steps.emplace_back();
    step.target = std::make_shared<Link>(second);
    step.name = "digits/6";
    return step;
  }
  ChainStep& rule() {
    ChainStep& step = options.steps.emplace_back();
    BufferRef owner = floats({0.5F, 0.5F});
    const std::span<const std::byte> bytes = std::as_const(owner).span();
    step.rule =
        *Rule::make({first, &first->spec()}, {{"probs", {DType::kFp32, Shape{2}, bytes}, owner}});
    step.name = "rule";
    return step;
  }
  ChainStep& person(Nanoseconds wait) {
    ChainStep& step = options.steps.emplace_back();
    step.desk = desk;
    step.queue = "nurses";
    step.name = "human:nurses";
    step.timeout = wait;
    return step;
  }
  void accept(float threshold) { options.accept = {"probs", {}, {}, threshold}; }
  void build() { chain = *FallbackChain::make(first, options, alarms); }
  RequestPtr request() {
    RequestPtr made(new Request(client));
    made->times.arrived = now;
    return made;
  }
  void ask(std::optional<Nanoseconds> within = {}) {
    if (chain == nullptr) build();
    RequestPtr made = request();
    if (within) made->deadline = now + *within;
    chain->submit(std::move(made));
  }
  void pass(Nanoseconds time) {
    now += time;
    alarms.advance(now);
  }
};

}  // namespace

TEST_CASE("a good answer goes straight through, and says how sure it is") {
  Rig rig;
  rig.model();
  rig.accept(0.8F);
  rig.ask();
  CHECK(rig.client.answers == 1);
  CHECK(rig.client.last->response.status.ok());
  CHECK(rig.client.last->trigger == Trigger::kNone);
  CHECK(rig.client.last->fallback_from == nullptr);
  CHECK(*rig.client.last->confidence == doctest::Approx(0.99));
  CHECK(rig.second->asked == 0);
  CHECK(rig.chain->counts().empty());
}

TEST_CASE("each failure has its trigger, and only steps that want it are tried") {
  const std::vector<std::pair<Status, Trigger>> failures = {
      {Status::internal("boom"), Trigger::kError},
      {Status::unavailable("gone"), Trigger::kError},
      {Status::resource_exhausted("busy"), Trigger::kOverload},
      {Status::invalid_argument("shape"), Trigger::kInvalidInput},
      {Status::deadline_exceeded("late"), Trigger::kDeadline},
  };
  for (const auto& [status, trigger] : failures) {
    for (const bool wanted : {true, false}) {
      CAPTURE(trigger_name(trigger));
      Rig rig;
      Triggers on;
      if (wanted) on.set(static_cast<std::size_t>(trigger));
      rig.model().on = on;
      rig.first->status = status;
      rig.ask();
      CHECK(rig.client.answers == 1);
      CHECK(rig.second->asked == (wanted ? 1 : 0));
      if (wanted) {
        CHECK(rig.client.last->response.status.ok());
        CHECK(rig.client.last->trigger == trigger);
        CHECK(*rig.client.last->fallback_from == "digits/7");
        CHECK(rig.client.by() == "digits/6");
        CHECK(rig.client.last->response.model_name == "older");
      } else {
        CHECK(rig.client.last->response.status.code() == status.code());
      }
      REQUIRE(rig.chain->counts().size() == 1);
      CHECK(rig.chain->counts()[0].trigger == trigger);
      CHECK(rig.chain->counts()[0].target == (wanted ? "digits/6" : "none"));
    }
  }
}

TEST_CASE("a chain is ready while anybody in it would answer after an error") {
  Rig rig;
  rig.model();
  rig.build();
  CHECK(rig.chain->ready());
  rig.first->well = false;
  CHECK(rig.chain->ready());
  rig.second->well = false;
  CHECK_FALSE(rig.chain->ready());
  rig.options.steps[0].target->point_to(nullptr);
  CHECK_FALSE(rig.chain->ready());

  Rig only_when_unsure;
  only_when_unsure.model().on = Triggers().set(static_cast<std::size_t>(Trigger::kLowConfidence));
  only_when_unsure.build();
  only_when_unsure.first->well = false;
  CHECK_FALSE(only_when_unsure.chain->ready());

  Rig with_rule;
  with_rule.rule();
  with_rule.build();
  with_rule.first->well = false;
  CHECK(with_rule.chain->ready());
}

TEST_CASE("an open circuit is its own trigger; a client's mistake is no step's unless it asks") {
  Rig rig;
  rig.model();
  rig.first->status = Status::unavailable("open");
  rig.first->circuit_open = true;
  rig.ask();
  CHECK(rig.client.last->trigger == Trigger::kCircuitOpen);
  rig.first->circuit_open = false;
  rig.first->status = Status::invalid_argument("shape");
  rig.ask();
  CHECK(rig.client.last->response.status.code() == StatusCode::kInvalidArgument);
}

TEST_CASE("an unsure answer is bettered, or given with a mark when none is surer") {
  Rig rig;
  rig.model();
  rig.accept(0.8F);
  rig.first->probability = 0.7F;
  rig.ask();
  CHECK(rig.client.by() == "digits/6");
  CHECK(rig.client.last->trigger == Trigger::kLowConfidence);
  CHECK(rig.client.probability() == doctest::Approx(0.99));
  CHECK_FALSE(rig.client.last->doubtful);

  rig.second->probability = 0.6F;
  rig.ask();
  CHECK(rig.client.answers == 2);
  CHECK(rig.client.by().empty());
  CHECK(rig.client.last->doubtful);
  CHECK(rig.client.probability() == doctest::Approx(0.7));
  CHECK(rig.client.last->response.model_name == "digits");
  CHECK(rig.client.last->trigger == Trigger::kLowConfidence);

  rig.second->probability = 0.75F;
  rig.ask();
  CHECK(rig.client.by() == "digits/6");
  CHECK(rig.client.last->doubtful);

  rig.second->status = Status::internal("boom");
  rig.ask();
  CHECK(rig.client.last->response.status.ok());
  CHECK(rig.client.probability() == doctest::Approx(0.7));
}

TEST_CASE("the output that is judged by need not be one the client asked for") {
  Rig rig;
  rig.model();
  rig.accept(0.8F);
  rig.build();
  RequestPtr request = rig.request();
  request->outputs.push_back({"probs", 1});
  rig.chain->submit(std::move(request));
  REQUIRE(rig.client.last->response.outputs.size() == 1);
  CHECK(rig.client.last->response.outputs[0].tensor.dtype == DType::kBytes);
  CHECK(*rig.client.last->confidence == doctest::Approx(0.99));
}

TEST_CASE("a rule answers for every row, and only what the signature has") {
  Rig rig;
  rig.rule();
  rig.first->status = Status::internal("boom");
  rig.ask();
  CHECK(rig.client.last->response.status.ok());
  CHECK(rig.client.by() == "rule");
  CHECK(rig.client.probability() == doctest::Approx(0.5));
  CHECK(rig.client.last->response.model_name == "digits");

  ModelSpec batching = spec_named("batching");
  batching.max_batch_size = 4;
  const auto spec = std::make_shared<const ModelSpec>(batching);
  BufferRef owner = floats({0.25F, 0.75F});
  const std::span<const std::byte> bytes = std::as_const(owner).span();
  const auto rule = *Rule::make(spec, {{"probs", {DType::kFp32, Shape{2}, bytes}, owner}});
  RequestPtr request = rig.request();
  request->inputs.push_back({"x", {DType::kFp32, Shape{3, 1}, {}}});
  REQUIRE(rule->answer(*request).ok());
  CHECK(request->response.outputs[0].tensor.shape == Shape{3, 2});
  CHECK(request->response.outputs[0].tensor.data.size() == 24);
  request->inputs[0].tensor.shape = Shape{5, 1};
  CHECK(rule->answer(*request).code() == StatusCode::kInvalidArgument);
  answer(std::move(request), Status());

  CHECK_FALSE(Rule::make(spec, {}).has_value());
  CHECK_FALSE(Rule::make(spec, {{"other", {DType::kFp32, Shape{2}, bytes}, owner}}).has_value());
  CHECK_FALSE(Rule::make(spec, {{"probs", {DType::kFp32, Shape{1}, bytes}, owner}}).has_value());
  CHECK_FALSE(Rule::make(spec, {{"probs", {DType::kFp64, Shape{2}, bytes}, owner}}).has_value());
}

TEST_CASE("a try that hangs is given up in time for the next, and its late answer is dropped") {
  Rig rig;
  rig.rule();
  rig.first->hold = true;
  rig.ask(100ms);
  CHECK(rig.client.answers == 0);
  CHECK_FALSE(rig.first->held[0]->cancelled());
  rig.pass(80ms);
  CHECK(rig.client.answers == 0);
  rig.pass(12ms);
  CHECK(rig.client.answers == 1);
  CHECK(rig.client.by() == "rule");
  CHECK(rig.client.last->trigger == Trigger::kDeadline);
  CHECK(rig.first->given_up == 1);
  CHECK(rig.first->held[0]->cancelled());
  rig.first->reply(std::move(rig.first->held[0]));
  CHECK(rig.client.answers == 1);
}

TEST_CASE("a try leaves time for a model that is next; a budget stands for a missing deadline") {
  Rig rig;
  rig.model();
  rig.options.budget = 200ms;
  rig.first->hold = true;
  rig.ask();
  rig.pass(95ms);  // half of what there is: nothing is known of the next one's time
  CHECK(rig.client.answers == 1);
  CHECK(rig.client.by() == "digits/6");
}

TEST_CASE("a step's own time-out") {
  Rig rig;
  rig.model().timeout = 10ms;
  rig.rule();
  rig.first->status = Status::internal("boom");
  rig.second->hold = true;
  rig.ask();
  rig.pass(9ms);
  CHECK(rig.client.answers == 0);
  rig.pass(3ms);
  CHECK(rig.client.by() == "rule");
  CHECK(rig.client.last->trigger == Trigger::kError);
}

TEST_CASE("nothing is begun that takes longer than is left, going by its p95") {
  Rig rig;
  rig.model();
  rig.rule();
  rig.first->on_submit = [&] { rig.now += 50ms; };
  for (int i = 0; i < 16; ++i) rig.ask();  // now its p95 is known
  CHECK(rig.chain->p95() >= 50ms);
  CHECK(rig.chain->p95() <= 63ms);
  const int before = rig.first->asked;
  rig.ask(40ms);
  CHECK(rig.first->asked == before);
  CHECK(rig.client.by() == "digits/6");
  CHECK(rig.client.last->trigger == Trigger::kDeadline);
  rig.ask(200ms);
  CHECK(rig.first->asked == before + 1);
  rig.now += 11s;  // what was known is old
  rig.ask(40ms);
  CHECK(rig.first->asked == before + 2);
}

TEST_CASE("without anybody who is in time, the model is tried all the same") {
  Rig rig;
  rig.person(0ms);
  rig.first->on_submit = [&] { rig.now += 50ms; };
  for (int i = 0; i < 16; ++i) rig.ask();
  const int before = rig.first->asked;
  rig.ask(40ms);
  CHECK(rig.first->asked == before + 1);
  CHECK(rig.client.last->response.status.ok());
}

TEST_CASE("drift: others answer while there are any; a person gets the doubtful answer") {
  Rig rig;
  rig.model();
  rig.build();
  rig.chain->set_drift(true);
  rig.ask();
  CHECK(rig.first->asked == 0);
  CHECK(rig.client.by() == "digits/6");
  CHECK(rig.client.last->trigger == Trigger::kDrift);
  rig.chain->set_drift(false);
  rig.ask();
  CHECK(rig.first->asked == 1);

  Rig person;
  person.person(0ms);
  person.build();
  person.chain->set_drift(true);
  person.ask();
  REQUIRE(person.desk->cases.size() == 1);
  CHECK(person.desk->cases[0]->trigger == Trigger::kDrift);
  person.desk->cases[0]->listener->filed("t1");
  CHECK(person.client.answers == 1);
  CHECK(person.client.last->ticket == "t1");
  CHECK(person.client.last->doubtful);
}

TEST_CASE("a person without waiting: the best answer at once, with the ticket") {
  Rig rig;
  rig.person(0ms).payload = true;
  rig.accept(0.8F);
  rig.first->probability = 0.6F;
  rig.ask(1s);
  CHECK(rig.client.answers == 0);  // not before the ticket is safe
  REQUIRE(rig.desk->cases.size() == 1);
  CHECK(rig.desk->cases[0]->queue == "nurses");
  CHECK(*rig.desk->cases[0]->confidence == doctest::Approx(0.6));
  CHECK(rig.desk->cases[0]->suggestion.size() == 1);
  rig.desk->cases[0]->listener->filed("t1");
  CHECK(rig.client.answers == 1);
  CHECK(rig.client.last->ticket == "t1");
  CHECK(rig.client.probability() == doctest::Approx(0.6));
  rig.desk->cases[0]->listener->resolved({});  // too late for this request
  CHECK(rig.client.answers == 1);
}

TEST_CASE("waiting for a person: the decision, or what there is when the wait ends") {
  for (const bool decided : {true, false}) {
    Rig rig;
    rig.person(500ms);
    rig.rule();
    rig.first->status = Status::internal("boom");
    rig.ask(2s);
    rig.desk->cases[0]->listener->filed("t2");
    CHECK(rig.client.answers == 0);
    if (decided) {
      BufferRef owner = floats({1, 0});
      const std::span<const std::byte> bytes = std::as_const(owner).span();
      std::vector<OutputTensor> outputs;
      outputs.push_back({"probs", {DType::kFp32, Shape{2}, bytes}, owner});
      REQUIRE(check_decision(*rig.desk->cases[0]->spec, 1, outputs).ok());
      rig.desk->cases[0]->listener->resolved(std::move(outputs));
      CHECK(rig.client.by() == "human:nurses");
      CHECK(rig.client.probability() == doctest::Approx(1));
    } else {
      rig.pass(499ms);
      CHECK(rig.client.answers == 0);
      rig.pass(3ms);
      CHECK(rig.client.by() == "rule");
    }
    CHECK(rig.client.answers == 1);
    CHECK(rig.client.last->ticket == "t2");
  }
}

TEST_CASE("a desk that refuses, loses or forgets a case holds up no request") {
  for (const int way : {0, 1, 2}) {
    Rig rig;
    rig.person(0ms);
    rig.rule();
    rig.first->status = Status::internal("boom");
    rig.desk->full = way == 0;
    rig.ask(1s);
    if (way == 1) rig.desk->cases[0]->listener->refused(Status::unavailable("disk full"));
    if (way == 2) {
      rig.desk->cases.clear();
      rig.pass(950ms);
    }
    CHECK(rig.client.answers == 1);
    CHECK(rig.client.by() == "rule");
    CHECK(rig.client.last->ticket.empty());
  }
}

TEST_CASE("a request that fails for good is told the first reason, and its ticket") {
  Rig rig;
  rig.model();
  rig.person(0ms);
  rig.first->status = Status::internal("boom");
  rig.second->status = Status::unavailable("gone");
  rig.ask();
  rig.desk->cases[0]->listener->filed("t3");
  CHECK(rig.client.last->response.status.code() == StatusCode::kInternal);
  CHECK(rig.client.last->response.status.message() == "boom (ticket t3)");
}

TEST_CASE("who has left is not pursued; who is there no more is skipped") {
  Rig rig;
  rig.model();
  rig.first->hold = true;
  rig.build();
  RequestPtr request = rig.request();
  Request* const asked = request.get();
  rig.chain->submit(std::move(request));
  asked->cancel();
  CHECK(rig.first->held[0]->cancelled());
  rig.first->status = Status::internal("boom");
  rig.first->reply(std::move(rig.first->held[0]));
  CHECK(rig.client.answers == 1);
  CHECK(rig.second->asked == 0);

  rig.first->hold = false;
  rig.options.steps[0].target->point_to(nullptr);
  rig.ask();
  CHECK(rig.client.last->response.status.message() == "boom");
  rig.options.steps[0].target->point_to(rig.first);  // itself is no help
  const int before = rig.first->asked;
  rig.ask();
  CHECK(rig.first->asked == before + 1);
}

TEST_CASE("chains in chains: the inner doubt is the outer's, and circles end") {
  Rig inner;
  inner.rule().on = Triggers();
  inner.accept(0.8F);
  inner.first->probability = 0.6F;
  inner.build();
  Rig outer;
  outer.model().target = std::make_shared<Link>(inner.chain);
  outer.rule();
  outer.options.now = inner.options.now;
  outer.first->status = Status::internal("boom");
  outer.ask();
  CHECK(outer.client.by() == "rule");
  CHECK(inner.first->asked == 1);

  Rig round;
  ChainStep& step = round.model();
  const auto link = std::make_shared<Link>();
  step.target = link;
  round.first->status = Status::internal("boom");
  round.build();
  link->point_to(round.chain);
  round.ask();
  CHECK(round.client.answers == 1);
  CHECK_FALSE(round.client.last->response.status.ok());
  CHECK(round.first->asked <= 10);
  link->point_to(nullptr);
}

TEST_CASE("what cannot work is refused when the chain is made") {
  Rig rig;
  rig.options.accept = {"nothing", {}, {}, 0.5F};
  CHECK_FALSE(FallbackChain::make(rig.first, rig.options, rig.alarms).has_value());
  rig.options.accept.reset();
  rig.options.steps.emplace_back();
  CHECK_FALSE(FallbackChain::make(rig.first, rig.options, rig.alarms).has_value());
}

namespace {

// Answers, fails, drops, or hangs until it ends; at once or on threads of its own.
class Chaotic final : public Servable {
 public:
  explicit Chaotic(uint64_t seed) : random_(seed) {
    for (int i = 0; i < 2; ++i) threads_.emplace_back([this] { run(); });
  }
  ~Chaotic() override { finish(); }
  void finish() {
    {
      const std::lock_guard lock(mutex_);
      if (done_) return;
      done_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }
  void submit(RequestPtr request) override {
    const std::lock_guard lock(mutex_);
    if (random_() % 8 == 0) return late_.push_back(std::move(request));
    queue_.push_back(std::move(request));
  }
  const ModelSpec& spec() const override { return *spec_; }

 private:
  void run() {
    for (;;) {
      RequestPtr request;
      uint64_t dice = 0;
      {
        const std::lock_guard lock(mutex_);
        if (queue_.empty()) {
          if (done_ && late_.empty()) return;
          if (done_) {
            request = std::move(late_.front());
            late_.pop_front();
          }
        } else {
          request = std::move(queue_.front());
          queue_.pop_front();
        }
        dice = random_();
      }
      if (request == nullptr) {
        std::this_thread::yield();
        continue;
      }
      (void)request->cancelled();
      if (dice % 16 == 0) continue;  // dropped
      if (dice % 4 == 0) {
        answer(std::move(request), Status::internal("chaos"));
      } else {
        fill(*request, spec_, dice % 3 == 0 ? 0.6F : 0.9F);
        answer(std::move(request));
      }
    }
  }
  const std::shared_ptr<const ModelSpec> spec_ =
      std::make_shared<const ModelSpec>(spec_named("chaos"));
  std::mutex mutex_;
  std::mt19937_64 random_;        // guarded by mutex_
  std::deque<RequestPtr> queue_;  // guarded by mutex_
  std::deque<RequestPtr> late_;   // guarded by mutex_: until finish()
  bool done_ = false;             // guarded by mutex_
  std::vector<std::thread> threads_;
};

// Files, refuses and resolves on a thread of its own; forgets some.
class BusyDesk final : public HumanDesk {
 public:
  BusyDesk() : thread_([this] { run(); }) {}
  ~BusyDesk() override {
    done_ = true;
    thread_.join();
  }
  bool take(std::shared_ptr<Case> taken) noexcept override {
    const std::lock_guard lock(mutex_);
    if (cases_.size() > 64) return false;
    cases_.push_back(std::move(taken));
    return true;
  }

 private:
  void run() {
    for (uint64_t turn = 0; !done_; ++turn) {
      std::shared_ptr<Case> mine;
      {
        const std::lock_guard lock(mutex_);
        if (!cases_.empty()) {
          mine = std::move(cases_.front());
          cases_.pop_front();
        }
      }
      if (mine == nullptr || mine->listener == nullptr || turn % 5 == 0) {
        std::this_thread::yield();
        continue;
      }
      if (turn % 5 == 1) {
        mine->listener->refused(Status::unavailable("no"));
        continue;
      }
      mine->listener->filed("t");
      if (turn % 5 == 2) continue;
      BufferRef owner = floats({1, 0});
      const std::span<const std::byte> bytes = std::as_const(owner).span();
      std::vector<OutputTensor> outputs;
      outputs.push_back({"probs", {DType::kFp32, Shape{2}, bytes}, owner});
      if (check_decision(*mine->spec, 1, outputs).ok()) mine->listener->resolved(outputs);
    }
  }
  std::mutex mutex_;
  std::deque<std::shared_ptr<Case>> cases_;  // guarded by mutex_
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// A pool of requests; counts the answers of each.
class Ledger final : public Completion {
 public:
  explicit Ledger(std::size_t size) : answers(size) {}
  void complete(RequestPtr request) noexcept override {
    ++answers[request->call_id];
    if (request->response.status.ok() != (request->response.outputs.size() == 1)) ++wrong;
    ++total;
  }
  void release(Request* request) noexcept override { delete request; }
  std::vector<std::atomic<int>> answers;
  std::atomic<std::size_t> total{0};
  std::atomic<int> wrong{0};
};

}  // namespace

TEST_CASE("every request is answered exactly once, whatever the steps, clients and clocks do") {
  for (const uint64_t seed : {1U, 2U, 3U}) {
    constexpr std::size_t kRequests = 3000;
    Ledger ledger(kRequests);
    Alarms alarms;
    const auto first = std::make_shared<Chaotic>(seed);
    const auto second = std::make_shared<Chaotic>(seed + 100);
    BusyDesk busy;
    const std::shared_ptr<HumanDesk> desk(&busy, [](HumanDesk*) {});
    ChainOptions options;
    options.name = "chaos/1";
    options.accept = {"probs", {}, {}, 0.8F};
    options.budget = 100ms;  // so that what hangs is given up
    ChainStep model;
    model.target = std::make_shared<Link>(second);
    model.name = "second";
    ChainStep person;
    person.desk = desk;
    person.name = "person";
    person.timeout = 2ms;
    options.steps = {model, person};
    const auto chain = *FallbackChain::make(first, options, alarms);
    std::mt19937_64 random(seed);
    for (std::size_t i = 0; i < kRequests;) {
      std::vector<RequestPtr> together;
      std::vector<Request*> cancelled;
      for (std::size_t n = 1 + random() % 8; n > 0 && i < kRequests; --n, ++i) {
        RequestPtr& request = together.emplace_back(new Request(ledger));
        request->call_id = i;
        request->times.arrived = Clock::now();
        if (random() % 4 == 0) {
          request->deadline = request->times.arrived + Microseconds(random() % 20000);
        }
        if (random() % 8 == 0) request->cancel();
      }
      chain->submit_together(together);
      if (i % 64 == 0) {
        chain->set_drift(i % 128 == 0);
        model.target->point_to(i % 192 == 0 ? nullptr : std::shared_ptr<Servable>(second));
      }
    }
    first->finish();
    second->finish();
    while (ledger.total < kRequests) std::this_thread::yield();
    for (const std::atomic<int>& answers : ledger.answers) CHECK(answers == 1);
    CHECK(ledger.wrong == 0);
    model.target->point_to(nullptr);
  }
}
