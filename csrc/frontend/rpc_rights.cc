#include "frontend/rpc_rights.h"

#include <array>

namespace headrace {
namespace {

constexpr auto kRights = std::to_array<RpcRight>({
    {"/grpc.health.v1.Health/Check", Right::kProbe},
    {"/grpc.health.v1.Health/List", Right::kProbe},
    {"/grpc.health.v1.Health/Watch", Right::kProbe},
    {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Right::kMetadata},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Right::kMetadata},
    {"/headrace.v1.Admin/DriftAlarm", Right::kControl},
    {"/headrace.v1.Admin/Feedback", Right::kControl},
    {"/headrace.v1.Admin/HumanLease", Right::kControl},
    {"/headrace.v1.Admin/HumanResolve", Right::kControl},
    {"/headrace.v1.Admin/HumanStatus", Right::kMetadata},
    {"/headrace.v1.Admin/LoadTogether", Right::kControl},
    {"/headrace.v1.Admin/RolloutPromote", Right::kControl},
    {"/headrace.v1.Admin/RolloutRollback", Right::kControl},
    {"/headrace.v1.Admin/RolloutStart", Right::kControl},
    {"/headrace.v1.Admin/RolloutStatus", Right::kMetadata},
    {"/inference.GRPCInferenceService/CudaSharedMemoryRegister", Right::kControl},
    {"/inference.GRPCInferenceService/CudaSharedMemoryStatus", Right::kMetadata},
    {"/inference.GRPCInferenceService/CudaSharedMemoryUnregister", Right::kControl},
    {"/inference.GRPCInferenceService/LogSettings", Right::kControl},
    {"/inference.GRPCInferenceService/ModelConfig", Right::kMetadata},
    {"/inference.GRPCInferenceService/ModelInfer", Right::kInfer},
    {"/inference.GRPCInferenceService/ModelMetadata", Right::kMetadata},
    {"/inference.GRPCInferenceService/ModelReady", Right::kProbe},
    {"/inference.GRPCInferenceService/ModelStatistics", Right::kMetadata},
    {"/inference.GRPCInferenceService/ModelStreamInfer", Right::kInfer},
    {"/inference.GRPCInferenceService/RepositoryIndex", Right::kMetadata},
    {"/inference.GRPCInferenceService/RepositoryModelLoad", Right::kControl},
    {"/inference.GRPCInferenceService/RepositoryModelUnload", Right::kControl},
    {"/inference.GRPCInferenceService/ServerLive", Right::kProbe},
    {"/inference.GRPCInferenceService/ServerMetadata", Right::kMetadata},
    {"/inference.GRPCInferenceService/ServerReady", Right::kProbe},
    {"/inference.GRPCInferenceService/SystemSharedMemoryRegister", Right::kControl},
    {"/inference.GRPCInferenceService/SystemSharedMemoryStatus", Right::kMetadata},
    {"/inference.GRPCInferenceService/SystemSharedMemoryUnregister", Right::kControl},
    {"/inference.GRPCInferenceService/TraceSetting", Right::kControl},
    {"/nvidia.riva.asr.RivaSpeechRecognition/GetRivaSpeechRecognitionConfig", Right::kMetadata},
    {"/nvidia.riva.asr.RivaSpeechRecognition/Recognize", Right::kInfer},
    {"/nvidia.riva.asr.RivaSpeechRecognition/StreamingRecognize", Right::kInfer},
});

}  // namespace

std::span<const RpcRight> rpc_rights() { return kRights; }

Right right_of_rpc(std::string_view path) {
  for (const RpcRight& one : kRights) {
    if (one.path == path) return one.right;
  }
  return Right::kNone;
}

}  // namespace headrace
