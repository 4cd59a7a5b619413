#include "routing/fallback.h"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

using namespace headrace;

namespace {

// Answers every request with a status, now or on a thread of its own; or drops it.
class Answering final : public Servable {
 public:
  explicit Answering(Status status) : status_(std::move(status)) {}
  ~Answering() override {
    for (std::thread& thread : threads_) thread.join();
  }
  void submit(RequestPtr request) override {
    ++asked;
    CHECK(request->response.status.ok());  // as new
    if (drops) return;
    if (before_answer) before_answer(*request);
    const auto reply = [status = status_](RequestPtr mine) {
      if (!status.ok()) return answer(std::move(mine), status);
      mine->response.model_version = "good";
      answer(std::move(mine));
    };
    if (!on_thread) return reply(std::move(request));
    const std::lock_guard lock(mutex_);
    threads_.emplace_back([reply, raw = request.release()] { reply(RequestPtr(raw)); });
  }
  const ModelSpec& spec() const override { return spec_; }
  bool ready() const noexcept override { return well; }
  void gave_up() noexcept override { ++given_up; }

  bool well = true;
  int given_up = 0;
  std::atomic<int> asked{0};
  bool drops = false;
  bool on_thread = false;
  std::function<void(Request&)> before_answer;

 private:
  const Status status_;
  ModelSpec spec_;
  std::mutex mutex_;
  std::vector<std::thread> threads_;  // guarded by mutex_
};

// Where the answers arrive; keeps one request for reuse, as a pool does.
class Client final : public Completion {
 public:
  void complete(RequestPtr request) noexcept override {
    status = request->response.status;
    version = request->response.model_version;
    fallback_from = request->fallback_from != nullptr ? *request->fallback_from : "";
    ++answers;
    answers.notify_all();
  }
  void release(Request* request) noexcept override {
    CHECK(pooled == nullptr);
    request->reset();
    pooled = request;
  }
  ~Client() override { delete pooled; }
  RequestPtr make() {
    Request* request = pooled.exchange(nullptr);
    return RequestPtr(request != nullptr ? request : new Request(*this));
  }
  void wait_for(int count) {
    for (int seen = answers; seen < count; seen = answers) answers.wait(seen);
  }

  std::atomic<Request*> pooled{nullptr};
  std::atomic<int> answers{0};
  Status status;
  std::string version;
  std::string fallback_from;
};

std::shared_ptr<Answering> good() { return std::make_shared<Answering>(Status()); }
std::shared_ptr<Answering> bad(Status status = Status::internal("broken")) {
  return std::make_shared<Answering>(std::move(status));
}

}  // namespace

TEST_CASE("what the first fails the next answers, and the response says so") {
  Client client;
  const auto first = bad();
  const auto second = bad(Status::unavailable("busy"));
  const auto third = good();
  const auto fallback = Fallback::make({first, second, third}, "canary");
  for (int i = 1; i <= 3; ++i) {  // the pooled request is as new each time
    fallback->submit(client.make());
    CHECK(client.answers == i);
    CHECK(client.status.ok());
    CHECK(client.version == "good");
    CHECK(client.fallback_from == "canary");
    CHECK(first->asked == i);
    CHECK(second->asked == i);
    CHECK(third->asked == i);
  }
}

TEST_CASE("what the first answers is nobody else's business") {
  Client client;
  const auto second = good();
  const auto fallback = Fallback::make({good(), second}, "canary");
  fallback->submit(client.make());
  CHECK(client.status.ok());
  CHECK(client.fallback_from.empty());
  CHECK(second->asked == 0);
}

TEST_CASE("when all fail the client is told the last one's reason") {
  Client client;
  const auto fallback =
      Fallback::make({bad(), bad(Status::invalid_argument("wrong shape"))}, "canary");
  fallback->submit(client.make());
  CHECK(client.answers == 1);
  CHECK(client.status.code() == StatusCode::kInvalidArgument);
  CHECK(client.status.message() == "wrong shape");
}

TEST_CASE("nothing is tried again when nobody waits any more") {
  Client client;
  for (const StatusCode code : {StatusCode::kCancelled, StatusCode::kDeadlineExceeded}) {
    const auto second = good();
    Fallback::make({bad(Status(code, "")), second}, "canary")->submit(client.make());
    CHECK(client.status.code() == code);
    CHECK(second->asked == 0);
  }
  const auto first = bad();
  first->before_answer = [](Request& request) { request.cancel(); };
  const auto second = good();
  Fallback::make({first, second}, "canary")->submit(client.make());
  CHECK(client.status.code() == StatusCode::kInternal);
  CHECK(second->asked == 0);
}

TEST_CASE("a request that the first one drops is answered by the next") {
  Client client;
  const auto first = good();
  first->drops = true;
  Fallback::make({first, good()}, "canary")->submit(client.make());
  CHECK(client.answers == 1);
  CHECK(client.status.ok());
  CHECK(client.fallback_from == "canary");
}

TEST_CASE("chains in chains: each passes on by itself") {
  Client client;
  const auto inner = Fallback::make({bad(), bad()}, "inner");
  const auto outer = Fallback::make({inner, good()}, "outer");
  outer->submit(client.make());
  CHECK(client.answers == 1);
  CHECK(client.status.ok());
  CHECK(client.fallback_from == "outer");
}

TEST_CASE("it lives as long as a request needs it, on whatever thread the answers come") {
  Client client;
  const auto second = good();  // ends last: the first one's threads call it
  const auto first = bad();
  first->on_thread = second->on_thread = true;
  for (int i = 1; i <= 50; ++i) {
    auto fallback = Fallback::make({first, second}, "canary");
    const std::weak_ptr<Fallback> watched = fallback;
    std::array<RequestPtr, 1> requests{client.make()};
    fallback->submit_together(requests);
    fallback.reset();
    client.wait_for(i);
    while (client.pooled == nullptr) std::this_thread::yield();
    CHECK(client.status.ok());
    while (!watched.expired()) std::this_thread::yield();
  }
  CHECK(client.answers == 50);
}

TEST_CASE("a fallback is ready while one of it is; the first hears that it took too long") {
  const auto first = std::make_shared<Answering>(Status());
  const auto second = std::make_shared<Answering>(Status());
  const std::shared_ptr<Fallback> fallback = Fallback::make({first, second}, "canary");
  CHECK(fallback->ready());
  first->well = false;
  CHECK(fallback->ready());
  second->well = false;
  CHECK_FALSE(fallback->ready());
  fallback->gave_up();
  CHECK(first->given_up == 1);
  CHECK(second->given_up == 0);
}
