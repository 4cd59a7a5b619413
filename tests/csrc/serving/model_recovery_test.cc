// Sick instances of a ModelVersion: probe, quarantine, rebuild, return.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "backends/callback/callback_backend.h"
#include "requests.h"
#include "serving/anywhere_model.h"
#include "serving/model_version.h"

using namespace headrace;
using namespace headrace::testing;
using namespace std::chrono_literals;

namespace {

using Inputs = std::vector<std::optional<CallbackInput>>;
using Outputs = std::vector<BackendOutput>;
using Kind = InstanceEvent::Kind;

// What the instances of a model suffer from.
struct Ward {
  std::atomic<int> made{0};             // instances, so far
  std::atomic<int> runs{0};             // of all
  std::atomic<int> sick_below{0};       // those made earlier fail whatever they are given
  std::atomic<bool> refuse{false};      // no new one can be made
  std::atomic<bool> zeros_fail{false};  // as with a model that takes no zeros
  std::atomic<bool> hold{false};        // what is well holds "hold"
  std::atomic<int> held{0};
};

template <class Condition>
void wait_for(Condition condition) {
  while (!condition()) std::this_thread::yield();
}

Callback patient(Ward& ward) {
  return [&ward, serial = ward.made++](const Inputs& inputs, Outputs& outputs) -> Status {
    ++ward.runs;
    const std::string row = text_of(inputs[0]->tensor.data);
    if (serial < ward.sick_below) return Status::internal("sick");
    if (row.find('!') != std::string::npos) return Status::internal("poison");
    if (ward.zeros_fail && row.find('\0') != std::string::npos) return Status::internal("zeros");
    if (row == "hold" && ward.hold) {
      ++ward.held;
      wait_for([&] { return !ward.hold; });
      --ward.held;
    }
    outputs.push_back({inputs[0]->tensor, inputs[0]->owner});
    return {};
  };
}

// "m": X -> Y INT8 [4].
struct Hospital {
  explicit Hospital(HealthPolicy health, uint32_t instances = 1, int64_t max_rows = 1,
                    bool anywhere = false) {
    ModelSpec spec;
    spec.name = "m";
    spec.max_batch_size = 8;
    spec.inputs = {tensor_spec("X", DType::kInt8, {4})};
    spec.outputs = {tensor_spec("Y", DType::kInt8, {4})};
    std::vector<Callback> callbacks;
    for (uint32_t i = 0; i < instances; ++i) callbacks.push_back(patient(ward));
    std::shared_ptr<Model> model = make_callback_model(
        {tensor_spec("X", DType::kInt8, {-1, 4})}, {tensor_spec("Y", DType::kInt8, {-1, 4})},
        std::move(callbacks), "test", [this](std::size_t) -> Result<Callback> {
          if (ward.refuse) return Status::internal("no device");
          return patient(ward);
        });
    if (anywhere) model = std::make_shared<AnywhereModel>(std::move(model));
    ModelVersionOptions options;
    options.batch.max_rows = max_rows;
    options.instances = instances;
    options.health = health;
    options.on_instance_event = [this](const InstanceEvent& event) {
      const std::lock_guard lock(mutex);
      events.push_back(event);
    };
    Result<std::shared_ptr<ModelVersion>> created =
        ModelVersion::create(spec, std::move(options), std::move(model), reaper);
    REQUIRE(created);
    version = *created;
  }
  ~Hospital() {
    ward.hold = false;
    version->close(Batcher::Close::kRefuse);
  }
  void warm_up() {
    const std::string zeros(4, '\0');
    REQUIRE(version->warm_up({{"X", {DType::kInt8, {1, 4}, std::as_bytes(std::span(zeros))}}}));
  }
  void submit(const std::string& row) {
    version->submit(make_request(collector, {{"X", DType::kInt8, {1, 4}, row}}, sent++));
  }
  Answer ask(const std::string& row) {
    submit(row);
    const uint64_t id = sent - 1;
    const std::vector<Answer> all = collector.wait(sent);
    return *std::find_if(all.begin(), all.end(), [&](const Answer& a) { return a.id == id; });
  }
  std::vector<InstanceEvent> told() {
    const std::lock_guard lock(mutex);
    return events;
  }

  Ward ward;
  Reaper reaper;
  Collector collector;
  uint64_t sent = 0;
  std::mutex mutex;
  std::vector<InstanceEvent> events;  // guarded by mutex
  std::shared_ptr<ModelVersion> version;
};

}  // namespace

TEST_CASE("a sick instance leaves service, the other serves on, a new one takes its place") {
  Hospital hospital({.failures = 3, .backoff = 1ms, .backoff_max = 2ms}, 2);
  Ward& ward = hospital.ward;
  ModelVersion& version = *hospital.version;
  hospital.warm_up();
  version.start();
  // The healthy one is held, so that the other gets the requests.
  ward.hold = true;
  ward.sick_below = 1;
  ward.refuse = true;
  while (ward.held == 0 && version.health().quarantines == 0) {
    hospital.submit("hold");
    wait_for(
        [&] { return ward.held == 1 || hospital.collector.answers().size() == hospital.sent; });
  }
  while (version.health().in_service == 2) {
    hospital.submit("wxyz");
    wait_for([&] {  // but for what is held, and what may wait for the held one
      return hospital.collector.answers().size() + 1 >= hospital.sent ||
             version.health().in_service == 1;
    });
  }
  CHECK(version.ready());
  ward.hold = false;
  for (const Answer& answer : hospital.collector.wait(hospital.sent)) {
    if (!answer.status) CHECK(answer.status.message() == "sick");
  }
  for (int i = 0; i < 50; ++i) CHECK(hospital.ask("abcd").status);
  wait_for([&] { return hospital.told().size() >= 4; });
  HealthValues health = version.health();
  CHECK(health.instances == 2);
  CHECK(health.in_service == 1);
  CHECK(health.quarantines == 1);
  CHECK(health.fault == "no device");
  CHECK(version.admission().estimated_wait < 1h);

  ward.refuse = false;
  wait_for([&] { return version.health().in_service == 2 && version.health().fault.empty(); });
  const std::vector<InstanceEvent> told = hospital.told();
  CHECK(told.front().kind == Kind::kQuarantined);
  CHECK(told.front().in_service == 1);
  CHECK(told.front().reason.message() == "sick");
  for (std::size_t i = 1; i + 1 < told.size(); ++i) {
    CHECK(told[i].kind == Kind::kRebuildFailed);
    CHECK(told[i].reason.message() == "no device");
  }
  for (int i = 0; i < 50; ++i) CHECK(hospital.ask("abcd").status);
  CHECK(ward.made == 3);
  version.close(Batcher::Close::kDrain);
  REQUIRE(hospital.told().back().kind == Kind::kReturned);
  CHECK(hospital.told().back().in_service == 2);
}

TEST_CASE("an instance that falls sick while it idles is found by its probe, and made anew") {
  Hospital hospital({.failures = 5, .backoff = 1ms, .backoff_max = 2ms, .probe = 1ms});
  Ward& ward = hospital.ward;
  hospital.warm_up();
  hospital.version->start();
  wait_for([&] { return ward.runs >= 4; });  // probes find nothing
  CHECK(hospital.told().empty());
  CHECK(hospital.ask("abcd").status);
  ward.refuse = true;
  ward.sick_below = 1;
  wait_for([&] { return !hospital.version->ready(); });
  CHECK(hospital.ask("abcd").status.code() == StatusCode::kUnavailable);
  ward.refuse = false;
  wait_for([&] { return hospital.version->ready(); });
  CHECK(hospital.ask("abcd").status);
  CHECK(ward.made == 2);
  CHECK(hospital.version->close(Batcher::Close::kDrain));
}

TEST_CASE("idle instances are not probed with a sample that no instance ever ran, nor unasked") {
  Hospital hospital({.failures = 1, .backoff = 1h, .backoff_max = 1h, .probe = 1ms});
  hospital.ward.zeros_fail = true;
  hospital.version->start();
  for (int i = 0; i < 200; ++i) CHECK(hospital.ask("abcd").status);
  CHECK(hospital.ward.runs == 200);
  CHECK(hospital.version->ready());
}

TEST_CASE("requests that fail alone take no instance out of service: the probe says so") {
  Hospital hospital({.failures = 3, .backoff = 1h, .backoff_max = 1h});
  hospital.warm_up();
  hospital.version->start();
  for (int i = 0; i < 50; ++i) CHECK(hospital.ask("bad!").status.message() == "poison");
  CHECK(hospital.ask("good").status);
  CHECK(hospital.version->ready());
  CHECK(hospital.version->health().quarantines == 0);
  CHECK(hospital.ward.made == 1);
  // The warm-up, each request, and one probe: the next may be an hour later.
  CHECK(hospital.ward.runs == 1 + 50 + 1 + 1);
}

TEST_CASE("a batch in which anybody is served blames nobody") {
  Hospital hospital({.failures = 2, .backoff = 1ms, .backoff_max = 1ms}, 1, 8);
  hospital.warm_up();
  Ward& ward = hospital.ward;
  hospital.version->start();
  for (int round = 0; round < 10; ++round) {
    ward.hold = true;
    hospital.submit("hold");
    wait_for([&] { return ward.held == 1; });
    hospital.submit("bad!");
    hospital.submit("good");
    hospital.submit("bad?");
    ward.hold = false;
    hospital.collector.wait(hospital.sent);
  }
  // A hold, a batch and its three requests a round: no probe.
  CHECK(ward.runs == 1 + 10 * 5);
}

TEST_CASE("when all are sick, what is queued and what comes is refused, until one has recovered") {
  Hospital hospital({.failures = 1, .backoff = 2ms, .backoff_max = 4ms});
  Ward& ward = hospital.ward;
  ModelVersion& version = *hospital.version;
  hospital.warm_up();
  version.start();
  ward.refuse = true;
  ward.hold = true;
  hospital.submit("hold");
  wait_for([&] { return ward.held == 1; });
  ward.sick_below = 1;
  hospital.submit("bad!");
  for (int i = 0; i < 3; ++i) hospital.submit("late");
  CHECK(version.pending() == 4);
  CHECK(version.ready());
  ward.hold = false;
  const std::vector<Answer> answers = hospital.collector.wait(5);
  for (const Answer& answer : answers) {
    if (answer.id == 0) CHECK(answer.status);
    if (answer.id == 1) CHECK(answer.status.code() == StatusCode::kInternal);
    if (answer.id <= 1) continue;
    CHECK(answer.status.code() == StatusCode::kUnavailable);
    CHECK(answer.status.message() ==
          "model 'm', version 1: every instance is being rebuilt, after: sick");
    CHECK(answer.status.pushback() == 2ms);
  }
  CHECK_FALSE(version.ready());
  CHECK(hospital.ask("abcd").status.code() == StatusCode::kUnavailable);
  CHECK(version.pending() == 0);

  ward.refuse = false;
  wait_for([&] { return version.ready(); });
  CHECK(hospital.ask("abcd").status);
  CHECK(ward.made == 2);
  const StatisticsValues values = version.statistics();
  CHECK(values.failures[static_cast<std::size_t>(FailureReason::kRejected)] == 4);
  CHECK(values.failures[static_cast<std::size_t>(FailureReason::kBackend)] == 1);
}

TEST_CASE("a new instance that fails its probe does not come into service") {
  Hospital hospital({.failures = 1, .backoff = 1ms, .backoff_max = 1ms});
  hospital.warm_up();
  hospital.version->start();
  hospital.ward.sick_below = 4;  // the first three new ones, too
  CHECK_FALSE(hospital.ask("abcd").status);
  wait_for([&] { return hospital.version->ready() && hospital.ward.made == 5; });
  CHECK(hospital.ask("abcd").status);
  CHECK(hospital.told().size() >= 4);
}

TEST_CASE("a sample that never succeeded proves nothing: rebuilt at once, and rarely") {
  Hospital hospital({.failures = 3, .backoff = 1h, .backoff_max = 1h});
  hospital.ward.zeros_fail = true;
  hospital.version->start();
  CHECK(hospital.ask("abcd").status);
  for (int i = 0; i < 3; ++i) CHECK(hospital.ask("bad!").status.message() == "poison");
  wait_for([&] { return hospital.ward.made == 2 && hospital.version->ready(); });
  for (int i = 0; i < 50; ++i) CHECK(hospital.ask("bad!").status.message() == "poison");
  CHECK(hospital.ask("abcd").status);
  CHECK(hospital.ward.made == 2);
  CHECK(hospital.version->health().quarantines == 1);
}

TEST_CASE("close does not wait for a rebuild that is an hour away") {
  for (const Batcher::Close how : {Batcher::Close::kDrain, Batcher::Close::kRefuse}) {
    Hospital hospital({.failures = 1, .backoff = 4h, .backoff_max = 4h});
    hospital.warm_up();
    hospital.version->start();
    hospital.ward.sick_below = 1;
    hospital.ward.refuse = true;
    CHECK_FALSE(hospital.ask("abcd").status);
    wait_for([&] { return hospital.told().size() == 2; });  // quarantined, and one rebuild failed
    CHECK(hospital.version->close(how));
    CHECK(hospital.version->in_flight() == 0);
    CHECK(hospital.ask("abcd").status.message() == Batcher::stopping().message());
  }
}

TEST_CASE(
    "an instance that turns sick on the thread that brings the requests is seen to by its own") {
  Hospital hospital({.failures = 2, .backoff = 1ms, .backoff_max = 1ms}, 1, 8, true);
  Ward& ward = hospital.ward;
  hospital.warm_up();
  hospital.version->start();
  const auto send = [&] {
    std::vector<RequestPtr> requests;
    for (int i = 0; i < 4; ++i) {
      requests.push_back(
          make_request(hospital.collector, {{"X", DType::kInt8, {1, 4}, "abcd"}}, hospital.sent++));
    }
    hospital.version->submit_together(requests);
    return hospital.collector.wait(hospital.sent);
  };
  for (int round = 1; round <= 5; ++round) {
    for (int i = 0; i < 20; ++i) send();
    ward.sick_below = ward.made.load();
    wait_for([&] {
      send();
      return hospital.version->health().quarantines == static_cast<uint64_t>(round) &&
             hospital.version->ready();
    });
    CHECK(ward.made == 1 + round);
  }
  CHECK(send().back().status);
}

TEST_CASE("instances fall sick and recover under load: every request is answered exactly once") {
  for (const bool anywhere : {false, true}) {
    Hospital hospital({.failures = 2, .backoff = 100us, .backoff_max = 200us}, 3, 8, anywhere);
    Ward& ward = hospital.ward;
    hospital.warm_up();
    hospital.version->start();
    constexpr uint64_t kThreads = 3;
    constexpr uint64_t kEach = 1500;
    std::atomic<uint64_t> submitted{0};
    std::vector<std::thread> clients;
    for (uint64_t t = 0; t < kThreads; ++t) {
      clients.emplace_back([&, t] {
        std::vector<RequestPtr> group;
        for (uint64_t i = 0; i < kEach; ++i) {
          group.push_back(make_request(hospital.collector,
                                       {{"X", DType::kInt8, {1, 4}, i % 50 == 0 ? "bad!" : "abcd"}},
                                       t * kEach + i));
          ++submitted;
          if (group.size() < 1 + i % 4) continue;
          hospital.version->submit_together(group);
          group.clear();
          while (hospital.version->in_flight() > 32) std::this_thread::yield();
        }
        if (!group.empty()) hospital.version->submit_together(group);
      });
    }
    std::minstd_rand random(1);
    while (submitted < kThreads * kEach) {
      const uint64_t before = submitted;
      ward.refuse = random() % 4 == 0;
      ward.sick_below = ward.made - static_cast<int>(random() % 3);
      wait_for([&] { return submitted >= std::min(before + 100, kThreads * kEach); });
    }
    for (std::thread& client : clients) client.join();
    ward.refuse = false;
    ward.sick_below = 0;
    hospital.version->close(Batcher::Close::kDrain);
    std::map<uint64_t, int> times;
    std::array<uint64_t, 17> codes{};
    for (const Answer& answer : hospital.collector.answers()) {
      ++times[answer.id];
      ++codes[static_cast<std::size_t>(answer.status.code())];
      if (answer.status) CHECK(answer.outputs.at(0).bytes == "abcd");
    }
    CHECK(times.size() == kThreads * kEach);
    CHECK(std::all_of(times.begin(), times.end(), [](const auto& t) { return t.second == 1; }));
    const auto count = [&](StatusCode code) { return codes[static_cast<std::size_t>(code)]; };
    CHECK(count(StatusCode::kOk) > 0);
    CHECK(count(StatusCode::kOk) + count(StatusCode::kInternal) + count(StatusCode::kUnavailable) ==
          kThreads * kEach);
    CHECK(hospital.version->in_flight() == 0);
  }
}
