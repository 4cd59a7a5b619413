// The CUDA kernels, unmodified, on the CPU (emulation.h): right, and every defect of mutants.h noticed.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>

#include "cuda/checks.h"
#include "cuda/emulation.h"
#include "kernels/cuda/int8_cuda.h"

namespace {

using namespace headrace::cuda;

struct Check {
  const char* name;
  std::string (*run)(std::uint64_t seed);
};

constexpr Check kChecks[] = {
    {"quantize_rows", tests::check_quantize_rows},
    {"gather_rows", tests::check_gather_rows},
    {"layer_norm_quantize", tests::check_layer_norm_quantize},
    {"epilogue", tests::check_epilogue},
    {"fused_linear", tests::check_fused_linear},
    {"gemm", tests::check_gemm},
};

// Of the kernels with whatever mutant is set: the first thing wrong.
std::string first_failure(std::uint64_t seeds) {
  for (const Check& check : kChecks) {
    for (std::uint64_t seed = 0; seed < seeds; ++seed) {
      const std::string wrong = check.run(seed);
      if (!wrong.empty()) return std::string(check.name) + ": " + wrong;
    }
  }
  return "";
}

// In a process of its own: a defect may end it. "" when nothing was noticed.
std::string notice(emulation::Mutant mutant) {
  int pipe_ends[2];
  REQUIRE(pipe(pipe_ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    close(pipe_ends[0]);
    for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE}) std::signal(signal, SIG_DFL);
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    emulation::mutant = mutant;
    const std::string wrong = first_failure(2);
    if (write(pipe_ends[1], wrong.data(), wrong.size()) < 0) _exit(2);
    _exit(0);
  }
  close(pipe_ends[1]);
  std::string text;
  char buffer[512];
  for (ssize_t got; (got = read(pipe_ends[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<std::size_t>(got));
  }
  close(pipe_ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status)) return "ended by signal " + std::to_string(WTERMSIG(status));
  if (WEXITSTATUS(status) != 0) return "exit status " + std::to_string(WEXITSTATUS(status));
  return text;
}

}  // namespace

TEST_CASE("CUDA kernels give what their references give, whatever the schedule") {
  for (const Check& check : kChecks) {
    CAPTURE(check.name);
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      CAPTURE(seed);
      CHECK(check.run(seed) == "");
    }
  }
  CHECK(emulation::statistics.mma > 0);
}

TEST_CASE("every defect that the kernels are given is noticed") {
  CHECK(notice(emulation::Mutant::kNothing) == "");
  for (const emulation::NamedMutant& mutant : emulation::kMutants) {
    const std::string noticed = notice(mutant.mutant);
    std::printf("%-24.*s %s\n", static_cast<int>(mutant.name.size()), mutant.name.data(),
                noticed.empty() ? "NOT NOTICED" : noticed.c_str());
    CAPTURE(mutant.name);
    CHECK(noticed != "");
  }
}

TEST_CASE("what cannot be computed is refused before anything is queued") {
  const std::uint64_t launches = emulation::statistics.launches;
  alignas(16) std::int8_t bytes[256] = {};
  float floats[64] = {};
  const HeadraceLinear good{bytes,  16, floats, bytes, 16, floats,       nullptr,
                            floats, 4,  2,      4,     16, HEADRACE_F32, HEADRACE_IDENTITY};
  const auto refused = [](HeadraceLinear p) {
    return headrace_cuda_linear(&p, nullptr) != nullptr;
  };
  HeadraceLinear p = good;
  p.k = 0;
  CHECK(refused(p));
  p.k = HEADRACE_CUDA_MAX_K + 1;
  CHECK(refused(p));
  p = good;
  p.m = -1;
  CHECK(refused(p));
  p = good;
  p.w = bytes + 1;
  CHECK(refused(p));
  p = good;
  p.lda = 17;
  CHECK(refused(p));
  p = good;
  p.lda = 0;
  CHECK(refused(p));
  p = good;
  p.ldy = 3;
  CHECK(refused(p));
  p = good;
  p.row_scale = nullptr;
  CHECK(refused(p));
  p = good;
  p.dtype = HEADRACE_U8;
  CHECK(refused(p));
  p = good;
  p.activation = 9;
  CHECK(refused(p));
  p = good;
  p.m = 0;  // nothing to do
  CHECK_FALSE(refused(p));

  HeadraceLinearW8A8 whole{floats, 16, HEADRACE_S32, 127, good};
  CHECK(headrace_cuda_linear_w8a8(&whole, nullptr) != nullptr);
  whole.x_dtype = HEADRACE_F32;
  whole.qmax = 128;
  CHECK(headrace_cuda_linear_w8a8(&whole, nullptr) != nullptr);
  whole.qmax = 127;
  whole.linear.dtype = HEADRACE_S32;
  CHECK(headrace_cuda_linear_w8a8(&whole, nullptr) != nullptr);

  HeadraceQuantizeRows rows{floats, 4, bytes, 3, floats, 2, 4, HEADRACE_F32, 127};
  CHECK(headrace_cuda_quantize_rows(&rows, nullptr) != nullptr);  // ldq below k
  HeadraceLayerNormQuantize norm{};
  norm.rows = 1;
  norm.k = 4097;
  norm.qmax = 127;
  CHECK(headrace_cuda_layer_norm_quantize(&norm, nullptr) != nullptr);
  HeadraceGatherRows gather{};
  gather.rows = 1;
  gather.width = 5;
  gather.channels = 2;
  gather.inner = 2;
  gather.interleaved = 1;
  CHECK(headrace_cuda_gather_rows(&gather, nullptr) != nullptr);  // 5 is not 2 * 2
  CHECK(emulation::statistics.launches == launches);
}
