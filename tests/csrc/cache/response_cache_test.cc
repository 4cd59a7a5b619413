#include "cache/response_cache.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "requests.h"

using namespace headrace;
using testing::Collector;
using testing::make_request;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// Answers with the input's bytes and its number of the question; now, or when told.
class Echo final : public Servable {
 public:
  Echo() : spec_(std::make_shared<ModelSpec>()) {
    spec_->name = "echo";
    spec_->outputs.push_back(testing::tensor_spec("y", DType::kBytes, {-1}));
  }
  void submit(RequestPtr request) override {
    asked.fetch_add(1);
    if (later) {
      const std::lock_guard lock(mutex_);
      return held_.push_back(std::move(request));
    }
    reply(std::move(request));
  }
  const ModelSpec& spec() const override { return *spec_; }
  bool ready() const noexcept override { return well; }
  void gave_up() noexcept override { ++given_up; }

  bool well = true;
  int given_up = 0;
  std::size_t held() {
    const std::lock_guard lock(mutex_);
    return held_.size();
  }
  // Answers what it holds.
  void release() {
    std::vector<RequestPtr> held;
    {
      const std::lock_guard lock(mutex_);
      held.swap(held_);
    }
    for (RequestPtr& request : held) reply(std::move(request));
  }

  std::atomic<int> asked{0};
  std::atomic<bool> later{false};
  std::function<Status(const Request&)> status = [](const Request&) { return Status(); };

 private:
  void reply(RequestPtr request) {
    if (Status bad = status(*request); !bad.ok()) return answer(std::move(request), bad);
    request->spec = spec_;
    request->response.model_name = spec_->name;
    request->response.model_version = spec_->version_text;
    const std::span<const std::byte> bytes = request->inputs.front().tensor.data;
    BufferRef owner = BufferRef::allocate(bytes.size());
    std::copy(bytes.begin(), bytes.end(), owner.data());
    const std::span<const std::byte> view = std::as_const(owner).span();
    request->response.outputs.push_back(
        {spec_->outputs.front().name, {DType::kBytes, {1}, view}, std::move(owner)});
    answer(std::move(request));
  }

  std::shared_ptr<ModelSpec> spec_;
  std::mutex mutex_;
  std::vector<RequestPtr> held_;  // guarded by mutex_
};

struct Fixture {
  explicit Fixture(std::size_t bytes = kMiB, CacheOptions options = {})
      : cache(std::make_shared<ResponseCache>(bytes)),
        cached(CachedServable::make(cache, echo, options)) {}
  RequestPtr ask(const std::string& bytes, uint64_t id = 0) {
    return make_request(collector, {{"x", DType::kBytes, {1}, bytes}}, id);
  }
  // The answer to a question that is answered at once.
  std::string answer_to(const std::string& bytes) {
    Collector mine;
    cached->submit(make_request(mine, {{"x", DType::kBytes, {1}, bytes}}));
    const testing::Answer answer = mine.wait(1).back();
    CHECK(answer.status.ok());
    CHECK(answer.outputs.size() == 1);
    CHECK(answer.outputs.front().name == "y");
    return answer.outputs.front().bytes;
  }

  Collector collector;
  std::shared_ptr<Echo> echo = std::make_shared<Echo>();
  std::shared_ptr<ResponseCache> cache;
  std::shared_ptr<CachedServable> cached;
};

}  // namespace

TEST_CASE("a question is asked once") {
  Fixture f;
  CHECK(f.answer_to("a") == "a");
  CHECK(f.answer_to("a") == "a");
  CHECK(f.answer_to("b") == "b");
  CHECK(f.echo->asked == 2);
  const CachedServable::Statistics statistics = f.cached->statistics();
  CHECK(statistics.hits == 1);
  CHECK(statistics.misses == 2);
  CHECK(f.cache->statistics().entries == 2);
}

TEST_CASE("an answer is told by the version it came from, also after that is gone") {
  Fixture f;
  f.answer_to("a");
  f.cached->submit(f.ask("a"));
  CHECK(f.collector.wait(1).back().outputs.front().bytes == "a");
  CHECK(f.cached->spec().name == "echo");
  f.cached.reset();
  CHECK(f.cache->statistics().entries == 0);
  CHECK(f.cache->statistics().bytes == 0);
}

TEST_CASE("who asks what is being asked waits for that answer") {
  Fixture f;
  f.echo->later = true;
  for (uint64_t id = 1; id <= 5; ++id) f.cached->submit(f.ask("a", id));
  CHECK(f.echo->asked == 1);
  CHECK(f.collector.answers().empty());
  f.echo->release();
  const std::vector<testing::Answer> answers = f.collector.wait(5);
  CHECK(answers.size() == 5);
  for (const testing::Answer& answer : answers) CHECK(answer.outputs.front().bytes == "a");
  CHECK(f.cached->statistics().hits == 4);
}

TEST_CASE("requests that come together are one question too") {
  Fixture f;
  f.answer_to("known");
  std::vector<RequestPtr> requests;
  for (const char* text : {"a", "known", "a", "b"}) requests.push_back(f.ask(text));
  f.cached->submit_together(requests);
  CHECK(f.collector.wait(4).size() == 4);
  CHECK(f.echo->asked == 3);
}

TEST_CASE("an error is the answer of all who waited, and is not kept") {
  Fixture f;
  f.echo->later = true;
  f.echo->status = [](const Request&) { return Status::internal("broken"); };
  for (int i = 0; i < 3; ++i) f.cached->submit(f.ask("a"));
  f.echo->release();
  for (const testing::Answer& answer : f.collector.wait(3)) {
    CHECK(answer.status.code() == StatusCode::kInternal);
  }
  CHECK(f.echo->asked == 1);
  CHECK(f.cache->statistics().entries == 0);
  f.echo->later = false;
  f.echo->status = [](const Request&) { return Status(); };
  CHECK(f.answer_to("a") == "a");
}

TEST_CASE("what went wrong with one request alone does not reach the others") {
  Fixture f;
  f.echo->later = true;
  f.echo->status = [](const Request& request) {
    return request.cancelled() ? Status::cancelled("") : Status();
  };
  RequestPtr first = f.ask("a", 1);
  Request* const raw = first.get();
  f.cached->submit(std::move(first));
  f.cached->submit(f.ask("a", 2));
  f.cached->submit(f.ask("a", 3));
  raw->cancel();
  f.echo->release();
  CHECK(f.collector.wait(1).front().status.code() == StatusCode::kCancelled);
  f.echo->release();  // who waited has been asked
  const std::vector<testing::Answer> answers = f.collector.wait(3);
  CHECK(answers[1].status.ok());
  CHECK(answers[2].status.ok());
}

TEST_CASE("an answer grows old") {
  Fixture f(kMiB, {.ttl = Nanoseconds{1}});
  f.answer_to("a");
  std::this_thread::sleep_for(Nanoseconds{2});
  f.answer_to("a");
  CHECK(f.echo->asked == 2);
  CHECK(f.cache->statistics().entries == 1);
}

TEST_CASE("the bytes have a bound, the least recently used go first") {
  Fixture f(16 * 4096);
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = std::to_string(i) + std::string(random() % 700, 'x');
    CHECK(f.answer_to(text) == text);
    CHECK(f.answer_to("often") == "often");
    CHECK(f.cache->statistics().bytes <= f.cache->capacity());
  }
  CHECK(f.echo->asked == 2001);  // "often" was always there
  CHECK(f.cache->statistics().evictions > 1000);
}

TEST_CASE("what takes too much is answered, not kept") {
  Fixture f(16 * 1024);
  const std::string large(600, 'x');  // the key fits a shard, with the answer it does not
  CHECK(f.answer_to(large) == large);
  CHECK(f.answer_to(large) == large);
  const std::string huge(5000, 'y');
  CHECK(f.answer_to(huge) == huge);
  CHECK(f.cache->statistics().entries == 0);
  CHECK(f.echo->asked == 3);
  // Those who wait for one that is not kept are answered all the same.
  f.echo->later = true;
  f.cached->submit(f.ask(large));
  f.cached->submit(f.ask(large));
  f.echo->release();
  for (const testing::Answer& answer : f.collector.wait(2)) CHECK(answer.status.ok());
  CHECK(f.echo->asked == 4);
}

TEST_CASE("a cache that does not help is bypassed, until it would") {
  Fixture f;
  for (int i = 0; i < 1024; ++i) f.answer_to(std::to_string(i));
  CHECK(f.cached->statistics().bypassing);
  for (int i = 0; i < 4096; ++i) f.answer_to("more" + std::to_string(i));
  const CachedServable::Statistics bypassed = f.cached->statistics();
  CHECK(bypassed.bypassed > 3500);
  CHECK(bypassed.bypassed < 4096);  // a sample goes on
  CHECK(bypassed.bypassing);
  // Now the same questions over and over; those of the sample find their answers.
  for (int i = 0; i < 2000 * 200 && f.cached->statistics().bypassing; ++i) {
    f.answer_to("again" + std::to_string(i % 200));
  }
  CHECK_FALSE(f.cached->statistics().bypassing);
}

TEST_CASE("every request is answered once and right, from many threads, with failures") {
  constexpr int kThreads = 4;
  constexpr int kRounds = 4000;
  Fixture f(16 * 2048, {.ttl = std::chrono::milliseconds(1), .bypass_below = 0.9});
  f.echo->status = [](const Request& request) {
    const std::string text = testing::text_of(request.inputs.front().tensor.data);
    if (text.ends_with("3")) return Status::internal("3");
    if (text.ends_with("5")) return Status::unavailable("5");
    return Status();
  };
  f.echo->later = true;
  std::atomic<bool> done{false};
  std::thread answering([&] {
    while (!done) {
      f.echo->release();
      std::this_thread::yield();
    }
    f.echo->release();
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < kRounds; ++i) {
        const auto question = random() % 50;
        f.cached->submit(f.ask(std::to_string(question), question));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<testing::Answer> answers = f.collector.wait(kThreads * kRounds);
  done = true;
  answering.join();
  CHECK(f.collector.answers().size() == kThreads * kRounds);
  for (const testing::Answer& answer : answers) {
    const std::string asked = std::to_string(answer.id);
    const bool bad = asked.ends_with("3") || asked.ends_with("5");
    CHECK(answer.status.ok() != bad);
    if (!bad) CHECK(answer.outputs.front().bytes == asked);
  }
  CHECK(f.cache->statistics().bytes <= f.cache->capacity());
}

TEST_CASE("a cached servable is as ready as the servable, which hears that it took too long") {
  const auto echo = std::make_shared<Echo>();
  const auto cached =
      CachedServable::make(std::make_shared<ResponseCache>(std::size_t{1} << 20), echo, {});
  CHECK(cached->ready());
  echo->well = false;
  CHECK_FALSE(cached->ready());
  cached->gave_up();
  CHECK(echo->given_up == 1);
}
