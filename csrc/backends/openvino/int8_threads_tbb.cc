#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "backends/openvino/int8_op.h"

namespace headrace {
namespace {

void run(std::size_t tasks, void (*task)(void*, std::size_t), void* context) {
  // Isolated: while it waits, this thread must not take up another layer, which would use its scratch.
  tbb::this_task_arena::isolate([&] {
    tbb::parallel_for(
        std::size_t{0}, tasks, [&](std::size_t i) { task(context, i); }, tbb::simple_partitioner());
  });
}

}  // namespace

LinearParallel openvino_threads() {
  const int threads = tbb::this_task_arena::max_concurrency();
  return {static_cast<std::size_t>(threads < 1 ? 1 : threads), run};
}

}  // namespace headrace
