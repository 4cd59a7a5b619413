#include "routing/circuit_breaker.h"

#include <doctest/doctest.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "routing/guarded.h"

using namespace headrace;
using namespace std::chrono_literals;

namespace {

using Pass = CircuitBreaker::Pass;
using State = CircuitBreaker::State;
using Outcome = CircuitBreaker::Outcome;

struct Driven {
  explicit Driven(BreakerOptions options = {}) : breaker(options) {}
  bool ask(Outcome outcome) {
    const Pass pass = breaker.pass(now);
    breaker.record(pass, outcome, now);
    return pass != Pass::kRefused;
  }
  void trip() {
    while (breaker.state() == State::kClosed) ask(Outcome::kFailure);
  }
  CircuitBreaker breaker;
  TimePoint now{1000s};
};

}  // namespace

TEST_CASE("it opens at half of twenty, not before") {
  Driven driven;
  for (int i = 0; i < 19; ++i)
    CHECK(driven.ask(i % 2 == 0 ? Outcome::kFailure : Outcome::kSuccess));
  CHECK(driven.breaker.state() == State::kClosed);
  driven.ask(Outcome::kFailure);
  CHECK(driven.breaker.state() == State::kOpen);
  CHECK_FALSE(driven.ask(Outcome::kSuccess));
  CHECK(driven.breaker.refused() == 1);
}

TEST_CASE("failures that are old, few, or none of its own do not open it") {
  Driven few;
  for (int i = 0; i < 1000; ++i) few.ask(i % 3 == 0 ? Outcome::kFailure : Outcome::kSuccess);
  CHECK(few.breaker.state() == State::kClosed);
  Driven old;
  for (int i = 0; i < 100; ++i) {
    old.ask(Outcome::kFailure);
    old.now += 1s;
  }
  CHECK(old.breaker.state() == State::kClosed);
  Driven neither;
  for (int i = 0; i < 1000; ++i) neither.ask(Outcome::kNeither);
  neither.ask(Outcome::kFailure);
  CHECK(neither.breaker.state() == State::kClosed);
}

TEST_CASE("so many in a row open it when that is asked for") {
  BreakerOptions options;
  options.consecutive = 3;
  Driven driven(options);
  for (int i = 0; i < 5; ++i) {
    driven.ask(Outcome::kFailure);
    driven.ask(Outcome::kFailure);
    driven.ask(Outcome::kSuccess);
  }
  CHECK(driven.breaker.state() == State::kClosed);
  for (int i = 0; i < 3; ++i) driven.ask(Outcome::kFailure);
  CHECK(driven.breaker.state() == State::kOpen);
}

TEST_CASE("half-open: a few probes, which close it or open it for twice as long") {
  Driven driven;
  driven.trip();
  driven.now += 4999ms;
  CHECK(driven.breaker.pass(driven.now) == Pass::kRefused);
  driven.now += 1ms;
  for (int i = 0; i < 3; ++i) CHECK(driven.breaker.pass(driven.now) == Pass::kProbe);
  CHECK(driven.breaker.pass(driven.now) == Pass::kRefused);
  CHECK(driven.breaker.state() == State::kHalfOpen);
  driven.breaker.record(Pass::kProbe, Outcome::kFailure, driven.now);
  CHECK(driven.breaker.state() == State::kOpen);
  for (const auto time : {10s, 20s, 40s, 60s, 60s}) {
    driven.now += time - 1ms;
    CHECK_FALSE(driven.ask(Outcome::kFailure));
    driven.now += 1ms;
    CHECK(driven.ask(Outcome::kFailure));
  }
  driven.now += 60s;
  for (int i = 0; i < 2; ++i) {
    CHECK(driven.ask(Outcome::kSuccess));
    CHECK(driven.breaker.state() == State::kHalfOpen);
  }
  CHECK(driven.ask(Outcome::kSuccess));
  CHECK(driven.breaker.state() == State::kClosed);
  driven.trip();  // from the start again
  driven.now += 5s;
  CHECK(driven.ask(Outcome::kNeither));
  CHECK(driven.breaker.state() == State::kHalfOpen);
}

TEST_CASE("probes that are never answered do not keep it shut") {
  Driven driven;
  driven.trip();
  driven.now += 5s;
  for (int i = 0; i < 3; ++i) CHECK(driven.breaker.pass(driven.now) == Pass::kProbe);
  CHECK(driven.breaker.pass(driven.now) == Pass::kRefused);
  driven.now += 5s;
  CHECK(driven.breaker.pass(driven.now) == Pass::kProbe);
}

TEST_CASE("what was under way when it opened says nothing later") {
  Driven driven;
  const Pass early = driven.breaker.pass(driven.now);
  driven.trip();
  driven.now += 5s;
  CHECK(driven.ask(Outcome::kSuccess));
  driven.breaker.record(early, Outcome::kFailure, driven.now);
  CHECK(driven.breaker.state() == State::kHalfOpen);
}

TEST_CASE("many threads: nothing is lost, it opens once") {
  CircuitBreaker breaker{BreakerOptions{}};
  const TimePoint now{1000s};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) breaker.record(breaker.pass(now), Outcome::kFailure, now);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(breaker.state() == State::kOpen);
  CHECK(breaker.changes()[static_cast<std::size_t>(State::kOpen)] == 1);
}

namespace {

class Model final : public Servable {
 public:
  void submit(RequestPtr request) override {
    ++asked;
    if (before) before(*request);
    answer(std::move(request), status);
  }
  const ModelSpec& spec() const override { return spec_; }
  Status status;
  int asked = 0;
  std::function<void(Request&)> before;

 private:
  ModelSpec spec_;
};

class Client final : public Completion {
 public:
  void complete(RequestPtr request) noexcept override {
    ++answers;
    status = request->response.status;
    circuit_open = request->response.circuit_open;
  }
  int answers = 0;
  Status status;
  bool circuit_open = false;
};

struct Behind {
  TimePoint now{1000s};
  std::shared_ptr<Model> model = std::make_shared<Model>();
  std::shared_ptr<Guarded> guarded = Guarded::make(model, {}, [this] { return now; });
  Client client;
  void ask(TimePoint deadline = kNever) {
    RequestPtr request(new Request(client));
    request->deadline = deadline;
    guarded->submit(std::move(request));
  }
  State state() const { return guarded->breaker().state(); }
};

}  // namespace

TEST_CASE("a guarded model that fails is left alone, and asked again later") {
  Behind behind;
  behind.model->status = Status::internal("boom");
  for (int i = 0; i < 30; ++i) behind.ask();
  CHECK(behind.client.answers == 30);
  CHECK(behind.model->asked == 20);
  CHECK(behind.client.status.code() == StatusCode::kUnavailable);
  CHECK(behind.client.circuit_open);
  behind.model->status = Status();
  behind.now += 5s;
  std::vector<RequestPtr> together;
  for (int i = 0; i < 5; ++i) together.emplace_back(new Request(behind.client));
  behind.guarded->submit_together(together);
  CHECK(behind.client.answers == 35);
  CHECK(behind.state() == State::kClosed);
}

TEST_CASE("what the model is not to blame for opens no circuit; lateness does") {
  Behind behind;
  for (const StatusCode code :
       {StatusCode::kInvalidArgument, StatusCode::kCancelled, StatusCode::kUnavailable,
        StatusCode::kResourceExhausted, StatusCode::kDeadlineExceeded, StatusCode::kNotFound}) {
    behind.model->status = Status(code, "");
    for (int i = 0; i < 100; ++i) behind.ask();
    CHECK(behind.state() == State::kClosed);
  }
  behind.model->status = Status::internal("boom");
  behind.model->before = [](Request& request) { request.cancel(); };
  for (int i = 0; i < 100; ++i) behind.ask();
  CHECK(behind.state() == State::kClosed);
  behind.model->status = Status();
  for (int i = 0; i < 100; ++i) behind.ask(behind.now - 1s);
  CHECK(behind.state() == State::kOpen);

  Behind other;
  for (int i = 0; i < 20; ++i) other.guarded->gave_up();
  CHECK(other.state() == State::kOpen);
}
