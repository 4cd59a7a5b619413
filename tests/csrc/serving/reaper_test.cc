#include "serving/reaper.h"

#include <doctest/doctest.h>

#include <memory>

#include "requests.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

// A queue that nobody pulls from.
struct Queue {
  explicit Queue(Reaper& r)
      : reaper(r), batcher(BatchPolicy{}, [](RequestPtr refused, Status status) {
          answer(std::move(refused), std::move(status));
        }) {
    reaper.add(batcher);
  }
  ~Queue() { reaper.remove(batcher); }
  void push(TimePoint deadline) {
    RequestPtr request = make_request(collector, {});
    request->times.queued = Clock::now();
    request->deadline = deadline;
    const TimePoint when = batcher.push(std::move(request));
    if (when != kNever) reaper.wake_at(batcher, when);
  }
  Collector collector;
  Reaper& reaper;
  Batcher batcher;
};

}  // namespace

TEST_CASE("requests whose deadline passes are answered though no instance pulls") {
  Reaper reaper;
  Queue first(reaper);
  Queue second(reaper);
  first.push(Clock::now() + 1h);
  first.push(Clock::now() + 2ms);
  second.push(Clock::now() + 1ms);
  second.push(Clock::now() - 1s);
  second.push(Clock::now() + 3ms);
  for (const Answer& answer : first.collector.wait(1)) {
    CHECK(answer.status.code() == StatusCode::kDeadlineExceeded);
  }
  CHECK(second.collector.wait(3).size() == 3);
  CHECK(first.batcher.pending() == 1);
}

TEST_CASE("queues come and go while the reaper works; waking one that left does nothing") {
  Reaper reaper;
  for (int i = 0; i < 200; ++i) {
    Queue queue(reaper);
    for (int n = 0; n < 3; ++n) queue.push(Clock::now());
    if (i % 2 == 0) queue.collector.wait(3);
    reaper.remove(queue.batcher);
    reaper.wake_at(queue.batcher, Clock::now());
    queue.batcher.close(Batcher::Close::kRefuse);
    CHECK(queue.collector.answers().size() == 3);
  }
}
