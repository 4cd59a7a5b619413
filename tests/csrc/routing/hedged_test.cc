#include "routing/hedged.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "requests.h"

using namespace headrace;
using std::chrono::milliseconds;
using testing::Answer;
using testing::Collector;

namespace {

// Keeps its requests until it is told what to answer; the answer is a text.
class Holding final : public Servable {
 public:
  Holding() : spec_(std::make_shared<ModelSpec>()) {
    spec_->outputs.push_back(testing::tensor_spec("y", DType::kBytes, {1}));
  }
  void submit(RequestPtr request) override {
    const std::lock_guard lock(mutex_);
    held_.push_back(std::move(request));
  }
  const ModelSpec& spec() const override { return *spec_; }
  bool ready() const noexcept override { return is_ready; }
  void gave_up() noexcept override { ++given_up; }

  std::size_t held() const {
    const std::lock_guard lock(mutex_);
    return held_.size();
  }
  // Null without one; the oldest, or the newest.
  RequestPtr take(bool newest = false) {
    const std::lock_guard lock(mutex_);
    if (held_.empty()) return nullptr;
    RequestPtr taken = std::move(newest ? held_.back() : held_.front());
    newest ? held_.pop_back() : held_.pop_front();
    return taken;
  }
  void good(RequestPtr request, const std::string& text) const {
    request->spec = spec_;
    BufferRef owner = BufferRef::allocate(text.size() + 4);
    const std::string bytes = testing::strings({text});
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(owner.data()));
    const std::span<const std::byte> view = std::as_const(owner).span();
    request->response.outputs.push_back(
        {spec_->outputs.front().name, {DType::kBytes, Shape{1}, view}, std::move(owner)});
    answer(std::move(request));
  }
  static void bad(RequestPtr request, std::string text) {
    answer(std::move(request), Status::internal(std::move(text)));
  }

  bool is_ready = true;
  int given_up = 0;

 private:
  std::shared_ptr<ModelSpec> spec_;
  mutable std::mutex mutex_;
  std::deque<RequestPtr> held_;  // guarded by mutex_
};

struct Rig {
  explicit Rig(double budget = 1.0, Nanoseconds after = milliseconds(10)) {
    hedged = Hedged::make(model, {after, budget, [this] { return now; }}, alarms);
  }
  void submit(uint64_t id, TimePoint deadline = kNever) {
    RequestPtr request(new Request(client));
    request->call_id = id;
    request->deadline = deadline;
    last = request.get();
    hedged->submit(std::move(request));
  }
  void pass(milliseconds time) {
    now += time;
    alarms.advance(now);
  }
  std::string text(std::size_t number) {
    const std::vector<Answer> answers = client.answers();
    REQUIRE(answers.size() == number + 1);
    if (!answers[number].status.ok()) return answers[number].status.message();
    return answers[number].outputs[0].bytes.substr(4);
  }

  TimePoint now{std::chrono::hours(1)};
  Alarms alarms{Alarms::Run::kByHand, now};
  Collector client;
  std::shared_ptr<Holding> model = std::make_shared<Holding>();
  std::shared_ptr<Hedged> hedged;
  Request* last = nullptr;
};

TEST_CASE("an answer in time is asked for once") {
  Rig rig;
  rig.submit(1);
  rig.pass(milliseconds(9));
  rig.model->good(rig.model->take(), "first");
  rig.pass(milliseconds(1000));
  CHECK(rig.model->held() == 0);
  CHECK(rig.text(0) == "first");
  CHECK(rig.hedged->values().sent == 0);
}

TEST_CASE("the second attempt's answer is the client's, and the first attempt is over") {
  Rig rig;
  rig.submit(1);
  rig.pass(milliseconds(11));
  REQUIRE(rig.model->held() == 2);
  RequestPtr first = rig.model->take();
  CHECK_FALSE(first->cancelled());
  rig.model->good(rig.model->take(), "second");
  CHECK(rig.text(0) == "second");
  CHECK(first->cancelled());  // still queued, it would be dropped
  rig.model->good(std::move(first), "first");
  CHECK(rig.client.answers().size() == 1);
  CHECK(rig.hedged->values().sent == 1);
  CHECK(rig.hedged->values().won == 1);
}

TEST_CASE("the first attempt may still win") {
  Rig rig;
  rig.submit(1);
  rig.pass(milliseconds(11));
  rig.model->good(rig.model->take(), "first");
  CHECK(rig.text(0) == "first");
  Holding::bad(rig.model->take(), "late");
  CHECK(rig.client.answers().size() == 1);
  CHECK(rig.hedged->values().won == 0);
}

TEST_CASE("an error is answered at once, and never asked about again") {
  Rig rig;
  rig.submit(1);
  Holding::bad(rig.model->take(), "broken");
  CHECK(rig.text(0) == "broken");
  rig.pass(milliseconds(100));
  CHECK(rig.model->held() == 0);
}

TEST_CASE("an error waits for the other attempt; of two errors the first counts") {
  Rig rig;
  rig.submit(1);
  rig.pass(milliseconds(11));
  Holding::bad(rig.model->take(), "broken");
  CHECK(rig.client.answers().empty());
  rig.model->good(rig.model->take(), "second");
  CHECK(rig.text(0) == "second");

  rig.submit(2);
  rig.pass(milliseconds(11));
  Holding::bad(rig.model->take(true), "one");
  Holding::bad(rig.model->take(), "two");
  CHECK(rig.text(1) == "one");
}

TEST_CASE("no second attempt for who left or whose deadline has passed") {
  Rig rig;
  rig.submit(1);
  rig.last->cancel();
  rig.submit(2, rig.now + milliseconds(10));
  rig.pass(milliseconds(20));
  CHECK(rig.model->held() == 2);
  CHECK(rig.hedged->values().sent == 0);
  rig.model->good(rig.model->take(), "x");
  rig.model->good(rig.model->take(), "x");
}

TEST_CASE("the budget bounds the second attempts") {
  Rig rig(0.1);
  constexpr int kRequests = 1000;
  for (int i = 0; i < kRequests; ++i) {
    rig.submit(static_cast<uint64_t>(i));
    rig.pass(milliseconds(11));
    while (RequestPtr request = rig.model->take()) rig.model->good(std::move(request), "x");
  }
  const Hedged::Values values = rig.hedged->values();
  CHECK(values.sent >= kRequests / 10);
  CHECK(values.sent <= kRequests / 10 + Hedged::kBurst);
  CHECK(values.sent + values.no_budget == kRequests);
  CHECK(rig.client.answers().size() == kRequests);
}

TEST_CASE("without a time of its own: after the 95th percentile, once that is known") {
  Rig rig(1.0, Nanoseconds{0});
  for (int i = 0; i < 100; ++i) {
    rig.submit(static_cast<uint64_t>(i));
    rig.pass(milliseconds(20));
    CHECK(rig.model->held() == 1);
    rig.model->good(rig.model->take(), "x");
  }
  rig.submit(100);
  rig.pass(milliseconds(15));
  CHECK(rig.model->held() == 1);
  rig.pass(milliseconds(15));  // the bucket's upper bound is at most 25 % above
  CHECK(rig.model->held() == 2);
  while (RequestPtr request = rig.model->take()) rig.model->good(std::move(request), "x");
}

TEST_CASE("readiness and giving up are the servable's") {
  Rig rig;
  CHECK(rig.hedged->ready());
  rig.model->is_ready = false;
  CHECK_FALSE(rig.hedged->ready());
  rig.hedged->gave_up();
  CHECK(rig.model->given_up == 1);
}

// Counts answers by call.
class Counting final : public Completion {
 public:
  explicit Counting(std::size_t calls) : counts(calls) {}
  void complete(RequestPtr request) noexcept override {
    counts[request->call_id].fetch_add(1);
    answered.fetch_add(1);
  }
  std::vector<std::atomic<int>> counts;
  std::atomic<uint64_t> answered{0};
};

TEST_CASE("threads: every request is answered exactly once") {
  constexpr int kThreads = 3;
  constexpr int kEach = 300;
  constexpr uint64_t kAll = kThreads * kEach;
  Counting client(kAll);
  Alarms alarms;
  const auto model = std::make_shared<Holding>();
  const auto hedged = Hedged::make(model, {Nanoseconds(1000), 1.0, &Clock::now}, alarms);
  std::atomic<uint64_t> taken{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; i += 2) {
        std::vector<RequestPtr> two;
        for (int k = 0; k < 2; ++k) {
          two.emplace_back(new Request(client));
          two.back()->call_id = static_cast<uint64_t>(t * kEach + i + k);
        }
        hedged->submit_together(two);
      }
    });
  }
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(static_cast<unsigned>(t + 1));
      // Until no attempt is under way or can come.
      while (client.answered < kAll || taken < kAll + hedged->values().sent) {
        RequestPtr request = model->take(random() % 2 == 0);
        if (request == nullptr) {
          std::this_thread::yield();
          continue;
        }
        taken.fetch_add(1);
        if (random() % 8 == 0) {
          Holding::bad(std::move(request), "broken");
        } else {
          model->good(std::move(request), "x");
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::atomic<int>& count : client.counts) CHECK(count == 1);
}

}  // namespace
