#include "backends/tensorrt/tensorrt_backend.h"

#include <dlfcn.h>

namespace headrace {
namespace {

class TensorRtModel final : public Model {
 public:
  TensorRtModel(std::shared_ptr<TensorRtEngine> engine, const TensorRtLoadOptions& options)
      : engine_(std::move(engine)),
        meter_(std::make_shared<TensorRtMeter>()),
        options_(options.instance) {
    meter_->limit = options.device_memory_limit;
    meter_->device_bytes = engine_->signature().weights_bytes;
  }

  const std::vector<TensorSpec>& inputs() const override { return engine_->signature().inputs; }
  const std::vector<TensorSpec>& outputs() const override { return engine_->signature().outputs; }
  std::string description() const override { return engine_->signature().description; }
  Result<std::unique_ptr<Instance>> make_instance() override {
    Result<std::unique_ptr<TensorRtInstance>> made =
        TensorRtInstance::create(engine_, meter_, options_);
    if (!made) return made.error();
    return std::unique_ptr<Instance>(std::move(*made));
  }

 private:
  std::shared_ptr<TensorRtEngine> engine_;
  std::shared_ptr<TensorRtMeter> meter_;
  TensorRtOptions options_;
};

}  // namespace

std::shared_ptr<Model> tensorrt_model(std::shared_ptr<TensorRtEngine> engine,
                                      const TensorRtLoadOptions& options) {
  return std::make_shared<TensorRtModel>(std::move(engine), options);
}

TensorRtBackend::TensorRtBackend(std::string library) : library_(std::move(library)) {}

namespace {

struct Library {
  TensorRtDeviceFunction* device = nullptr;
  TensorRtOpenFunction* open = nullptr;
};

Result<Library> open_library(const std::string& name) {
  // Never closed: CUDA does not survive it. A second dlopen of the same library is a look-up.
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    return Status::unavailable(std::string("no TensorRT backend: ") +
                               (why == nullptr ? "unknown" : why) +
                               ". It is built where TensorRT_ROOT names TensorRT (docs/CUDA.md)");
  }
  auto* const abi = reinterpret_cast<TensorRtAbiFunction*>(dlsym(library, "headrace_tensorrt_abi"));
  Library found{
      reinterpret_cast<TensorRtDeviceFunction*>(dlsym(library, "headrace_tensorrt_device")),
      reinterpret_cast<TensorRtOpenFunction*>(dlsym(library, "headrace_tensorrt_open"))};
  if (abi == nullptr || found.device == nullptr || found.open == nullptr || abi() != kTensorRtAbi) {
    return Status::unavailable("no TensorRT backend: " + name +
                               " is not of this version of Headrace");
  }
  return found;
}

}  // namespace

Result<TensorRtDevice> TensorRtBackend::device() const {
  Result<Library> library = open_library(library_);
  if (!library) return library.error();
  TensorRtDevice device;
  if (Status status = library->device(&device); !status.ok()) return status;
  return device;
}

Result<std::shared_ptr<Model>> TensorRtBackend::load(const std::string& path,
                                                     const TensorRtLoadOptions& options) const {
  Result<Library> library = open_library(library_);
  if (!library) {
    return Status::unavailable("cannot load '" + path + "': " + library.error().message());
  }
  std::shared_ptr<TensorRtEngine> engine;
  if (Status status = library->open(path, &engine); !status.ok()) return status;
  return tensorrt_model(std::move(engine), options);
}

}  // namespace headrace
