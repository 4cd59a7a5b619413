#include "serving/release_gate.h"

#include <doctest/doctest.h>

#include <numeric>
#include <thread>

#include "requests.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

std::vector<RequestPtr> batch(Collector& collector, uint64_t id) {
  std::vector<RequestPtr> requests;
  requests.push_back(make_request(collector, {}, id));
  return requests;
}

void answer_all(std::vector<RequestPtr>& requests) {
  for (RequestPtr& request : requests) answer(std::move(request));
}

}  // namespace

TEST_CASE("a batch waits for those pulled before it") {
  Collector collector;
  ReleaseGate gate(answer_all);
  gate.release(2, batch(collector, 2));
  gate.release(1, batch(collector, 1));
  CHECK(collector.answers().empty());
  gate.release(0, batch(collector, 0));
  REQUIRE(collector.answers().size() == 3);
  for (uint64_t i = 0; i < 3; ++i) CHECK(collector.answers()[i].id == i);
}

TEST_CASE("the order holds over threads, and nothing stays behind") {
  constexpr uint64_t kBatches = 2000;
  Collector collector;
  ReleaseGate gate(answer_all);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = t; i < kBatches; i += 4) gate.release(i, batch(collector, i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<Answer> answers = collector.answers();
  REQUIRE(answers.size() == kBatches);
  bool ordered = true;
  for (uint64_t i = 0; i < kBatches; ++i) ordered = ordered && answers[i].id == i;
  CHECK(ordered);
}
