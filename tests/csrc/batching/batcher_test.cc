#include "batching/batcher.h"

#include <doctest/doctest.h>

#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "requests.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

RequestPtr request(Collector& collector, uint64_t id, int64_t rows = 1) {
  RequestPtr made = make_request(collector, {{"X", DType::kInt8, {rows, 4}, ""}}, id);
  made->rows = rows;
  made->input_of = {0};
  made->times.queued = Clock::now();
  return made;
}

Batcher::Refuse answer_it() {
  return [](RequestPtr refused, Status status) { answer(std::move(refused), std::move(status)); };
}

void answer_batch(Batch& batch) {
  for (RequestPtr& served : batch.requests) answer(std::move(served));
  batch.clear();
}

std::map<StatusCode, std::size_t> codes(const std::vector<Answer>& answers) {
  std::map<StatusCode, std::size_t> count;
  for (const Answer& answer : answers) ++count[answer.status.code()];
  return count;
}

}  // namespace

TEST_CASE("pull takes what is there, with its place in the order of pulls") {
  Collector collector;
  BatchPolicy policy;
  policy.max_rows = 2;
  Batcher batcher(policy, answer_it());
  for (uint64_t id = 0; id < 3; ++id) batcher.push(request(collector, id));
  CHECK(batcher.pending() == 3);
  Batch batch;
  REQUIRE(batcher.pull(batch));
  CHECK(batch.requests.size() == 2);
  CHECK(batch.rows == 2);
  CHECK(batch.sequence == 0);
  answer_batch(batch);
  REQUIRE(batcher.pull(batch));
  CHECK(batch.sequence == 1);
  answer_batch(batch);
  CHECK(batcher.pending() == 0);
}

TEST_CASE("push announces only expiries that are sooner than announced before") {
  Collector collector;
  Batcher batcher(BatchPolicy{}, answer_it());
  const TimePoint queued = Clock::now();
  const TimePoint soon = queued + 100ms;
  const auto push = [&](TimePoint deadline) {
    RequestPtr made = request(collector, 1);
    made->deadline = deadline;
    made->times.queued = queued;
    return batcher.push(std::move(made));
  };
  CHECK(push(kNever) == queued + Batcher::kLook);  // for who leaves
  CHECK(push(soon + 20ms) == soon + 20ms);
  CHECK(push(soon + 30ms) == kNever);
  CHECK(push(soon) == soon);
  CHECK(batcher.expire(soon) == soon + 20ms);
  CHECK(codes(collector.answers()) ==
        std::map<StatusCode, std::size_t>{{StatusCode::kDeadlineExceeded, 1}});
  CHECK(batcher.expire(soon + 1h) == soon + 1h + Batcher::kLook);
  CHECK(push(kNever) == queued + Batcher::kLook);
}

TEST_CASE("expire answers the cancelled while nobody pulls") {
  Collector collector;
  Batcher batcher(BatchPolicy{}, answer_it());
  RequestPtr made = request(collector, 1);
  Request* raw = made.get();
  batcher.push(std::move(made));
  raw->cancel();
  CHECK(batcher.expire(Clock::now()) == kNever);
  CHECK(codes(collector.answers()) ==
        std::map<StatusCode, std::size_t>{{StatusCode::kCancelled, 1}});
}

TEST_CASE("a crowd that left is answered in a few looks") {
  Collector collector;
  Batcher batcher(BatchPolicy{}, answer_it());
  std::vector<Request*> crowd;
  for (uint64_t id = 0; id < 1000; ++id) {
    RequestPtr made = request(collector, id);
    crowd.push_back(made.get());
    batcher.push(std::move(made));
  }
  batcher.push(request(collector, 1000));  // who stays
  for (Request* who : crowd) who->cancel();
  TimePoint now = Clock::now();
  int looks = 0;
  while (batcher.pending() > 1) {
    REQUIRE(++looks < 100);
    CHECK(batcher.expire(now) == now + Batcher::kLookAgain);
    now += Batcher::kLookAgain;
  }
  CHECK(batcher.expire(now) == now + Batcher::kLook);
  CHECK(codes(collector.answers()) ==
        std::map<StatusCode, std::size_t>{{StatusCode::kCancelled, 1000}});
}

TEST_CASE("closing to refuse answers all that is queued, and all that comes later") {
  Collector collector;
  Batcher batcher(BatchPolicy{}, answer_it());
  batcher.push(request(collector, 1));
  batcher.close(Batcher::Close::kRefuse);
  batcher.push(request(collector, 2));
  const std::vector<Answer> answers = collector.wait(2);
  for (const Answer& answer : answers) {
    CHECK(answer.status.code() == StatusCode::kUnavailable);
    CHECK(answer.status.message() ==
          "Server is stopping, scheduler for model has stopped accepting new inference requests");
  }
  Batch batch;
  CHECK_FALSE(batcher.pull(batch));
}

TEST_CASE("closing to drain hands out what is queued, without waiting out its delay") {
  Collector collector;
  BatchPolicy policy;
  policy.max_rows = 8;
  policy.max_queue_delay = 1h;
  Batcher batcher(policy, answer_it());
  batcher.push(request(collector, 1));
  batcher.close(Batcher::Close::kDrain);
  Batch batch;
  REQUIRE(batcher.pull(batch));
  answer_batch(batch);
  CHECK_FALSE(batcher.pull(batch));
  CHECK(codes(collector.answers()) == std::map<StatusCode, std::size_t>{{StatusCode::kOk, 1}});
}

TEST_CASE("an instance that waits out a delay takes the batch when it fills up, long before") {
  Collector collector;
  BatchPolicy policy;
  policy.max_rows = 4;
  policy.max_queue_delay = 1h;
  Batcher batcher(policy, answer_it());
  std::vector<std::size_t> sizes;
  std::thread instance([&] {
    Batch batch;
    while (batcher.pull(batch)) {
      sizes.push_back(batch.requests.size());
      answer_batch(batch);
    }
  });
  for (uint64_t id = 0; id < 8; ++id) batcher.push(request(collector, id));
  collector.wait(8);
  batcher.close(Batcher::Close::kDrain);
  instance.join();
  CHECK(sizes == std::vector<std::size_t>{4, 4});
}

TEST_CASE(
    "property: every request is answered once, under producers, cancels, deadlines and close") {
  for (const Batcher::Close how : {Batcher::Close::kDrain, Batcher::Close::kRefuse}) {
    for (const Nanoseconds delay : {Nanoseconds(0us), Nanoseconds(50us)}) {
      constexpr uint64_t kProducers = 4;
      constexpr uint64_t kEach = 1500;
      Collector collector;
      BatchPolicy policy;
      policy.max_rows = 8;
      policy.max_queue_delay = delay;
      policy.default_queue_policy.max_queue_size = 64;
      std::atomic<uint64_t> refused{0};
      Batcher batcher(policy, [&](RequestPtr request, Status status) {
        ++refused;
        answer(std::move(request), std::move(status));
      });
      std::vector<std::thread> instances;
      for (int i = 0; i < 2; ++i) {
        instances.emplace_back([&] {
          Batch batch;
          while (batcher.pull(batch)) answer_batch(batch);
        });
      }
      std::vector<std::thread> producers;
      std::atomic<uint64_t> pushed{0};
      for (uint64_t p = 0; p < kProducers; ++p) {
        producers.emplace_back([&, p] {
          std::mt19937 random(static_cast<uint32_t>(p));
          for (uint64_t i = 0; i < kEach; ++i) {
            RequestPtr made = request(collector, p * kEach + i, 1 + random() % 3);
            if (random() % 4 == 0) made->cancel();
            if (random() % 4 == 0) made->deadline = Clock::now() + Microseconds(random() % 200);
            batcher.push(std::move(made));
            if (++pushed == kProducers * kEach / 2) batcher.close(how);
          }
        });
      }
      for (std::thread& producer : producers) producer.join();
      for (std::thread& instance : instances) instance.join();
      const std::vector<Answer> answers = collector.wait(kProducers * kEach);
      std::map<uint64_t, int> times;
      for (const Answer& answer : answers) ++times[answer.id];
      CHECK(answers.size() == kProducers * kEach);
      CHECK(times.size() == kProducers * kEach);
      CHECK(codes(answers)[StatusCode::kInternal] == 0);
      CHECK(codes(answers)[StatusCode::kOk] == kProducers * kEach - refused);
      CHECK(batcher.pending() == 0);
    }
  }
}

TEST_CASE(
    "while no instance is in service, what is queued and what comes is refused with the fault") {
  Collector collector;
  Batcher batcher(BatchPolicy{}, answer_it(), 2);
  CHECK(batcher.in_service() == 2);
  for (uint64_t id = 0; id < 3; ++id) batcher.push(request(collector, id));
  batcher.leave(0, Status::unavailable("first"));
  CHECK(batcher.in_service() == 1);
  CHECK(batcher.pending() == 3);
  CHECK(batcher.load(0, Clock::now()).instances == 1);
  batcher.leave(1, Status::unavailable("second"));
  CHECK(batcher.pending() == 0);
  batcher.push(request(collector, 3));
  for (const Answer& answer : collector.wait(4)) CHECK(answer.status.message() == "second");
  CHECK(batcher.load(0, Clock::now()).idle);  // no estimate that would refuse them first

  batcher.enter(0);
  CHECK(batcher.in_service() == 1);
  batcher.push(request(collector, 4));
  Batch batch;
  REQUIRE(batcher.pull(batch, 0));
  answer_batch(batch);
  CHECK(collector.wait(5).back().status);
  batcher.enter(1);
  CHECK(batcher.load(0, Clock::now()).instances == 2);
  batcher.leave(0, Status::unavailable("third"));
  batcher.close(Batcher::Close::kDrain);
  batcher.enter(0);  // opens nothing
  batcher.push(request(collector, 5));
  CHECK(collector.wait(6).back().status.message() == Batcher::stopping().message());
}

TEST_CASE("an instance that is given back to be attended to answers its thread, not its requests") {
  Collector collector;
  Batcher batcher(BatchPolicy{}, answer_it());
  std::atomic<int> attended{0};
  std::thread instance([&] {
    Batch batch;
    while (true) {
      if (batcher.pull(batch)) {
        answer_batch(batch);
      } else if (++attended > 10) {
        return;
      }
    }
  });
  uint64_t id = 0;
  while (attended <= 10) {
    // An instance that is slower than this thread would never wait, nor be lent.
    while (batcher.pending() > 4) std::this_thread::yield();
    RequestPtr one = request(collector, id++);
    batcher.push({&one, 1}, false);
    Batch batch;
    Batcher::Loan loan;
    if (batcher.borrow(batch, loan)) answer_batch(batch);
    batcher.give_back(loan, true);
  }
  instance.join();
  batcher.close(Batcher::Close::kRefuse);
  CHECK(collector.wait(id).size() == id);
}
