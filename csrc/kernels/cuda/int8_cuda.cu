// Checks, then chooses the kernel's instance. Compiled by nvcc; by tests/cuda with the emulation.
#include "kernels/cuda/int8_cuda.h"

#include "kernels/cuda/fused_linear.cuh"
#include "kernels/cuda/gather_rows.cuh"
#include "kernels/cuda/gemm_s8.cuh"
#include "kernels/cuda/layer_norm_quantize.cuh"
#include "kernels/cuda/quantize_rows.cuh"

namespace {

using namespace headrace::cuda;

bool aligned(const void* pointer, std::uintptr_t to) {
  return reinterpret_cast<std::uintptr_t>(pointer) % to == 0;
}

const char* wrong_size(int rows, int k, int qmax) {
  if (rows < 0) return "rows is negative";
  if (k < 1 || k > HEADRACE_CUDA_MAX_K) return "k is not in 1..131072";
  if (qmax < 1 || qmax > 127) return "qmax is not in 1..127";
  return nullptr;
}

// What is wrong with the weights and the output, which both ways to a linear layer share.
const char* wrong_linear(const HeadraceLinear& p) {
  if (p.m < 0) return "m is negative";
  // Grids have at most 65535 blocks in their second direction; the smallest tile has 64 columns.
  if (p.n < 1 || p.n > 65535 * 64) return "n is not in 1..4194240";
  if (p.k < 1 || p.k > HEADRACE_CUDA_MAX_K) return "k is not in 1..131072";
  if (p.w == nullptr || !aligned(p.w, 16) || p.ldw % 16 != 0 || p.ldw < p.k) {
    return "w is not aligned to 16 bytes, or ldw is no multiple of 16, or below k";
  }
  if (p.y == nullptr || p.ldy < p.n) return "y is missing, or ldy is below n";
  if (p.activation < HEADRACE_IDENTITY || p.activation > HEADRACE_SILU) return "no such activation";
  if (p.dtype != HEADRACE_S32 && p.column_scale == nullptr) return "column_scale is missing";
  return nullptr;
}

const char* wrong_rows(const HeadraceLinear& p) {
  if (p.a == nullptr || !aligned(p.a, 16) || p.lda % 16 != 0 || p.lda < p.k) {
    return "a is not aligned to 16 bytes, or lda is no multiple of 16, or below k";
  }
  if (p.dtype != HEADRACE_S32 && p.row_scale == nullptr) return "row_scale is missing";
  return nullptr;
}

template <typename Out>
Linear<Out> linear(const HeadraceLinear& p) {
  return {
      p.a,   p.lda, p.row_scale, p.w, p.ldw,       p.column_scale, p.bias, static_cast<Out*>(p.y),
      p.ldy, p.m,   p.n,         p.k, p.activation};
}

template <typename In>
const char* fused(const HeadraceLinearW8A8& p, Stream stream) {
  const auto* x = static_cast<const In*>(p.x);
  switch (p.linear.dtype) {
    case HEADRACE_F32:
      return launch_fused_linear(FusedLinear<In, float>{x, p.ldx, p.qmax, linear<float>(p.linear)},
                                 stream);
    case HEADRACE_F16:
      return launch_fused_linear(FusedLinear<In, Half>{x, p.ldx, p.qmax, linear<Half>(p.linear)},
                                 stream);
    default:
      return "y is F32 or F16";
  }
}

template <typename T>
const char* layer_norm(const HeadraceLayerNormQuantize& p, Stream stream) {
  return launch_layer_norm_quantize(
      LayerNormQuantize<T>{static_cast<const T*>(p.x), static_cast<const T*>(p.residual), p.gamma,
                           p.beta, p.epsilon, static_cast<T*>(p.sum), static_cast<T*>(p.y), p.q,
                           p.ldq, p.scale, p.rows, p.k, p.qmax},
      stream);
}

template <typename In, typename Out>
const char* gather(const HeadraceGatherRows& p, Stream stream) {
  return launch_gather_rows(
      GatherRows<In, Out>{p.sources, static_cast<Out*>(p.y), p.rows, p.width, p.channels, p.inner,
                          p.interleaved, p.multiplier, p.offset, p.padding, 1.0f / p.scale},
      stream);
}

template <typename In>
const char* gather(const HeadraceGatherRows& p, Stream stream) {
  switch (p.y_dtype) {
    case HEADRACE_F32:
      return gather<In, float>(p, stream);
    case HEADRACE_F16:
      return gather<In, Half>(p, stream);
    case HEADRACE_S8:
      return gather<In, std::int8_t>(p, stream);
    default:
      return "y is F32, F16 or S8";
  }
}

}  // namespace

extern "C" {

const char* headrace_cuda_quantize_rows(const HeadraceQuantizeRows* p, void* stream) {
  if (const char* wrong = wrong_size(p->rows, p->k, p->qmax)) return wrong;
  if (p->rows == 0) return nullptr;
  if (p->x == nullptr || p->ldx < p->k) return "x is missing, or ldx is below k";
  if (p->q == nullptr || p->ldq < p->k || p->scale == nullptr) {
    return "q or scale is missing, or ldq is below k";
  }
  const auto rows = [&](const auto* x) {
    return launch_quantize_rows(
        QuantizeRows<std::remove_cvref_t<decltype(*x)>>{x, p->ldx, p->q, p->ldq, p->scale, p->rows,
                                                        p->k, p->qmax},
        static_cast<Stream>(stream));
  };
  switch (p->dtype) {
    case HEADRACE_F32:
      return rows(static_cast<const float*>(p->x));
    case HEADRACE_F16:
      return rows(static_cast<const Half*>(p->x));
    default:
      return "x is F32 or F16";
  }
}

const char* headrace_cuda_linear(const HeadraceLinear* p, void* stream) {
  if (const char* wrong = wrong_linear(*p)) return wrong;
  if (p->m == 0) return nullptr;
  if (const char* wrong = wrong_rows(*p)) return wrong;
  switch (p->dtype) {
    case HEADRACE_F32:
      return launch_linear(linear<float>(*p), static_cast<Stream>(stream));
    case HEADRACE_F16:
      return launch_linear(linear<Half>(*p), static_cast<Stream>(stream));
    case HEADRACE_S32:
      return launch_linear(linear<std::int32_t>(*p), static_cast<Stream>(stream));
    default:
      return "y is F32, F16 or S32";
  }
}

const char* headrace_cuda_linear_w8a8(const HeadraceLinearW8A8* p, void* stream) {
  const HeadraceLinear& layer = p->linear;
  if (const char* wrong = wrong_linear(layer)) return wrong;
  if (const char* wrong = wrong_size(layer.m, layer.k, p->qmax)) return wrong;
  if (layer.m == 0) return nullptr;
  if (p->x == nullptr || p->ldx < layer.k) return "x is missing, or ldx is below k";
  if (layer.dtype != HEADRACE_F32 && layer.dtype != HEADRACE_F16) return "y is F32 or F16";
  if (layer.m <= FusedTile::kBM && layer.k <= kFusedColumns) {
    switch (p->x_dtype) {
      case HEADRACE_F32:
        return fused<float>(*p, static_cast<Stream>(stream));
      case HEADRACE_F16:
        return fused<Half>(*p, static_cast<Stream>(stream));
      default:
        return "x is F32 or F16";
    }
  }
  if (const char* wrong = wrong_rows(layer)) return wrong;
  const HeadraceQuantizeRows rows{p->x,
                                  p->ldx,
                                  const_cast<std::int8_t*>(layer.a),
                                  layer.lda,
                                  const_cast<float*>(layer.row_scale),
                                  layer.m,
                                  layer.k,
                                  p->x_dtype,
                                  p->qmax};
  if (const char* wrong = headrace_cuda_quantize_rows(&rows, stream)) return wrong;
  return headrace_cuda_linear(&layer, stream);
}

const char* headrace_cuda_layer_norm_quantize(const HeadraceLayerNormQuantize* p, void* stream) {
  if (const char* wrong = wrong_size(p->rows, p->k, p->qmax)) return wrong;
  if (p->k > kNormColumns) return "k is above 4096";
  if (p->rows == 0) return nullptr;
  if (p->x == nullptr || p->gamma == nullptr) return "x or gamma is missing";
  if (p->q == nullptr || p->ldq < p->k || p->scale == nullptr) {
    return "q or scale is missing, or ldq is below k";
  }
  if (!(p->epsilon >= 0.0f)) return "epsilon is negative";
  switch (p->dtype) {
    case HEADRACE_F32:
      return layer_norm<float>(*p, static_cast<Stream>(stream));
    case HEADRACE_F16:
      return layer_norm<Half>(*p, static_cast<Stream>(stream));
    default:
      return "x is F32 or F16";
  }
}

const char* headrace_cuda_gather_rows(const HeadraceGatherRows* p, void* stream) {
  if (p->rows < 0 || p->width < 1) return "rows is negative, or width not positive";
  if (p->channels < 1 || p->inner < 1) return "channels and inner are positive";
  // Grids have at most 65535 blocks in their second direction.
  if (p->width > 65535 * kGatherThreads * kGatherItems) return "width is above 67107840";
  if (p->interleaved != 0 && p->width != std::int64_t{p->channels} * p->inner) {
    return "interleaved rows are channels * inner wide";
  }
  if (p->y_dtype == HEADRACE_S8 && !(p->scale > 0.0f)) return "scale is not positive";
  if (p->rows == 0) return nullptr;
  if (p->sources == nullptr || p->y == nullptr) return "sources or y is missing";
  const auto on = static_cast<Stream>(stream);
  switch (p->x_dtype) {
    case HEADRACE_U8:
      return gather<std::uint8_t>(*p, on);
    case HEADRACE_S16:
      return gather<std::int16_t>(*p, on);
    case HEADRACE_F32:
      return gather<float>(*p, on);
    case HEADRACE_F16:
      return gather<Half>(*p, on);
    default:
      return "x is U8, S16, F32 or F16";
  }
}

}  // extern "C"
