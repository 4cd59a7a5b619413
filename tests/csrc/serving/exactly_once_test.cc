// The first property of the house: every request is answered exactly once, whatever happens to it.
#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <stdexcept>
#include <thread>

#include "backends/callback/callback_backend.h"
#include "requests.h"
#include "serving/anywhere_model.h"
#include "serving/model_version.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

constexpr uint64_t kProducers = 4;
constexpr uint64_t kEach = 1500;
constexpr int64_t kWidth =
    3;  // INT64 a row: the request's id, its row number, whether it is poison

struct Trial {
  std::string what;
  Batcher::Close how;
  bool preserve_ordering;
  bool close_early;
  uint64_t priority_levels;
  std::size_t together = 1;  // requests a submit; > 1 may execute on the producer's thread
  Nanoseconds delay{0};
  Nanoseconds budget{0};  // an SLO's
  bool slow = false;      // the model: then admission has to refuse some
};

std::string payload(uint64_t id, int64_t rows, bool poison) {
  std::vector<int64_t> values;
  for (int64_t row = 0; row < rows; ++row) {
    values.insert(values.end(), {static_cast<int64_t>(id), row, poison ? 1 : 0});
  }
  return bytes_of(values);
}

Status identity_without_poison(const std::vector<std::optional<CallbackInput>>& inputs,
                               std::vector<BackendOutput>& outputs) {
  const TensorView& tensor = inputs[0]->tensor;
  std::vector<int64_t> values(tensor.data.size() / sizeof(int64_t));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  for (std::size_t i = 2; i < values.size(); i += kWidth) {
    if (values[i] != 0) throw std::runtime_error("poison");
  }
  outputs.push_back({tensor, inputs[0]->owner});
  return {};
}

}  // namespace

TEST_CASE("property: every request is answered exactly once, with its own rows") {
  const std::vector<Trial> trials = {
      {"serve all", Batcher::Close::kDrain, false, false, 0},
      {"drain while they push", Batcher::Close::kDrain, false, true, 0},
      {"refuse while they push", Batcher::Close::kRefuse, false, true, 0},
      {"in order, drain", Batcher::Close::kDrain, true, true, 0},
      {"in order, refuse, with levels", Batcher::Close::kRefuse, true, true, 3},
      {"together, serve all", Batcher::Close::kDrain, false, false, 0, 5},
      {"together, in order, drain", Batcher::Close::kDrain, true, true, 0, 3},
      {"together, refuse, with levels", Batcher::Close::kRefuse, true, true, 3, 7},
      {"together, with a queue delay", Batcher::Close::kDrain, false, true, 0, 2, 200us},
      {"overloaded, all served", Batcher::Close::kDrain, false, false, 0, 1, 0us, 1ms, true},
      {"overloaded, with levels", Batcher::Close::kDrain, false, true, 3, 5, 0us, 1ms, true},
      {"overloaded, in order, refuse", Batcher::Close::kRefuse, true, true, 0, 3, 0us, 1ms, true},
  };
  for (const Trial& trial : trials) {
    CAPTURE(trial.what);
    // Outlive the version: its requests point here. `raw` cancels them from other threads: only
    // while they are not answered, as an I/O thread would.
    class Owner final : public Completion {
     public:
      void complete(RequestPtr request) noexcept override {
        const std::lock_guard lock(mutex);
        alive.erase(request->call_id);
        Answer answer{request->call_id, request->response.status, {}};
        for (const OutputTensor& output : request->response.outputs) {
          answer.outputs.push_back({std::string(output.name), output.tensor.dtype,
                                    output.tensor.shape, text_of(output.tensor.data)});
        }
        answers.push_back(std::move(answer));
      }
      std::mutex mutex;
      std::map<uint64_t, Request*> alive;
      std::vector<Answer> answers;
    } owner;

    Reaper reaper;
    BatchPolicy policy;
    policy.max_rows = 8;
    policy.preserve_ordering = trial.preserve_ordering;
    policy.max_queue_delay = trial.delay;
    policy.latency_budget = trial.budget;
    policy.priority_levels = trial.priority_levels;
    policy.default_priority_level = trial.priority_levels;
    policy.default_queue_policy.max_queue_size = 64;
    policy.default_queue_policy.default_timeout = 5ms;
    ModelSpec spec;
    spec.name = "m";
    spec.max_batch_size = 8;
    spec.inputs = {tensor_spec("X", DType::kInt64, {kWidth})};
    spec.outputs = {tensor_spec("Y", DType::kInt64, {kWidth})};
    const bool slow = trial.slow;
    const Callback callback = [slow](const std::vector<std::optional<CallbackInput>>& inputs,
                                     std::vector<BackendOutput>& outputs) {
      if (slow) std::this_thread::sleep_for(300us);
      return identity_without_poison(inputs, outputs);
    };
    const auto version = *ModelVersion::create(
        spec, {policy, 2, {true, true, 200us, 1ms}},
        std::make_shared<AnywhereModel>(make_callback_model(
            {tensor_spec("X", DType::kInt64, {-1, kWidth})},
            {tensor_spec("Y", DType::kInt64, {-1, kWidth})}, {callback, callback}, "")),
        reaper);
    version->start();

    std::atomic<uint64_t> submitted{0};
    std::vector<std::string> sent(kProducers * kEach);
    std::vector<std::thread> producers;
    for (uint64_t p = 0; p < kProducers; ++p) {
      producers.emplace_back([&, p] {
        std::mt19937 random(static_cast<uint32_t>(p));
        std::vector<RequestPtr> group;
        for (uint64_t i = 0; i < kEach; ++i) {
          const uint64_t id = p * kEach + i;
          const int64_t rows = 1 + random() % 3;
          const bool poison = random() % 100 == 0;
          const bool malformed = random() % 50 == 0;
          sent[id] = payload(id, rows, poison);
          RequestPtr request = make_request(
              owner, {{"X", malformed ? DType::kFp64 : DType::kInt64, {rows, kWidth}, sent[id]}},
              id);
          if (random() % 8 == 0) request->deadline = Clock::now() + Microseconds(random() % 300);
          request->priority = random() % 4;
          {
            const std::lock_guard lock(owner.mutex);
            owner.alive[id] = request.get();
          }
          if (trial.together == 1) {
            version->submit(std::move(request));
          } else {
            group.push_back(std::move(request));
            if (group.size() == trial.together || i + 1 == kEach) {
              version->submit_together(group);
              group.clear();
            }
          }
          if (random() % 4 == 0) {
            const std::lock_guard lock(owner.mutex);
            if (!owner.alive.empty()) owner.alive.begin()->second->cancel();
          }
          ++submitted;
          // Half of the time as a client that waits for room, so that not only refusals are seen.
          while (i % 2 == 0 && group.empty() && version->in_flight() >= 48)
            std::this_thread::yield();
        }
      });
    }
    if (trial.close_early) {
      while (submitted < kProducers * kEach / 2) std::this_thread::yield();
      version->close(trial.how);
    }
    for (std::thread& producer : producers) producer.join();
    if (!trial.close_early) version->close(trial.how);

    CHECK(version->pending() == 0);
    CHECK(version->in_flight() == 0);
    REQUIRE(owner.answers.size() == kProducers * kEach);
    std::map<uint64_t, int> times;
    uint64_t good = 0;
    bool right = true;
    for (const Answer& answer : owner.answers) {
      ++times[answer.id];
      if (!answer.status) continue;
      ++good;
      right = right && answer.outputs.size() == 1 && answer.outputs[0].bytes == sent[answer.id];
    }
    CHECK(times.size() == kProducers * kEach);
    CHECK(right);
    const StatisticsValues values = version->statistics();
    CHECK(values.success.count == good);
    CHECK(values.success.count + values.fail.count == kProducers * kEach);
    uint64_t failed = 0;
    for (const uint64_t reason : values.failures) failed += reason;
    CHECK(failed == values.fail.count);
    if (!trial.close_early) CHECK(good > 0);
    const AdmissionValues admission = version->admission();
    if (trial.slow) {
      CHECK(admission.refused[0] + admission.refused[1] + admission.refused[2] > 0);
      CHECK(values.slo_requests > values.slo_good);
    }
  }
}
