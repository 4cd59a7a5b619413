#include "routing/shadow.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "requests.h"

using namespace headrace;
using testing::Collector;

namespace {

// Answers each value times `factor`; holds requests back while `later`.
class Scaling final : public Servable {
 public:
  explicit Scaling(float factor) : factor_(factor), spec_(std::make_shared<ModelSpec>()) {
    spec_->outputs.push_back(testing::tensor_spec("y", DType::kFp32, {-1}));
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
  void release() {
    std::vector<RequestPtr> held;
    {
      const std::lock_guard lock(mutex_);
      held.swap(held_);
    }
    for (RequestPtr& request : held) reply(std::move(request));
  }

  bool well = true;
  int given_up = 0;
  std::atomic<int> asked{0};
  std::atomic<bool> later{false};
  Status status;

 private:
  void reply(RequestPtr request) {
    if (!status.ok()) return answer(std::move(request), status);
    request->spec = spec_;
    const TensorView& input = request->inputs.front().tensor;
    BufferRef owner = BufferRef::allocate(input.data.size());
    for (std::size_t at = 0; at < input.data.size(); at += sizeof(float)) {
      float value;
      std::memcpy(&value, input.data.data() + at, sizeof(value));
      value *= factor_;
      std::memcpy(owner.data() + at, &value, sizeof(value));
    }
    const std::span<const std::byte> view = std::as_const(owner).span();
    request->response.outputs.push_back(
        {spec_->outputs.front().name, {DType::kFp32, input.shape, view}, std::move(owner)});
    answer(std::move(request));
  }

  const float factor_;
  std::shared_ptr<ModelSpec> spec_;
  std::mutex mutex_;
  std::vector<RequestPtr> held_;  // guarded by mutex_
};

struct Fixture {
  explicit Fixture(float shadow_factor, ShadowOptions options = {})
      : second(std::make_shared<Scaling>(shadow_factor)),
        shadow(std::make_unique<Shadow>(first, second, tally, options)) {}
  RequestPtr ask(uint64_t id = 0) {
    return testing::make_request(
        clients, {{"x", DType::kFp32, {2}, testing::bytes_of<float>({1.0F, 4.0F})}}, id);
  }

  Collector clients;
  std::shared_ptr<ShadowTally> tally = std::make_shared<ShadowTally>();
  std::shared_ptr<Scaling> first = std::make_shared<Scaling>(2.0F);
  std::shared_ptr<Scaling> second;
  std::unique_ptr<Shadow> shadow;
};

TensorView view_of(const std::vector<float>& values, Shape shape) {
  return {DType::kFp32, shape, std::as_bytes(std::span(values))};
}

}  // namespace

TEST_CASE("clients get the servable's answers, the shadow's are compared") {
  for (const auto& [factor, different, largest] :
       {std::tuple{2.0F, 0, 0.0}, {2.001F, 0, 0.004}, {3.0F, 10, 4.0}}) {
    Fixture f(factor);
    for (int i = 0; i < 10; ++i) f.shadow->submit(f.ask());
    for (const testing::Answer& answer : f.clients.wait(10)) {
      CHECK(answer.outputs.front().bytes == testing::bytes_of<float>({2.0F, 8.0F}));
    }
    const ShadowTally::Values values = f.tally->read();
    CHECK(values.compared == 10);
    CHECK(values.different == different);
    CHECK(values.largest_difference == doctest::Approx(largest).epsilon(0.01));
    CHECK(values.failed == 0);
    CHECK(f.second->asked == 10);
  }
}

TEST_CASE("a client never waits for the shadow") {
  Fixture f(2.0F);
  f.second->later = true;
  f.shadow->submit(f.ask());
  CHECK(f.clients.answers().size() == 1);
  CHECK(f.tally->read().compared == 0);
  f.shadow.reset();  // another route table came
  f.second->release();
  CHECK(f.tally->read().compared == 1);
}

TEST_CASE("copies that are too many are not made") {
  Fixture f(2.0F, {.most_in_flight = 3});
  f.second->later = true;
  for (int i = 0; i < 10; ++i) f.shadow->submit(f.ask());
  CHECK(f.clients.answers().size() == 10);
  CHECK(f.second->asked == 3);
  CHECK(f.tally->read().dropped == 7);
  f.second->release();
  f.shadow->submit(f.ask());
  CHECK(f.second->asked == 4);
}

TEST_CASE("a share of the requests is copied") {
  Fixture f(2.0F, {.share = 0.25});
  for (int i = 0; i < 4000; ++i) f.shadow->submit(f.ask());
  CHECK(f.second->asked > 800);
  CHECK(f.second->asked < 1200);
}

TEST_CASE("failures are counted where they are the shadow's alone") {
  Fixture f(2.0F);
  f.second->status = Status::internal("broken");
  f.shadow->submit(f.ask());
  CHECK(f.tally->read().failed == 1);
  f.second->status = Status::cancelled("");
  f.shadow->submit(f.ask());
  CHECK(f.tally->read().failed == 1);
  f.second->status = Status::internal("broken");
  f.first->status = Status::invalid_argument("wrong");
  f.shadow->submit(f.ask());
  CHECK(f.tally->read().failed == 1);
  CHECK(f.tally->read().compared == 0);
  CHECK(f.clients.wait(3)[2].status.code() == StatusCode::kInvalidArgument);
}

TEST_CASE("each client is answered once, whoever is first, from many threads") {
  constexpr int kThreads = 4;
  constexpr int kRounds = 2000;
  Fixture f(3.0F);
  f.first->later = f.second->later = true;
  std::atomic<bool> done{false};
  std::vector<std::thread> answering;
  for (Scaling* servable : {f.first.get(), f.second.get()}) {
    answering.emplace_back([&, servable] {
      while (!done) {
        servable->release();
        std::this_thread::yield();
      }
    });
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::vector<RequestPtr> together;
      for (int i = 0; i < kRounds; ++i) {
        together.push_back(f.ask(static_cast<uint64_t>(t * kRounds + i)));
        if (i % 3 != 0 && i != kRounds - 1) continue;
        f.shadow->submit_together(together);
        together.clear();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<testing::Answer> answers = f.clients.wait(kThreads * kRounds);
  done = true;
  for (std::thread& thread : answering) thread.join();
  f.second->release();
  std::vector<int> seen(kThreads * kRounds);
  for (const testing::Answer& answer : answers) ++seen[answer.id];
  CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
  const ShadowTally::Values values = f.tally->read();
  CHECK(values.compared == values.different);
  CHECK(values.compared + values.dropped == kThreads * kRounds);
}

TEST_CASE("what is a difference") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto compare = [](std::vector<float> a, std::vector<float> b) {
    return compare_tensors(view_of(a, {static_cast<int64_t>(a.size())}),
                           view_of(b, {static_cast<int64_t>(b.size())}), 0.01);
  };
  CHECK_FALSE(compare({1, 100}, {1.005F, 100.5F}).different);
  CHECK(compare({1, 100}, {1.02F, 100}).different);
  CHECK(compare({1, 100}, {1, 102}).different);
  CHECK(compare({1}, {1, 1}).different);
  CHECK_FALSE(compare({nan, infinity}, {-nan, infinity}).different);
  CHECK(compare({nan}, {0}).different);
  CHECK(compare({0}, {infinity}).different);
  CHECK(compare({0}, {infinity}).largest == 0);
  CHECK_FALSE(compare({}, {}).different);
  const std::vector<float> values = {1, 2};
  CHECK(compare_tensors(view_of(values, {2}), view_of(values, {1, 2}), 1).different);
  TensorView integers = view_of(values, {2});
  integers.dtype = DType::kInt32;
  CHECK(compare_tensors(view_of(values, {2}), integers, 1).different);
  const std::vector<float> others = {1, 3};
  TensorView more = view_of(others, {2});
  more.dtype = DType::kInt32;
  CHECK(compare_tensors(integers, more, 1e9).different);
}

TEST_CASE("a shadow is as ready as what it stands behind, and nobody asks the copy") {
  const auto servable = std::make_shared<Scaling>(1.0F);
  const auto copy = std::make_shared<Scaling>(1.0F);
  Shadow shadow(servable, copy, std::make_shared<ShadowTally>(), {});
  copy->well = false;
  CHECK(shadow.ready());
  servable->well = false;
  CHECK_FALSE(shadow.ready());
  shadow.gave_up();
  CHECK(servable->given_up == 1);
  CHECK(copy->given_up == 0);
}
