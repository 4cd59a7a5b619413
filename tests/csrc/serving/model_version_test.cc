#include "serving/model_version.h"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <future>
#include <map>
#include <stdexcept>

#include "backends/callback/callback_backend.h"
#include "requests.h"
#include "serving/anywhere_model.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

using Inputs = std::vector<std::optional<CallbackInput>>;
using Outputs = std::vector<BackendOutput>;

Status identity(const Inputs& inputs, Outputs& outputs) {
  outputs.push_back({inputs[0]->tensor, inputs[0]->owner});
  return {};
}

// Holds instances inside run() until it is opened.
class Latch {
 public:
  void enter() {
    std::unique_lock lock(mutex_);
    ++entered_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void wait_entered(int n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return entered_ >= n; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int entered_ = 0;
  bool open_ = false;
};

BatchPolicy batches_of(int64_t max_rows) {
  BatchPolicy policy;
  policy.max_rows = max_rows;
  return policy;
}

// "m": X -> Y INT8 [4], batches of up to max_rows.
struct Served {
  explicit Served(Callback callback, BatchPolicy policy = batches_of(8), uint32_t instances = 1) {
    ModelSpec spec;
    spec.name = "m";
    spec.max_batch_size = 8;
    spec.inputs = {tensor_spec("X", DType::kInt8, {4})};
    spec.outputs = {tensor_spec("Y", DType::kInt8, {4})};
    spec.outputs[0].labels = {"a", "b", "c", "d"};
    Result<std::shared_ptr<ModelVersion>> created = ModelVersion::create(
        spec, {policy, instances},
        make_callback_model({tensor_spec("X", DType::kInt8, {-1, 4})},
                            {tensor_spec("Y", DType::kInt8, {-1, 4})},
                            std::vector<Callback>(instances, std::move(callback)), "test"),
        reaper);
    REQUIRE(created);
    version = *created;
  }
  RequestPtr request(uint64_t id, const std::string& row = "abcd") {
    return make_request(collector, {{"X", DType::kInt8, {1, 4}, row}}, id);
  }
  void submit(uint64_t id, const std::string& row = "abcd") { version->submit(request(id, row)); }
  std::map<uint64_t, Answer> answers(std::size_t n) {
    std::map<uint64_t, Answer> by_id;
    for (const Answer& answer : collector.wait(n)) by_id[answer.id] = answer;
    return by_id;
  }

  Collector collector;
  Reaper reaper;
  std::shared_ptr<ModelVersion> version;
};

uint64_t failures(const StatisticsValues& values, FailureReason reason) {
  return values.failures[static_cast<std::size_t>(reason)];
}

}  // namespace

TEST_CASE("requests that came while the instance was busy share a batch; each gets its rows") {
  Latch latch;
  Served served([&](const Inputs& inputs, Outputs& outputs) {
    latch.enter();
    return identity(inputs, outputs);
  });
  served.version->start();
  served.submit(0, "0000");
  latch.wait_entered(1);
  for (uint64_t id = 1; id <= 3; ++id)
    served.submit(id, std::string(4, static_cast<char>('0' + id)));
  CHECK(served.version->in_flight() == 4);
  CHECK(served.version->pending() == 3);
  latch.open();
  const std::map<uint64_t, Answer> answers = served.answers(4);
  for (uint64_t id = 0; id <= 3; ++id) {
    const Answer& answer = answers.at(id);
    REQUIRE(answer.status);
    CHECK(answer.outputs[0].name == "Y");
    CHECK(answer.outputs[0].shape == Shape{1, 4});
    CHECK(answer.outputs[0].bytes == std::string(4, static_cast<char>('0' + id)));
  }
  CHECK(served.version->close(Batcher::Close::kDrain));
  const StatisticsValues values = served.version->statistics();
  CHECK(values.success.count == 4);
  CHECK(values.inference_count == 4);
  CHECK(values.execution_count == 2);
  CHECK(values.batches.at(3).executions == 1);
}

TEST_CASE("a malformed request is answered on the spot and counted as OTHER") {
  Served served(identity);
  served.version->submit(make_request(served.collector, {{"X", DType::kInt8, {1, 3}, "abc"}}));
  const std::vector<Answer> answers = served.collector.answers();
  REQUIRE(answers.size() == 1);
  CHECK(answers[0].status.code() == StatusCode::kInvalidArgument);
  CHECK(failures(served.version->statistics(), FailureReason::kOther) == 1);
  CHECK(served.version->in_flight() == 0);
}

TEST_CASE("one poisonous request fails alone, its batch-mates are answered") {
  for (const bool throws : {false, true}) {
    Latch latch;
    Served served([&](const Inputs& inputs, Outputs& outputs) -> Status {
      latch.enter();
      if (text_of(inputs[0]->tensor.data).find('!') != std::string::npos) {
        if (throws) throw std::runtime_error("poison");
        return Status::resource_exhausted("poison");
      }
      return identity(inputs, outputs);
    });
    served.version->start();
    served.submit(0);
    latch.wait_entered(1);
    served.submit(1, "good");
    served.submit(2, "bad!");
    served.submit(3, "fine");
    latch.open();
    const std::map<uint64_t, Answer> answers = served.answers(4);
    CHECK(answers.at(1).outputs.at(0).bytes == "good");
    CHECK(answers.at(3).outputs.at(0).bytes == "fine");
    CHECK(answers.at(2).status.code() ==
          (throws ? StatusCode::kInternal : StatusCode::kResourceExhausted));
    CHECK(answers.at(2).status.message() == "poison");
    CHECK(answers.at(2).outputs.empty());
    const StatisticsValues values = served.version->statistics();
    CHECK(values.success.count == 3);
    CHECK(failures(values, FailureReason::kBackend) == 1);
  }
}

TEST_CASE("an exception that escapes a backend is INTERNAL, and the instance serves on") {
  class Throwing final : public Instance {
   public:
    Result<std::span<std::byte>> input(std::size_t, const Shape&, std::size_t) override {
      throw std::runtime_error("escaped");
    }
    Status omit(std::size_t) override { return {}; }
    Status run() override { throw 1; }
    Result<BackendOutput> output(std::size_t) override { return BackendOutput{}; }
  };
  class ThrowingModel final : public Model {
   public:
    const std::vector<TensorSpec>& inputs() const override { return inputs_; }
    const std::vector<TensorSpec>& outputs() const override { return outputs_; }
    std::string description() const override { return ""; }
    Result<std::unique_ptr<Instance>> make_instance() override {
      return std::unique_ptr<Instance>(std::make_unique<Throwing>());
    }

   private:
    std::vector<TensorSpec> inputs_{tensor_spec("X", DType::kInt8, {-1})};
    std::vector<TensorSpec> outputs_{tensor_spec("Y", DType::kInt8, {-1})};
  };
  Reaper reaper;
  Collector collector;
  ModelSpec spec;
  spec.name = "m";
  spec.inputs = {tensor_spec("X", DType::kInt8, {-1})};
  spec.outputs = {tensor_spec("Y", DType::kInt8, {-1})};
  const auto version = *ModelVersion::create(spec, {}, std::make_shared<ThrowingModel>(), reaper);
  version->start();
  for (uint64_t id = 1; id <= 2; ++id) {
    version->submit(make_request(collector, {{"X", DType::kInt8, {1}, "a"}}, id));
    const Answer answer = collector.wait(id).back();
    CHECK(answer.status.code() == StatusCode::kInternal);
    CHECK(answer.status.message().find("escaped") != std::string::npos);
  }
}

TEST_CASE("a request past its deadline leaves the queue while the instance is busy") {
  Latch latch;
  std::atomic<int> runs{0};
  Served served([&](const Inputs& inputs, Outputs& outputs) {
    ++runs;
    latch.enter();
    return identity(inputs, outputs);
  });
  served.version->start();
  served.submit(0);
  latch.wait_entered(1);
  RequestPtr late = served.request(1);
  late->deadline = Clock::now() + 2ms;
  served.version->submit(std::move(late));
  CHECK(served.answers(1).at(1).status.code() == StatusCode::kDeadlineExceeded);
  latch.open();
  served.answers(2);
  served.version->close(Batcher::Close::kDrain);
  CHECK(runs == 1);
  CHECK(failures(served.version->statistics(), FailureReason::kRejected) == 1);
}

TEST_CASE("preserve_ordering: answers come in the order of arrival over several instances") {
  BatchPolicy policy;
  policy.max_rows = 1;
  policy.preserve_ordering = true;
  Latch first;
  Served served(
      [&](const Inputs& inputs, Outputs& outputs) {
        if (text_of(inputs[0]->tensor.data) == "slow") first.enter();
        return identity(inputs, outputs);
      },
      policy, 2);
  served.version->start();
  served.submit(0, "slow");
  first.wait_entered(1);
  for (uint64_t id = 1; id < 50; ++id) served.submit(id);
  // The other instance has executed them all, and none is answered.
  while (served.version->statistics().execution_count < 49) std::this_thread::yield();
  CHECK(served.collector.answers().empty());
  CHECK(served.version->in_flight() == 50);
  first.open();
  const std::vector<Answer> answers = served.collector.wait(50);
  for (uint64_t id = 0; id < 50; ++id) CHECK(answers[id].id == id);
}

TEST_CASE("classification: the top classes instead of the tensor") {
  Served served(identity);
  served.version->start();
  RequestPtr request =
      make_request(served.collector, {{"X", DType::kInt8, {2, 4}, "abcddcba"}}, 1, {"Y"});
  request->outputs[0].classification = 2;
  served.version->submit(std::move(request));
  const Answer answer = served.answers(1).at(1);
  REQUIRE(answer.status);
  CHECK(answer.outputs[0].dtype == DType::kBytes);
  CHECK(answer.outputs[0].shape == Shape{2, 2});
  CHECK(answer.outputs[0].bytes == strings({"100:3:d", "99:2:c", "100:0:a", "99:1:b"}));
}

TEST_CASE("warm-up runs every instance, checks its inputs, and counts nothing") {
  std::atomic<int> runs{0};
  Served served(
      [&](const Inputs& inputs, Outputs& outputs) {
        ++runs;
        return identity(inputs, outputs);
      },
      batches_of(8), 3);
  const std::string zeros(8, '\0');
  const TensorView good{DType::kInt8, {2, 4}, std::as_bytes(std::span(zeros))};
  CHECK(served.version->warm_up({{"X", good}}));
  CHECK(runs == 3);
  CHECK(served.version->statistics().execution_count == 0);
  CHECK(served.version->warm_up({{"Q", good}}).code() == StatusCode::kInvalidArgument);
  Served broken([](const Inputs&, Outputs&) { return Status::internal("cold"); });
  CHECK(broken.version->warm_up({{"X", good}}).message() == "cold");
}

TEST_CASE("close: drain serves what is queued, refuse answers it UNAVAILABLE") {
  for (const Batcher::Close how : {Batcher::Close::kDrain, Batcher::Close::kRefuse}) {
    Latch latch;
    Served served([&](const Inputs& inputs, Outputs& outputs) {
      latch.enter();
      return identity(inputs, outputs);
    });
    served.version->start();
    served.submit(0);
    latch.wait_entered(1);
    served.submit(1);
    std::future<bool> closed =
        std::async(std::launch::async, [&] { return served.version->close(how); });
    if (how == Batcher::Close::kRefuse) served.collector.wait(1);
    latch.open();
    CHECK(closed.get());
    CHECK(served.version->in_flight() == 0);
    const std::map<uint64_t, Answer> answers = served.answers(2);
    CHECK(answers.at(0).status);
    CHECK(answers.at(1).status.code() ==
          (how == Batcher::Close::kDrain ? StatusCode::kOk : StatusCode::kUnavailable));
    served.submit(2);
    CHECK(served.answers(3).at(2).status.code() == StatusCode::kUnavailable);
    CHECK(served.version->close(how));
  }
}

TEST_CASE("a drain that lasts past its deadline refuses what is still queued") {
  Latch latch;
  Served served([&](const Inputs& inputs, Outputs& outputs) {
    latch.enter();
    return identity(inputs, outputs);
  });
  served.version->start();
  served.submit(0);
  latch.wait_entered(1);
  served.submit(1);
  std::future<bool> closed = std::async(std::launch::async, [&] {
    return served.version->close(Batcher::Close::kDrain, Clock::now() + 1ms);
  });
  CHECK(served.answers(1).at(1).status.code() == StatusCode::kUnavailable);
  latch.open();
  CHECK_FALSE(closed.get());
  CHECK(served.answers(2).at(0).status);
}

TEST_CASE("a version that was never started refuses what is queued when it closes") {
  Served served(identity);
  served.submit(1);
  served.version->close(Batcher::Close::kDrain);
  CHECK(served.answers(1).at(1).status.code() == StatusCode::kUnavailable);
}

TEST_CASE("create names what does not fit") {
  Reaper reaper;
  ModelSpec spec;
  spec.name = "m";
  const auto model =
      make_callback_model({tensor_spec("X", DType::kInt8, {-1})}, {}, {identity}, "");
  CHECK(ModelVersion::create(spec, {}, model, reaper).error().code() ==
        StatusCode::kInvalidArgument);
  spec.inputs = {tensor_spec("X", DType::kInt8, {-1})};
  CHECK_FALSE(ModelVersion::create(spec, {{}, 0}, model, reaper));
  CHECK_FALSE(ModelVersion::create(spec, {{}, 2}, model, reaper));  // one callable only
}

TEST_CASE("short batches are executed by the thread that brings them, others by the instance's") {
  Collector collector;
  Reaper reaper;
  ModelSpec spec;
  spec.name = "m";
  spec.max_batch_size = 8;
  spec.inputs = {tensor_spec("X", DType::kInt8, {4})};
  spec.outputs = {tensor_spec("Y", DType::kInt8, {4})};
  std::vector<std::thread::id> ran_on;  // one run at a time
  const Callback model = [&](const Inputs& inputs, Outputs& outputs) {
    ran_on.push_back(std::this_thread::get_id());
    if (inputs[0]->tensor.data.front() == std::byte{'s'}) {
      const Nanoseconds end = thread_cpu_time() + 60ms;
      while (thread_cpu_time() < end) {
      }
    }
    return identity(inputs, outputs);
  };
  const auto make = [&](bool anywhere) {
    std::shared_ptr<Model> made =
        make_callback_model({tensor_spec("X", DType::kInt8, {-1, 4})},
                            {tensor_spec("Y", DType::kInt8, {-1, 4})}, {model}, "test");
    if (anywhere) made = std::make_shared<AnywhereModel>(std::move(made));
    std::shared_ptr<ModelVersion> version =
        *ModelVersion::create(spec, {batches_of(8), 1}, made, reaper);
    version->start();
    return version;
  };
  std::size_t answered = 0;
  const auto send = [&](ModelVersion& version, const std::string& row, std::size_t n) {
    std::vector<RequestPtr> requests;
    for (std::size_t i = 0; i < n; ++i) {
      requests.push_back(make_request(collector, {{"X", DType::kInt8, {1, 4}, row}}, i));
    }
    version.submit_together(requests);
    CHECK(std::none_of(requests.begin(), requests.end(),
                       [](const RequestPtr& left) { return left != nullptr; }));
    collector.wait(answered += n);
    return ran_on.back() == std::this_thread::get_id();
  };

  const auto version = make(true);
  CHECK_FALSE(send(*version, "fast", 1));  // nothing is known of it yet
  // On a busy machine any single run may have been a long one.
  bool here = false;
  while (!here) here = send(*version, "fast", 1);
  while (!send(*version, "slow", 1)) send(*version, "fast", 1);
  CHECK_FALSE(send(*version, "fast", 1));  // put off: that was far too long
  CHECK(version->close(Batcher::Close::kDrain));

  const auto elsewhere = make(false);
  for (int i = 0; i < 20; ++i) CHECK_FALSE(send(*elsewhere, "fast", 3));
}
