// What the queue and a model version cost a request, in ns of wall and of CPU time (all threads;
// the producer's spinning while it waits for its requests included):
//   queue    push + pull + answer on one thread, in rounds of 1 and 64 requests
//   handoff  the same with an instance thread that pulls: 1 and 64 requests in flight
//   version  submit -> check -> queue -> gather -> identity -> split -> statistics -> answer, as
//   handoff
// Each with and without a deadline. Usage: batcher_bench [requests]
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "backends/callback/callback_backend.h"
#include "batching/batcher.h"
#include "serving/model_version.h"

namespace {

using namespace headrace;

constexpr std::size_t kRounds = 5;  // the median is printed
alignas(64) const std::byte kRow[64] = {};

// Reuses its requests, as an I/O thread does.
class Pool final : public Completion {
 public:
  explicit Pool(std::size_t size) {
    for (std::size_t i = 0; i < size; ++i) requests_.push_back(std::make_unique<Request>(*this));
    ready_ = std::make_unique<std::atomic<bool>[]>(size);
    for (std::size_t i = 0; i < size; ++i) ready_[i] = true;
  }
  void complete(RequestPtr request) noexcept override { request.reset(); }
  void release(Request* request) noexcept override {
    ready_[request->call_id].store(true, std::memory_order_release);
  }
  // The i-th request, once it is back; in turn.
  RequestPtr get(std::size_t i, bool deadline) {
    while (!ready_[i].load(std::memory_order_acquire)) std::this_thread::yield();
    ready_[i].store(false, std::memory_order_relaxed);
    RequestPtr request(requests_[i].get());
    request->reset();
    request->call_id = i;
    request->inputs.push_back({"X", {DType::kFp32, Shape{1, 16}, kRow}});
    request->times.queued = Clock::now();
    if (deadline) request->deadline = request->times.queued + std::chrono::seconds(10);
    return request;
  }
  void wait_all() {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      while (!ready_[i].load(std::memory_order_acquire)) std::this_thread::yield();
    }
  }

 private:
  std::vector<std::unique_ptr<Request>> requests_;
  std::unique_ptr<std::atomic<bool>[]> ready_;
};

struct Cost {
  double wall_ns;
  double cpu_ns;
};

double cpu_now_ns() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Medians over rounds, a request.
Cost measure(std::size_t requests, const std::function<void(std::size_t)>& run) {
  run(requests / 10 + 1);
  const auto each = static_cast<double>(requests);
  std::vector<double> wall;
  std::vector<double> cpu;
  for (std::size_t i = 0; i < kRounds; ++i) {
    const TimePoint start = Clock::now();
    const double cpu_start = cpu_now_ns();
    run(requests);
    cpu.push_back((cpu_now_ns() - cpu_start) / each);
    wall.push_back(static_cast<double>(elapsed_ns(start, Clock::now())) / each);
  }
  return {median(wall), median(cpu)};
}

void print(const char* what, std::size_t in_flight, bool deadline, Cost cost) {
  std::printf("%-8s in flight %2zu  %-13s %8.0f ns wall %8.0f ns cpu\n", what, in_flight,
              deadline ? "with deadline" : "no deadline", cost.wall_ns, cost.cpu_ns);
}

BatchPolicy policy() {
  BatchPolicy p;
  p.max_rows = 64;
  return p;
}

void refuse(RequestPtr request, Status status) { answer(std::move(request), std::move(status)); }

RequestPtr bound(RequestPtr request) {
  request->input_of = {0};
  return request;
}

void bench_queue(std::size_t requests, std::size_t in_flight, bool deadline) {
  Pool pool(in_flight);
  Batcher batcher(policy(), refuse);
  Batch batch;
  print("queue", in_flight, deadline, measure(requests, [&](std::size_t n) {
          for (std::size_t i = 0; i < n; i += in_flight) {
            for (std::size_t j = 0; j < in_flight; ++j) {
              (void)batcher.push(bound(pool.get(j, deadline)));
            }
            batcher.pull(batch);
            for (RequestPtr& request : batch.requests) answer(std::move(request));
            batch.clear();
          }
        }));
}

void bench_handoff(std::size_t requests, std::size_t in_flight, bool deadline) {
  Pool pool(in_flight);
  Batcher batcher(policy(), refuse);
  std::thread instance([&] {
    Batch batch;
    while (batcher.pull(batch)) {
      for (RequestPtr& request : batch.requests) answer(std::move(request));
      batch.clear();
    }
  });
  print("handoff", in_flight, deadline, measure(requests, [&](std::size_t n) {
          for (std::size_t i = 0; i < n; ++i) {
            (void)batcher.push(bound(pool.get(i % in_flight, deadline)));
          }
          pool.wait_all();
        }));
  batcher.close(Batcher::Close::kDrain);
  instance.join();
}

void bench_version(std::size_t requests, std::size_t in_flight, bool deadline) {
  TensorSpec in;
  in.name = "X";
  in.dtype = DType::kFp32;
  in.dims = {16};
  ModelSpec spec;
  spec.name = "identity";
  spec.max_batch_size = 64;
  spec.inputs = {in};
  spec.outputs = {in};
  TensorSpec with_batch = in;
  with_batch.dims = {-1, 16};
  const Callback identity = [](const auto& inputs, auto& outputs) {
    outputs.push_back({inputs[0]->tensor, inputs[0]->owner});
    return Status();
  };
  Reaper reaper;
  Pool pool(in_flight);
  auto version = ModelVersion::create(
      spec, {policy(), 1}, make_callback_model({with_batch}, {with_batch}, {identity}, "identity"),
      reaper);
  if (!version) {
    std::fprintf(stderr, "%s\n", version.error().message().c_str());
    std::exit(1);
  }
  (*version)->start();
  print("version", in_flight, deadline, measure(requests, [&](std::size_t n) {
          for (std::size_t i = 0; i < n; ++i) (*version)->submit(pool.get(i % in_flight, deadline));
          pool.wait_all();
        }));
  (*version)->close(Batcher::Close::kDrain);
  const StatisticsValues values = (*version)->statistics();
  std::printf("         mean batch %.1f\n", static_cast<double>(values.inference_count) /
                                                static_cast<double>(values.execution_count));
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t requests = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 200000;
  for (const std::size_t in_flight : {std::size_t{1}, std::size_t{64}}) {
    for (const bool deadline : {false, true}) {
      bench_queue(requests, in_flight, deadline);
      bench_handoff(requests, in_flight, deadline);
      bench_version(requests, in_flight, deadline);
    }
  }
}
