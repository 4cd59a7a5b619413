// Stands for int8_threads_tbb.cc where OpenVINO's TBB has no headers: a layer runs on one thread.
#include "backends/openvino/int8_op.h"

namespace headrace {

LinearParallel openvino_threads() { return {}; }

}  // namespace headrace
