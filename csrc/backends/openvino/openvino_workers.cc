#include "backends/openvino/openvino_workers.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include <openvino/op/add.hpp>
#include <openvino/op/parameter.hpp>
#include <openvino/op/result.hpp>
#include <openvino/op/tanh.hpp>
#include <openvino/runtime/properties.hpp>

namespace headrace {
namespace {

constexpr std::size_t kValuesPerThread = std::size_t{1} << 18;
constexpr int kOperators = 1;
constexpr int kRuns = 100;

std::set<std::string> threads_of_process() {
  std::set<std::string> threads;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", error)) {
    threads.insert(entry.path().filename().string());
  }
  return threads;
}

// Enough for every thread to have its part.
std::shared_ptr<ov::Model> make_work(std::size_t threads) {
  const auto input = std::make_shared<ov::op::v0::Parameter>(
      ov::element::f32, ov::PartialShape{static_cast<int64_t>(threads), kValuesPerThread});
  std::shared_ptr<ov::Node> node = input;
  for (int i = 0; i < kOperators; ++i) {
    node = std::make_shared<ov::op::v1::Add>(std::make_shared<ov::op::v0::Tanh>(node), input);
  }
  return std::make_shared<ov::Model>(ov::ResultVector{std::make_shared<ov::op::v0::Result>(node)},
                                     ov::ParameterVector{input}, "workers");
}

}  // namespace

OpenVinoWorkers start_openvino_workers(ov::Core& core) {
  const std::size_t processors = std::max(1U, std::thread::hardware_concurrency());
  OpenVinoWorkers workers;
  if (processors == 1) {
    workers.all = true;
    return workers;
  }
  workers.keeper = core.compile_model(
      make_work(processors), "CPU",
      ov::AnyMap{{ov::num_streams.name(), ov::streams::Num(1)},
                 {ov::inference_num_threads.name(), static_cast<int32_t>(processors)},
                 {ov::hint::enable_cpu_pinning.name(), false},
                 {ov::hint::enable_hyper_threading.name(), true},
                 {ov::hint::scheduling_core_type.name(), ov::hint::SchedulingCoreType::ANY_CORE}});
  ov::InferRequest request = workers.keeper.create_infer_request();
  const std::set<std::string> before = threads_of_process();
  for (int run = 0; run < kRuns && !workers.all; ++run) {
    request.infer();
    std::size_t born = 0;
    for (const std::string& thread : threads_of_process()) born += before.contains(thread) ? 0 : 1;
    workers.all = born + 1 >= processors;
  }
  return workers;
}

}  // namespace headrace
