#include "core/request.h"

#include <doctest/doctest.h>

#include "requests.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

// Counts what is given back, and reuses nothing.
class Counting final : public Completion {
 public:
  void complete(RequestPtr request) noexcept override {
    ++completed;
    last = request->response.status;
    outputs = request->response.outputs.size();
    if (keep) kept = std::move(request);
  }
  void release(Request* request) noexcept override {
    ++released;
    Completion::release(request);
  }
  int completed = 0;
  int released = 0;
  std::size_t outputs = 0;
  bool keep = false;
  Status last;
  RequestPtr kept;
};

}  // namespace

TEST_CASE("a dropped request answers INTERNAL by itself, once") {
  Counting completion;
  { const RequestPtr request(new Request(completion)); }
  CHECK(completion.completed == 1);
  CHECK(completion.released == 1);
  CHECK(completion.last.code() == StatusCode::kInternal);
}

TEST_CASE("an answered request is answered once and given back when its holder is done") {
  Counting completion;
  completion.keep = true;
  answer(RequestPtr(new Request(completion)));
  CHECK(completion.completed == 1);
  CHECK(completion.last.ok());
  CHECK(completion.released == 0);
  completion.kept.reset();
  CHECK(completion.completed == 1);
  CHECK(completion.released == 1);
}

TEST_CASE("an error carries no outputs") {
  Counting completion;
  RequestPtr request(new Request(completion));
  request->response.outputs.resize(2);
  answer(std::move(request), Status::unavailable("full"));
  CHECK(completion.last.code() == StatusCode::kUnavailable);
  CHECK(completion.outputs == 0);
  CHECK(completion.released == 1);
}

TEST_CASE("reset makes a request as new, for its next call") {
  Counting completion;
  completion.keep = true;
  RequestPtr request = make_request(completion, {{"X", DType::kFp32, {1}, "abcd"}}, 9, {"Y"});
  request->cancel();
  request->deadline = TimePoint{};
  answer(std::move(request), Status::internal(""));
  Request& again = *completion.kept;
  again.reset();
  CHECK(again.inputs.empty());
  CHECK(again.outputs.empty());
  CHECK_FALSE(again.message);
  CHECK_FALSE(again.cancelled());
  CHECK(again.deadline == kNever);
  CHECK(again.response.status.ok());
  CHECK(again.call_id == 0);
  // Not answered any more: its next drop answers.
  completion.keep = false;
  completion.kept.reset();
  CHECK(completion.completed == 2);
  CHECK(completion.released == 1);
}
