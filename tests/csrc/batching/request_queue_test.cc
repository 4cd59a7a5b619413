#include "batching/request_queue.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>

#include "requests.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

constexpr TimePoint kStart{1h};

struct Fixture {
  explicit Fixture(BatchPolicy p) : policy(std::move(p)), queue(policy) {}

  RequestPtr request(uint64_t id, int64_t rows = 1, int64_t width = 4) {
    RequestPtr made = make_request(collector, {{"X", DType::kInt8, {rows, width}, ""}}, id);
    made->rows = rows;
    made->input_of = {0};
    made->times.queued = kStart;
    return made;
  }
  Request* push(RequestPtr request) {
    Request* raw = request.get();
    queue.push(std::move(request), refused);
    return raw;
  }
  // Ids of the batch that is cut now.
  std::vector<uint64_t> cut(TimePoint now = kStart) {
    queue.expire(now, refused);
    Batch batch;
    queue.take(queue.cut(now, false, refused).requests, batch);
    std::vector<uint64_t> ids;
    for (const RequestPtr& taken : batch.requests) ids.push_back(taken->call_id);
    return ids;
  }
  std::map<uint64_t, StatusCode> refusals() {
    std::map<uint64_t, StatusCode> codes;
    for (const auto& [request, status] : refused) codes[request->call_id] = status.code();
    return codes;
  }

  Collector collector;
  BatchPolicy policy;
  RequestQueue queue;
  RequestQueue::Refused refused;
};

BatchPolicy rows(int64_t max_rows) {
  BatchPolicy policy;
  policy.max_rows = max_rows;
  return policy;
}

using Ids = std::vector<uint64_t>;

}  // namespace

TEST_CASE("batches are in arrival order, up to max_rows, never across what does not fit") {
  Fixture f(rows(4));
  f.push(f.request(1));
  f.push(f.request(2, 2));
  f.push(f.request(3, 2));     // would make five rows
  f.push(f.request(4, 1, 8));  // another row shape
  f.push(f.request(5));
  CHECK(f.cut() == Ids{1, 2});
  CHECK(f.cut() == Ids{3});
  CHECK(f.cut() == Ids{4});
  CHECK(f.cut() == Ids{5});
  CHECK(f.cut() == Ids{});
  CHECK(f.queue.empty());
}

TEST_CASE("without batching each request goes alone, whatever its rows") {
  Fixture f(rows(1));
  f.push(f.request(1, 5));
  f.push(f.request(2));
  CHECK(f.cut() == Ids{1});
  CHECK(f.cut() == Ids{2});
}

TEST_CASE("optional inputs: only requests with the same set share a batch") {
  Fixture f(rows(8));
  RequestPtr without = f.request(2);
  without->input_of = {0, Request::kAbsent};
  RequestPtr with = f.request(1);
  with->input_of = {0, 0};
  f.push(std::move(with));
  f.push(std::move(without));
  CHECK(f.cut() == Ids{1});
  CHECK(f.cut() == Ids{2});
}

TEST_CASE("higher levels first, 0 and what is beyond the levels is the default level") {
  BatchPolicy policy = rows(2);
  policy.priority_levels = 3;
  policy.default_priority_level = 2;
  Fixture f(policy);
  const std::vector<uint64_t> priorities = {3, 0, 1, 7, 2, 1};
  for (uint64_t i = 0; i < priorities.size(); ++i) {
    RequestPtr request = f.request(i);
    request->priority = priorities[i];
    f.push(std::move(request));
  }
  CHECK(f.cut() == Ids{2, 5});
  CHECK(f.cut() == Ids{1, 3});
  CHECK(f.cut() == Ids{4, 0});
}

TEST_CASE("a request of a higher level that arrives while the run is waiting goes first") {
  BatchPolicy policy = rows(2);
  policy.priority_levels = 2;
  policy.default_priority_level = 2;
  policy.max_queue_delay = 1ms;
  Fixture f(policy);
  f.push(f.request(1));
  CHECK(f.cut() == Ids{});
  RequestPtr urgent = f.request(2);
  urgent->priority = 1;
  f.push(std::move(urgent));
  CHECK(f.cut() == Ids{2, 1});
}

TEST_CASE("at the bound requests are refused, but cancelled ones make room") {
  BatchPolicy policy = rows(8);
  policy.default_queue_policy.max_queue_size = 3;
  Fixture f(policy);
  f.push(f.request(1));
  Request* leaving = f.push(f.request(2));
  f.push(f.request(3));
  f.push(f.request(4));
  REQUIRE(f.refused.size() == 1);
  CHECK(f.refused[0].second.message() == "Exceeds maximum queue size");
  CHECK(f.refusals() == std::map<uint64_t, StatusCode>{{4, StatusCode::kUnavailable}});
  leaving->cancel();
  f.push(f.request(5));
  CHECK(f.refusals()[2] == StatusCode::kCancelled);
  CHECK(f.cut() == Ids{1, 3, 5});
}

TEST_CASE("the bound of the whole queue holds over all levels") {
  BatchPolicy policy = rows(8);
  policy.priority_levels = 2;
  policy.default_priority_level = 1;
  policy.queue_bound = 2;
  Fixture f(policy);
  Request* leaving = f.push(f.request(1));
  RequestPtr low = f.request(2);
  low->priority = 2;
  f.push(std::move(low));
  RequestPtr more = f.request(3);
  more->priority = 2;
  f.push(std::move(more));
  CHECK(f.refusals() == std::map<uint64_t, StatusCode>{{3, StatusCode::kUnavailable}});
  leaving->cancel();
  more = f.request(4);
  more->priority = 2;
  f.push(std::move(more));
  CHECK(f.cut() == Ids{2, 4});
}

TEST_CASE("a level may have a bound of its own") {
  BatchPolicy policy = rows(8);
  policy.priority_levels = 2;
  policy.default_priority_level = 2;
  policy.priority_queue_policy[1].max_queue_size = 1;
  Fixture f(policy);
  for (uint64_t id = 1; id <= 3; ++id) {
    RequestPtr request = f.request(id);
    request->priority = 1;
    f.push(std::move(request));
    f.push(f.request(10 + id));
  }
  CHECK(f.cut() == Ids{1, 11, 12, 13});
  CHECK(f.refused.size() == 2);
}

TEST_CASE("cancelled requests are in no batch, and the batch is filled up past them") {
  Fixture f(rows(3));
  std::vector<Request*> pushed;
  for (uint64_t id = 0; id < 6; ++id) pushed.push_back(f.push(f.request(id)));
  pushed[0]->cancel();
  pushed[2]->cancel();
  CHECK(f.cut() == Ids{1, 3, 4});
  CHECK(f.refusals() ==
        std::map<uint64_t, StatusCode>{{0, StatusCode::kCancelled}, {2, StatusCode::kCancelled}});
}

TEST_CASE("a deadline that passed is DEADLINE_EXCEEDED, a queue timeout is UNAVAILABLE") {
  BatchPolicy policy = rows(8);
  policy.default_queue_policy.default_timeout = 10ms;
  Fixture f(policy);
  RequestPtr request = f.request(1);
  request->deadline = kStart + 5ms;
  f.push(std::move(request));
  f.push(f.request(2));
  RequestPtr late = f.request(3);
  late->times.queued = kStart + 3ms;
  f.push(std::move(late));
  CHECK(f.queue.next_expiry() == kStart + 5ms);
  CHECK(f.cut(kStart + 10ms) == Ids{3});
  CHECK(f.refusals() == std::map<uint64_t, StatusCode>{{1, StatusCode::kDeadlineExceeded},
                                                       {2, StatusCode::kUnavailable}});
  CHECK(f.refused[1].second.message() == "Request timeout expired");
  CHECK(f.queue.next_expiry() == kNever);
}

TEST_CASE("a request's own timeout counts only where the policy allows it, and only to shorten") {
  for (const bool allowed : {false, true}) {
    for (const Nanoseconds configured : {Nanoseconds(0ms), Nanoseconds(10ms)}) {
      BatchPolicy policy = rows(8);
      policy.default_queue_policy.allow_timeout_override = allowed;
      policy.default_queue_policy.default_timeout = configured;
      Fixture f(policy);
      for (const Nanoseconds asked : {Nanoseconds(5ms), Nanoseconds(20ms)}) {
        RequestPtr request = f.request(1);
        request->timeout = asked;
        f.push(std::move(request));
        Nanoseconds expected = configured;
        if (allowed && (configured == 0ms || asked < configured)) expected = asked;
        CHECK(f.queue.next_expiry() == (expected == 0ms ? kNever : kStart + expected));
        f.cut();
      }
    }
  }
}

TEST_CASE("DELAY: what timed out is served after what did not, and its deadline still holds") {
  BatchPolicy policy = rows(1);
  policy.default_queue_policy.default_timeout = 10ms;
  policy.default_queue_policy.timeout_action = QueuePolicy::TimeoutAction::kDelay;
  Fixture f(policy);
  f.push(f.request(1));
  RequestPtr second = f.request(2);
  second->deadline = kStart + 30ms;
  f.push(std::move(second));
  RequestPtr late = f.request(3);
  late->times.queued = kStart + 15ms;
  f.push(std::move(late));
  CHECK(f.cut(kStart + 20ms) == Ids{3});
  CHECK(f.queue.next_expiry() == kStart + 30ms);
  CHECK(f.cut(kStart + 20ms) == Ids{1});
  CHECK(f.cut(kStart + 40ms) == Ids{});
  CHECK(f.refusals() == std::map<uint64_t, StatusCode>{{2, StatusCode::kDeadlineExceeded}});
}

TEST_CASE("a delayed batch is cut when it is full, closed by another shape, or its time has come") {
  BatchPolicy policy = rows(3);
  policy.max_queue_delay = 1ms;
  Fixture f(policy);
  f.push(f.request(1));
  f.push(f.request(2));
  CHECK(f.cut() == Ids{});
  CHECK(f.queue.cut(kStart, false, f.refused).wait_until == kStart + 1ms);
  f.push(f.request(3));
  CHECK(f.cut() == Ids{1, 2, 3});
  f.push(f.request(4));
  Request* other = f.push(f.request(5, 1, 8));
  other->cancel();
  f.queue.drop_cancelled(f.refused);
  CHECK(f.cut() == Ids{});  // the one that closed the run has left
  f.push(f.request(6, 1, 8));
  CHECK(f.cut() == Ids{4});
  CHECK(f.cut() == Ids{});
  CHECK(f.cut(kStart + 1ms) == Ids{6});
}

// Any order of arrivals, cancels, expiries and cuts: each request leaves once, batches are
// compatible and bounded, and within a level and shape nothing is overtaken.
TEST_CASE("property: every request leaves once and in order") {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto pick = [&](uint32_t n) { return static_cast<uint64_t>(random() % n); };
    BatchPolicy policy = rows(1 + static_cast<int64_t>(pick(8)));
    policy.priority_levels = pick(3);
    policy.default_priority_level = policy.priority_levels;
    policy.default_queue_policy.max_queue_size = pick(2) == 0 ? 0 : 20;
    policy.default_queue_policy.default_timeout = pick(2) == 0 ? 0ms : 30ms;
    policy.max_queue_delay = pick(2) == 0 ? 0ms : 5ms;
    if (pick(2) == 0 && policy.max_rows >= 2) policy.preferred_batch_size = {2};
    if (pick(2) == 0) {
      policy.default_queue_policy.timeout_action = QueuePolicy::TimeoutAction::kDelay;
    }
    const bool overtakes =
        policy.default_queue_policy.timeout_action == QueuePolicy::TimeoutAction::kDelay;
    Fixture f(policy);
    std::map<uint64_t, int> left;
    std::map<uint64_t, uint64_t> newest;  // by level
    std::vector<Request*> queued;
    TimePoint now = kStart;
    uint64_t pushed = 0;
    const auto forget = [&](const Request* request) { std::erase(queued, request); };
    const auto collect = [&] {
      for (const auto& [request, status] : f.refused) {
        ++left[request->call_id];
        forget(request.get());
      }
      f.refused.clear();
    };
    const auto take = [&](bool draining) {
      const Cut cut = f.queue.cut(now, draining, f.refused);
      Batch batch;
      f.queue.take(cut.requests, batch);
      collect();
      REQUIRE((batch.requests.size() <= 1 || batch.rows <= policy.max_rows));
      int64_t total = 0;
      for (const RequestPtr& request : batch.requests) {
        ++left[request->call_id];
        forget(request.get());
        REQUIRE(compatible(*batch.requests.front(), *request));
        total += request->rows;
        uint64_t& last = newest[policy.priority_levels == 0 ? 0 : request->priority];
        if (!overtakes) REQUIRE(request->call_id >= last);
        last = request->call_id;
      }
      REQUIRE(total == batch.rows);
      return cut.requests;
    };
    for (int step = 0; step < 300; ++step) {
      now += Microseconds(pick(2000));
      switch (pick(8)) {
        case 0:
          if (!queued.empty()) queued[pick(static_cast<uint32_t>(queued.size()))]->cancel();
          break;
        case 1:
          f.queue.expire(now, f.refused);
          break;
        case 2:
          f.queue.drop_cancelled(f.refused);
          break;
        case 3:
          take(false);
          break;
        default: {
          RequestPtr request = f.request(++pushed, 1 + static_cast<int64_t>(pick(3)),
                                         4 + static_cast<int64_t>(pick(2)));
          request->times.queued = now;
          if (policy.priority_levels > 0)
            request->priority = 1 + pick(static_cast<uint32_t>(policy.priority_levels));
          if (pick(3) == 0) request->deadline = now + Milliseconds(pick(40));
          queued.push_back(f.push(std::move(request)));
        }
      }
      collect();
      REQUIRE(f.queue.size() == queued.size());
      REQUIRE((f.queue.next_expiry() == kNever || !queued.empty()));
    }
    while (!f.queue.empty()) REQUIRE((take(true) > 0 || f.queue.empty()));
    CHECK(left.size() == pushed);
    CHECK(
        std::all_of(left.begin(), left.end(), [](const auto& entry) { return entry.second == 1; }));
  }
}
