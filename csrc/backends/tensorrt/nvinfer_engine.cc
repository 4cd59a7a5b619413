// engine.h on TensorRT (10 or later, or TensorRT-RTX) and the CUDA runtime: libheadrace_tensorrt.so.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <mutex>
#include <utility>

#include "backends/tensorrt/engine.h"

namespace headrace {
namespace {

namespace trt = nvinfer1;

Status cuda_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  const std::string text = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) return Status::resource_exhausted(text);
  return Status::internal(text);
}

// TensorRT tells what is wrong to a logger, and returns false.
class Logger final : public trt::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard lock(mutex_);
      last_ = text;
    } catch (...) {  // no memory for the text of an error
    }
  }
  std::string take() {
    const std::lock_guard lock(mutex_);
    return last_.empty() ? "TensorRT gives no reason" : std::exchange(last_, {});
  }

 private:
  std::mutex mutex_;
  std::string last_;
};

DType dtype_of(trt::DataType type) {
  switch (type) {
    case trt::DataType::kFLOAT:
      return DType::kFp32;
    case trt::DataType::kHALF:
      return DType::kFp16;
    case trt::DataType::kBF16:
      return DType::kBf16;
    case trt::DataType::kINT8:
      return DType::kInt8;
    case trt::DataType::kUINT8:
      return DType::kUint8;
    case trt::DataType::kINT32:
      return DType::kInt32;
    case trt::DataType::kINT64:
      return DType::kInt64;
    case trt::DataType::kBOOL:
      return DType::kBool;
    default:
      return DType::kInvalid;
  }
}

Shape shape_of(const trt::Dims& dims) {
  Shape shape;
  for (int i = 0; i < dims.nbDims; ++i) shape.push_back(dims.d[i]);
  return shape;
}

// What all contexts need; destroyed after the last of them, in this order from below.
struct Shared {
  Logger logger;
  std::unique_ptr<trt::IRuntime> runtime;
  std::unique_ptr<trt::ICudaEngine> engine;
  int device = 0;
};

class Graph final : public TensorRtGraph {
 public:
  explicit Graph(cudaGraphExec_t graph) : graph_(graph) {}
  ~Graph() override { cudaGraphExecDestroy(graph_); }
  cudaGraphExec_t get() const { return graph_; }

 private:
  cudaGraphExec_t graph_;
};

class Context final : public TensorRtContext {
 public:
  Context(std::shared_ptr<Shared> shared, const TensorRtSignature& signature,
          std::unique_ptr<trt::IExecutionContext> context, cudaStream_t stream)
      : shared_(std::move(shared)),
        signature_(signature),
        context_(std::move(context)),
        stream_(stream) {}
  ~Context() override {
    cudaStreamSynchronize(stream_);
    context_.reset();
    cudaStreamDestroy(stream_);
  }

  Result<std::byte*> allocate(TensorRtMemory kind, std::size_t bytes) override {
    if (Status status = use_device(); !status.ok()) return status;
    void* memory = nullptr;
    const cudaError_t error = kind == TensorRtMemory::kDevice
                                  ? cudaMalloc(&memory, bytes)
                                  : cudaHostAlloc(&memory, bytes, cudaHostAllocDefault);
    if (Status status = cuda_status(error, "memory"); !status.ok()) {
      cudaGetLastError();  // not sticky: it must not be taken for the next call's
      return status;
    }
    return static_cast<std::byte*>(memory);
  }
  void release(TensorRtMemory kind, std::byte* memory) noexcept override {
    cudaStreamSynchronize(stream_);
    if (kind == TensorRtMemory::kDevice) {
      cudaFree(memory);
    } else {
      cudaFreeHost(memory);
    }
  }

  Status select_profile(std::size_t profile) override {
    if (Status status = use_device(); !status.ok()) return status;
    if (!context_->setOptimizationProfileAsync(static_cast<int32_t>(profile), stream_)) {
      return Status::internal("optimisation profile: " + shared_->logger.take());
    }
    return synchronize();
  }
  Status set_input_shape(std::size_t input, const Shape& shape) override {
    const std::string& name = signature_.inputs[input].name;
    trt::Dims dims{};
    if (shape.size() > static_cast<std::size_t>(trt::Dims::MAX_DIMS)) {
      return Status::invalid_argument("input '" + name + "' has too many dimensions");
    }
    dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    if (!context_->setInputShape(name.c_str(), dims)) {
      return Status::invalid_argument("input '" + name + "': " + shared_->logger.take());
    }
    return {};
  }
  Result<Shape> output_shape(std::size_t output) override {
    const Shape shape = shape_of(context_->getTensorShape(signature_.outputs[output].name.c_str()));
    for (const int64_t dim : shape.span()) {
      if (dim < 0) {
        return Status::unimplemented("output '" + signature_.outputs[output].name +
                                     "' has a shape that depends on the inputs' values");
      }
    }
    return shape;
  }
  Status bind_input(std::size_t input, std::byte* device) override {
    return bind(signature_.inputs[input].name, device);
  }
  Status bind_output(std::size_t output, std::byte* device) override {
    return bind(signature_.outputs[output].name, device);
  }

  Status upload(std::byte* device, const std::byte* pinned, std::size_t bytes) override {
    if (Status status = use_device(); !status.ok()) return status;
    return cuda_status(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream_),
                       "copy to the device");
  }
  Status download(std::byte* pinned, const std::byte* device, std::size_t bytes) override {
    return cuda_status(cudaMemcpyAsync(pinned, device, bytes, cudaMemcpyDeviceToHost, stream_),
                       "copy from the device");
  }
  Status enqueue() override {
    if (context_->enqueueV3(stream_)) return {};
    return Status::internal("execution: " + shared_->logger.take());
  }
  Status synchronize() override { return cuda_status(cudaStreamSynchronize(stream_), "execution"); }

  Status begin_capture() override {
    if (Status status = use_device(); !status.ok()) return status;
    return cuda_status(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                       "recording a graph");
  }
  Result<std::unique_ptr<TensorRtGraph>> end_capture() override {
    cudaGraph_t recorded = nullptr;
    cudaGraphExec_t ready = nullptr;
    cudaError_t error = cudaStreamEndCapture(stream_, &recorded);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&ready, recorded, 0);
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    if (error != cudaSuccess) {
      cudaGetLastError();
      return cuda_status(error, "recording a graph");
    }
    return std::unique_ptr<TensorRtGraph>(std::make_unique<Graph>(ready));
  }
  Status launch(TensorRtGraph& graph) override {
    if (Status status = use_device(); !status.ok()) return status;
    return cuda_status(cudaGraphLaunch(static_cast<Graph&>(graph).get(), stream_),
                       "launching a graph");
  }

 private:
  // The current device is the thread's, and instances may change threads.
  Status use_device() { return cuda_status(cudaSetDevice(shared_->device), "device"); }
  Status bind(const std::string& name, std::byte* device) {
    if (context_->setTensorAddress(name.c_str(), device)) return {};
    return Status::internal("tensor '" + name + "': " + shared_->logger.take());
  }

  std::shared_ptr<Shared> shared_;
  const TensorRtSignature& signature_;  // the engine's, which outlives its contexts
  std::unique_ptr<trt::IExecutionContext> context_;
  cudaStream_t stream_;
};

class Engine final : public TensorRtEngine {
 public:
  Engine(std::shared_ptr<Shared> shared, TensorRtSignature signature)
      : shared_(std::move(shared)), signature_(std::move(signature)) {}
  const TensorRtSignature& signature() const override { return signature_; }
  Result<std::unique_ptr<TensorRtContext>> make_context() override {
    if (Status status = cuda_status(cudaSetDevice(shared_->device), "device"); !status.ok()) {
      return status;
    }
    cudaStream_t stream = nullptr;
    if (Status status =
            cuda_status(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
        !status.ok()) {
      return status;
    }
    std::unique_ptr<trt::IExecutionContext> context(shared_->engine->createExecutionContext());
    if (!context) {
      cudaStreamDestroy(stream);
      return Status::resource_exhausted("execution context: " + shared_->logger.take());
    }
    return std::unique_ptr<TensorRtContext>(
        std::make_unique<Context>(shared_, signature_, std::move(context), stream));
  }

 private:
  std::shared_ptr<Shared> shared_;
  TensorRtSignature signature_;
};

// Whose engines these are, and which version's.
#ifdef TRT_MAJOR_RTX
constexpr const char* kRuntime = "tensorrt_rtx";
constexpr const char* kRuntimeName = "TensorRT-RTX ";
#else
constexpr const char* kRuntime = "tensorrt";
constexpr const char* kRuntimeName = "TensorRT ";
#endif

std::string runtime_version() {
  return std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." +
         std::to_string(NV_TENSORRT_PATCH);
}

Result<TensorRtSignature> signature_of(const trt::ICudaEngine& engine, int device) {
  TensorRtSignature signature;
  for (int i = 0; i < engine.getNbIOTensors(); ++i) {
    const char* const name = engine.getIOTensorName(i);
    const Shape shape = shape_of(engine.getTensorShape(name));
    TensorSpec spec;
    spec.name = name;
    spec.dtype = dtype_of(engine.getTensorDataType(name));
    spec.dims.assign(shape.begin(), shape.end());
    if (spec.dtype == DType::kInvalid) {
      return Status::invalid_argument("tensor '" + spec.name + "' has a datatype of no protocol");
    }
    if (engine.getTensorLocation(name) == trt::TensorLocation::kHOST) {
      return Status::unimplemented("tensor '" + spec.name + "' is a shape tensor, on the host");
    }
    const bool input = engine.getTensorIOMode(name) == trt::TensorIOMode::kINPUT;
    (input ? signature.inputs : signature.outputs).push_back(std::move(spec));
  }
  for (int p = 0; p < engine.getNbOptimizationProfiles(); ++p) {
    TensorRtProfile profile;
    for (const TensorSpec& input : signature.inputs) {
      const auto shape = [&](trt::OptProfileSelector which) {
        return shape_of(engine.getProfileShape(input.name.c_str(), p, which));
      };
      profile.inputs.push_back({shape(trt::OptProfileSelector::kMIN),
                                shape(trt::OptProfileSelector::kOPT),
                                shape(trt::OptProfileSelector::kMAX)});
    }
    signature.profiles.push_back(std::move(profile));
  }
  signature.context_bytes = engine.getDeviceMemorySizeV2();
  cudaDeviceProp properties{};
  const bool known = cudaGetDeviceProperties(&properties, device) == cudaSuccess;
  signature.description = kRuntimeName + runtime_version() + " on " +
                          (known ? properties.name : "an unknown device") + ", " +
                          std::to_string(signature.profiles.size()) + " profile(s)";
  return signature;
}

Status describe_device(TensorRtDevice* device) {
  int current = 0;
  cudaDeviceProp properties{};
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, current);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return Status::unavailable(std::string("no CUDA device: ") + cudaGetErrorString(error));
  }
  *device = {kRuntime, runtime_version(), properties.name, properties.major, properties.minor};
  return {};
}

Status open_engine(const std::string& path, std::shared_ptr<TensorRtEngine>* engine) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Status::not_found("cannot read '" + path + "'");
  const std::string plan((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto shared = std::make_shared<Shared>();
  if (Status status = cuda_status(cudaGetDevice(&shared->device), "no CUDA device"); !status.ok()) {
    return Status::unavailable(status.message());
  }
  shared->runtime.reset(trt::createInferRuntime(shared->logger));
  if (!shared->runtime) return Status::unavailable("TensorRT: " + shared->logger.take());
  std::size_t before = 0, after = 0, total = 0;
  const bool known = cudaMemGetInfo(&before, &total) == cudaSuccess;
  cudaGetLastError();
  shared->engine.reset(shared->runtime->deserializeCudaEngine(plan.data(), plan.size()));
  const cudaError_t error = cudaGetLastError();
  cudaMemGetInfo(&after, &total);
  if (!shared->engine) {
    // A good engine, which is not to be built again.
    if (error == cudaErrorMemoryAllocation || (known && before < plan.size())) {
      return Status::resource_exhausted("no device memory for '" + path +
                                        "': " + shared->logger.take());
    }
    return Status::invalid_argument(
        "'" + path + "' is no engine for this TensorRT and GPU: " + shared->logger.take());
  }
  Result<TensorRtSignature> signature = signature_of(*shared->engine, shared->device);
  if (!signature) return signature.error();
  signature->weights_bytes = before > after ? static_cast<int64_t>(before - after) : 0;
  *engine = std::make_shared<Engine>(shared, std::move(*signature));
  return {};
}

}  // namespace
}  // namespace headrace

extern "C" __attribute__((visibility("default"))) int headrace_tensorrt_abi() {
  return headrace::kTensorRtAbi;
}

__attribute__((visibility("default"))) headrace::Status headrace_tensorrt_describe_device(
    headrace::TensorRtDevice* device) __asm__("headrace_tensorrt_device");

headrace::Status headrace_tensorrt_describe_device(headrace::TensorRtDevice* device) {
  try {
    return headrace::describe_device(device);
  } catch (const std::exception& error) {
    return headrace::Status::internal(error.what());
  }
}

__attribute__((visibility("default"))) headrace::Status headrace_tensorrt_open_engine(
    const std::string& path,
    std::shared_ptr<headrace::TensorRtEngine>* engine) __asm__("headrace_tensorrt_open");

headrace::Status headrace_tensorrt_open_engine(const std::string& path,
                                               std::shared_ptr<headrace::TensorRtEngine>* engine) {
  try {
    return headrace::open_engine(path, engine);
  } catch (const std::exception& error) {
    return headrace::Status::internal("'" + path + "': " + error.what());
  }
}
