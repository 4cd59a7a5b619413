#include "frontend/tracing.h"

#include <doctest/doctest.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

using namespace headrace;

namespace {

const std::string kSampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const std::string kNotSampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

struct Ignore final : Completion {
  void complete(RequestPtr) noexcept override {}
};

int traced_of_1000(Tracing& tracing, const std::string& prefix) {
  int traced = 0;
  for (int i = 0; i < 1000; ++i) {
    traced += tracing.begin("", prefix.empty() ? "" : prefix + std::to_string(i)) != nullptr;
  }
  return traced;
}

}  // namespace

TEST_CASE("nothing is traced before it is configured, nor without room") {
  Tracing tracing;
  CHECK_FALSE(tracing.on());
  tracing.configure(1, 0);
  CHECK_FALSE(tracing.on());
  tracing.configure(1, 1);
  CHECK(tracing.on());
}

TEST_CASE("the caller's flag decides, whatever the ratio") {
  Tracing tracing;
  tracing.configure(0, 10);
  const auto context = tracing.begin(kSampled, "id");
  REQUIRE(context);
  CHECK(context->trace_id[0] == 0x4b);
  CHECK(context->parent_id[1] == 0xf0);
  CHECK(context->span_id != context->parent_id);
  CHECK_FALSE(tracing.begin("", "id"));
  tracing.configure(1, 10);
  CHECK_FALSE(tracing.begin(kNotSampled, "id"));
  CHECK(tracing.begin("not a traceparent", "id"));
}

TEST_CASE("the ratio decides by the request's id, the same everywhere") {
  Tracing one;
  Tracing other;
  one.configure(0.25, 10);
  other.configure(0.25, 10);
  for (int i = 0; i < 1000; ++i) {
    const std::string id = std::to_string(i);
    CHECK((one.begin("", id) != nullptr) == (other.begin("", id) != nullptr));
  }
  // Five standard deviations of 1000 draws: 68.
  for (const char* prefix : {"request-", ""}) {
    const int traced = traced_of_1000(one, prefix);
    CHECK(traced > 182);
    CHECK(traced < 318);
  }
  one.configure(1, 10);
  CHECK(traced_of_1000(one, "x") == 1000);
  one.configure(0, 10);
  CHECK(traced_of_1000(one, "x") == 0);
}

TEST_CASE("ids of traces and spans differ and are not zero") {
  Tracing tracing;
  tracing.configure(1, 10);
  std::set<std::array<uint8_t, 16>> traces;
  std::set<std::array<uint8_t, 8>> spans;
  for (int i = 0; i < 1000; ++i) {
    const auto context = tracing.begin("", "");
    traces.insert(context->trace_id);
    spans.insert(context->span_id);
  }
  CHECK(traces.size() == 1000);
  CHECK(spans.size() == 1000);
  CHECK_FALSE(traces.contains(std::array<uint8_t, 16>{}));
}

TEST_CASE("a full ring drops and counts; nothing is told twice or lost, from many threads") {
  Tracing tracing;
  tracing.configure(1, 3000);
  Ignore completion;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        Request request(completion);
        request.trace = tracing.begin("", "");
        request.model_name = "m";
        request.id = std::string_view("id");
        request.rows = 2;
        request.batch_rows = 8;
        tracing.record(request, Clock::now());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Tracing::Drained first = tracing.drain();
  CHECK(first.records.size() == 3000);
  CHECK(first.dropped == 1000);
  CHECK(first.records[0].model == "m");
  CHECK(first.records[0].batch_rows == 8);
  std::set<std::array<uint8_t, 8>> spans;
  for (const TraceRecord& record : first.records) spans.insert(record.context.span_id);
  CHECK(spans.size() == 3000);
  const Tracing::Drained second = tracing.drain();
  CHECK(second.records.empty());
  CHECK(second.dropped == 1000);
}

TEST_CASE("texts of clients are cut") {
  Tracing tracing;
  tracing.configure(1, 1);
  Ignore completion;
  Request request(completion);
  const std::string longer(10000, 'x');
  request.id = longer;
  request.trace = tracing.begin("", request.id);
  tracing.record(request, Clock::now());
  CHECK(tracing.drain().records[0].request_id.size() == Tracing::kMaxText);
}
