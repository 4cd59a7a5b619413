// The INT8 kernels on CUDA devices: libheadrace_cuda.so. A C interface, so that Python (ctypes), the
// TensorRT plug-in and tests call the same functions; no CUDA header is needed to include it.
//
// Every function queues its work on `stream` (a cudaStream_t; nullptr: the default stream) of the current
// device and returns at once: nullptr, or text that says what was wrong, which lives for ever. Nothing is
// queued then. Memory is the caller's: device memory where not said otherwise, in place until the work is
// done. Any thread may call. sm_80 and later.
//
//   headrace_cuda_quantize_rows(&rows, stream);   // x -> q, scale
//   headrace_cuda_linear(&linear, stream);        // q, scale, weights -> y
//   headrace_cuda_linear_w8a8(&whole, stream);    // both; one launch for up to 16 rows
// ---------------------------------------------------------------------------------------------
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum HeadraceDtype {
  HEADRACE_F32 = 0,
  HEADRACE_F16 = 1,
  HEADRACE_S32 = 2,
  HEADRACE_U8 = 3,
  HEADRACE_S16 = 4,
  HEADRACE_S8 = 5,
};

enum HeadraceActivation {
  HEADRACE_IDENTITY = 0,
  HEADRACE_RELU = 1,
  HEADRACE_GELU = 2,  // with erf
  HEADRACE_SILU = 3,
};

// Sums of k products fit into 32 bits up to here.
#define HEADRACE_CUDA_MAX_K 131072

// x (rows, k), F32 or F16, row i from element i * ldx on -> q int8, row i from i * ldq on, scale (rows):
// x ~ q * scale, |q| <= qmax (1..127), ties to even. A row with an infinity or a NaN has the scale NaN and
// q = 0; one of magnitudes below 2^-100 the scale 0.
struct HeadraceQuantizeRows {
  const void* x;
  int64_t ldx;
  int8_t* q;
  int64_t ldq;
  float* scale;
  int32_t rows;
  int32_t k;
  int32_t dtype;
  int32_t qmax;
};

// y = activation(fma(a * w^T, row_scale * column_scale, bias)). a (m, k), w (n, k): int8, aligned to 16 bytes,
// lda and ldw multiples of 16. y (m, n): F32, F16, or S32 for the bare sums (no scale is read then).
struct HeadraceLinear {
  const int8_t* a;
  int64_t lda;
  const float* row_scale;  // m
  const int8_t* w;
  int64_t ldw;
  const float* column_scale;  // n
  const float* bias;          // n, or nullptr
  void* y;
  int64_t ldy;
  int32_t m;
  int32_t n;
  int32_t k;
  int32_t dtype;
  int32_t activation;
};

// As above, from x (m, k) of F32 or F16: quantised with qmax, multiplied. `linear.a` and `linear.row_scale` are
// scratch for the quantised rows, written here when m > 16 or k > 4096 and not looked at otherwise; y F32, F16.
struct HeadraceLinearW8A8 {
  const void* x;
  int64_t ldx;
  int32_t x_dtype;
  int32_t qmax;
  struct HeadraceLinear linear;
};

// x, residual, sum, y (rows, k) of F32 or F16 without gaps; q as above; k <= 4096.
// sum = x + residual; y = layer_norm(sum) * gamma + beta; q, scale = quantised y.
struct HeadraceLayerNormQuantize {
  const void* x;
  const void* residual;  // or nullptr
  const float* gamma;    // k
  const float* beta;     // k, or nullptr
  float epsilon;
  int32_t dtype;
  void* sum;  // or nullptr
  void* y;    // or nullptr
  int8_t* q;
  int64_t ldq;
  float* scale;
  int32_t rows;
  int32_t k;
  int32_t qmax;
};

// A row of a request: `length` elements, the row's width at most; 0 for a row of padding.
struct HeadraceRowSource {
  const void* data;
  int32_t length;
};

// y[row][i] = x[i] * multiplier[c] + offset[c], c = i / inner % channels, for i < length; `padding` after. x:
// U8, S16, F32 or F16; y (rows, width): F32, F16, or S8: divided by `scale`, rounded to even, held to
// +-127. `interleaved`: x is (inner, channels) and y (channels, inner), for full rows only. Sources may lie
// in pinned host memory; so may the table `sources`.
struct HeadraceGatherRows {
  const struct HeadraceRowSource* sources;  // rows
  void* y;
  int32_t rows;
  int32_t width;
  int32_t channels;
  int32_t inner;
  int32_t interleaved;
  int32_t x_dtype;
  int32_t y_dtype;
  float padding;
  float scale;
  const float* multiplier;  // channels, or nullptr
  const float* offset;      // channels, or nullptr
};

#define HEADRACE_CUDA_API __attribute__((visibility("default")))
HEADRACE_CUDA_API const char* headrace_cuda_quantize_rows(const struct HeadraceQuantizeRows* p,
                                                          void* stream);
HEADRACE_CUDA_API const char* headrace_cuda_linear(const struct HeadraceLinear* p, void* stream);
HEADRACE_CUDA_API const char* headrace_cuda_linear_w8a8(const struct HeadraceLinearW8A8* p,
                                                        void* stream);
HEADRACE_CUDA_API const char* headrace_cuda_layer_norm_quantize(
    const struct HeadraceLayerNormQuantize* p, void* stream);
HEADRACE_CUDA_API const char* headrace_cuda_gather_rows(const struct HeadraceGatherRows* p,
                                                        void* stream);

#ifdef __cplusplus
}
#endif
