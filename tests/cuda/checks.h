// The checks of the CUDA kernels, each against a reference of its own: "" or what was wrong first. They are plain
// functions, so that the same run on the kernels as they are and on each that was given a defect.
#pragma once

#include <cstdint>
#include <string>

namespace headrace::cuda::tests {

std::string check_gemm(std::uint64_t seed);
std::string check_epilogue(std::uint64_t seed);
std::string check_fused_linear(std::uint64_t seed);
std::string check_quantize_rows(std::uint64_t seed);
std::string check_layer_norm_quantize(std::uint64_t seed);
std::string check_gather_rows(std::uint64_t seed);

}  // namespace headrace::cuda::tests
