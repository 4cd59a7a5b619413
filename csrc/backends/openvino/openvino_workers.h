// The threads that OpenVINO's operators share (TBB's workers): one fewer than the processors, born
// when first needed, with the priority of the thread that needs them. They also execute requests, so
// they must be there before anything is loaded at low priority (base/low_priority.h).
#pragma once

#include <openvino/runtime/compiled_model.hpp>
#include <openvino/runtime/core.hpp>

namespace headrace {

struct OpenVinoWorkers {
  ov::CompiledModel keeper;  // they live as long as it does
  bool all = false;          // were seen to be born: no further one can be
};

// Brings them to life with the priority of the calling thread. Some milliseconds.
OpenVinoWorkers start_openvino_workers(ov::Core& core);

}  // namespace headrace
