// The kernels, written once over a Traits of each instruction set. Included by the files an ISA only,
// whose Traits have internal linkage, so that nothing of this is ever shared between them.
//
// A tile is R rows times NV vectors of output channels, its sums in registers from the first product
// to the stored result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/int8_table.h"

namespace headrace {

// f.operator()<0>() ... <N - 1>(): unrolled from the start, so that an array with such indices only can be
// registers.
template <int N, int I = 0, class F>
[[gnu::always_inline]] inline void each(const F& f) {
  if constexpr (I < N) {
    f.template operator()<I>();
    each<N, I + 1>(f);
  }
}

template <class T>
struct Int8Body {
  using Floats = typename T::Floats;
  using Ints = typename T::Ints;
  static constexpr std::size_t kLanes = T::kLanes;

  static std::size_t padded(std::size_t n) { return (n + 63) / 64 * 64; }

  static void fill(uint8_t* to, std::size_t n) { std::memset(to, 0, padded(n)); }

  // kChunk floats at a time; the last ones through a copy.
  static void quantise(const float* x, std::size_t n, float inverse, int32_t zero_point,
                       int32_t low, int32_t high, uint8_t* to) {
    const Floats factor = T::set(inverse);
    const Floats least = T::set(static_cast<float>(low - zero_point));
    const Floats most = T::set(static_cast<float>(high - zero_point));
    const Ints offset = T::set_int(zero_point);
    std::size_t i = 0;
    for (; i + T::kChunk <= n; i += T::kChunk) {
      T::quantise_chunk(x + i, factor, least, most, offset, to + i);
    }
    if (i < n) {
      float rest[T::kChunk] = {};
      std::memcpy(rest, x + i, (n - i) * sizeof(float));
      T::quantise_chunk(rest, factor, least, most, offset, to + i);
      i += T::kChunk;
    }
    // What the last chunk wrote beyond n too: weights are zero there, but equal inputs give equal bytes.
    std::memset(to + n, 0, padded(n) - n);
  }

  // Smallest and largest of the values and 0. `odd`: NaN where one is a NaN or an infinity.
  struct Range {
    Floats low = T::set(0), high = T::set(0), odd = T::set(0);

    [[gnu::always_inline]] void add(Floats v) {
      low = T::min(low, v);
      high = T::max(high, v);
      odd = T::fma(v, T::set(0), odd);
    }
    [[gnu::always_inline]] void add(const Range& other) {
      low = T::min(low, other.low);
      high = T::max(high, other.high);
      odd = T::add(odd, other.odd);
    }
  };

  static Range range_of(const float* x, std::size_t n) {
    Range a, b, c, d;  // four: each waits four cycles for what it was before
    std::size_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
      a.add(T::load(x + i));
      b.add(T::load(x + i + kLanes));
      c.add(T::load(x + i + 2 * kLanes));
      d.add(T::load(x + i + 3 * kLanes));
    }
    for (; i + kLanes <= n; i += kLanes) b.add(T::load(x + i));
    if (i < n) c.add(T::load_some(x + i, n - i));
    a.add(b);
    c.add(d);
    a.add(c);
    return a;
  }

  static Int8Row quantise_dynamic(const float* x, std::size_t n, int32_t max, uint8_t* to) {
    const Range range = range_of(x, n);
    if (T::any_beyond(T::magnitude(range.odd), 0x7f800000)) {
      fill(to, n);
      return {__builtin_nanf(""), 0};
    }
    const float least = T::reduce_min(range.low), most = T::reduce_max(range.high);
    const auto steps = static_cast<float>(max);
    const float scale = most / steps - least / steps;
    if (scale < 1.17549435e-38f) {  // zero, or so small that 1 / scale might be infinite
      fill(to, n);
      return {0, 0};
    }
    const float inverse = 1.0f / scale;
    const int32_t zero_point = T::round(-least * inverse);
    quantise(x, n, inverse, zero_point, 0, max, to);
    return {scale, zero_point};
  }

  static Int8Row quantise_static(const float* x, std::size_t n, float scale, int32_t zero_point,
                                 int32_t low, int32_t high, uint8_t* to) {
    quantise(x, n, 1.0f / scale, zero_point, low, high, to);
    Ints size = T::set_int(0);
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) size = T::max_int(size, T::magnitude(T::load(x + i)));
    if (i < n) size = T::max_int(size, T::magnitude(T::load_some(x + i, n - i)));
    return {T::any_beyond(size, 0x7f800000) ? __builtin_nanf("") : scale, zero_point};
  }

  // erf as x P(x^2) / Q(x^2), fitted on [-4, 4]: at most 4e-7 off.
  [[gnu::always_inline]] static Floats erf(Floats x) {
    x = T::max(T::set(-4.0f), T::min(T::set(4.0f), x));
    const Floats t = T::mul(x, x);
    Floats p = T::fma(T::set(1.92171778e-08f), t, T::set(-1.99032547e-06f));
    p = T::fma(p, t, T::set(1.55537942e-04f));
    p = T::fma(p, t, T::set(4.29310044e-03f));
    p = T::fma(p, t, T::set(5.24336249e-02f));
    p = T::fma(p, t, T::set(2.13945806e-01f));
    p = T::fma(p, t, T::set(1.12837863f));
    Floats q = T::fma(T::set(1.09804957e-03f), t, T::set(1.55511899e-02f));
    q = T::fma(q, t, T::set(1.20800085e-01f));
    q = T::fma(q, t, T::set(5.22932172e-01f));
    q = T::fma(q, t, T::set(1.0f));
    return T::div(T::mul(x, p), q);
  }

  // 2^n e^r with |r| <= ln(2) / 2.
  [[gnu::always_inline]] static Floats exp(Floats x) {
    x = T::max(T::set(-87.0f), T::min(T::set(87.0f), x));
    const Ints n = T::to_int(T::mul(x, T::set(1.44269504f)));
    const Floats whole = T::to_float(n);
    Floats r = T::fma(whole, T::set(-0.693359375f), x);
    r = T::fma(whole, T::set(2.12194440e-04f), r);
    Floats p = T::fma(T::set(1.0f / 720), r, T::set(1.0f / 120));
    p = T::fma(p, r, T::set(1.0f / 24));
    p = T::fma(p, r, T::set(1.0f / 6));
    p = T::fma(p, r, T::set(0.5f));
    p = T::fma(p, r, T::set(1.0f));
    p = T::fma(p, r, T::set(1.0f));
    return T::mul(p, T::exponent(n));
  }

  [[gnu::always_inline]] static Floats times_sigmoid(Floats x, Floats of) {
    const Floats one = T::set(1.0f);
    return T::div(x, T::add(one, exp(T::mul(of, T::set(-1.0f)))));
  }

  // A NaN stays one: min and max answer their second operand then.
  template <LinearActivation A>
  [[gnu::always_inline]] static Floats activate(Floats x) {
    if constexpr (A == LinearActivation::kRelu) {
      return T::max(T::set(0), x);
    } else if constexpr (A == LinearActivation::kGeluErf) {
      const Floats half = T::mul(x, T::set(0.5f));
      return T::fma(half, erf(T::mul(x, T::set(0.70710678f))), half);
    } else if constexpr (A == LinearActivation::kGeluTanh) {
      const Floats cube = T::mul(T::mul(x, x), x);
      return times_sigmoid(x, T::mul(T::set(1.5957691f), T::fma(T::set(0.044715f), cube, x)));
    } else if constexpr (A == LinearActivation::kSilu) {
      return times_sigmoid(x, x);
    } else if constexpr (A == LinearActivation::kSigmoid) {
      return times_sigmoid(T::set(1.0f), x);
    } else if constexpr (A == LinearActivation::kTanh) {  // 2 sigmoid(2x) - 1
      return T::add(times_sigmoid(T::set(2.0f), T::add(x, x)), T::set(-1.0f));
    } else {
      return x;
    }
  }

  // The first values of a vector whose others are `other`.
  static Floats load_front(const float* x, std::size_t n, float other) {
    float whole[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) whole[i] = i < n ? x[i] : other;
    return T::load(whole);
  }

  static float reduce_add(Floats v) {
    float each[kLanes];
    T::store(each, v);
    float sum = each[0];
    for (std::size_t i = 1; i < kLanes; ++i) sum += each[i];
    return sum;
  }

  static float dot(const float* a, const float* b, std::size_t n) {
    Floats sums[2] = {T::set(0), T::set(0)};
    std::size_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      sums[0] = T::fma(T::load(a + i), T::load(b + i), sums[0]);
      sums[1] = T::fma(T::load(a + i + kLanes), T::load(b + i + kLanes), sums[1]);
    }
    for (; i < n; i += kLanes) {
      const std::size_t left = n - i < kLanes ? n - i : kLanes;
      const bool whole = left == kLanes;
      const Floats x = whole ? T::load(a + i) : T::load_some(a + i, left);
      sums[0] = T::fma(x, whole ? T::load(b + i) : T::load_some(b + i, left), sums[0]);
    }
    return reduce_add(T::add(sums[0], sums[1]));
  }

  static void softmax(float* y, std::size_t n) {
    constexpr float kLeast = -__builtin_inff();
    Floats high = T::set(kLeast);
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) high = T::max(high, T::load(y + i));
    if (i < n) high = T::max(high, load_front(y + i, n - i, kLeast));
    const Floats minus = T::set(-T::reduce_max(high));
    Floats sums = T::set(0);
    for (i = 0; i + kLanes <= n; i += kLanes) {
      const Floats power = exp(T::add(T::load(y + i), minus));
      T::store(y + i, power);
      sums = T::add(sums, power);
    }
    if (i < n) {  // what is not there counts as exp(-87)
      const Floats power = exp(T::add(load_front(y + i, n - i, kLeast), minus));
      T::store_some(y + i, power, n - i);
      sums = T::add(sums, power);
    }
    const Floats share = T::set(1.0f / reduce_add(sums));
    for (i = 0; i + kLanes <= n; i += kLanes) T::store(y + i, T::mul(T::load(y + i), share));
    if (i < n) T::store_some(y + i, T::mul(T::load_some(y + i, n - i), share), n - i);
  }

  // Without the activation function, but for ReLU, which costs nothing here.
  template <int R, int NV>
  [[gnu::always_inline]] static void store(const Int8Matrix& matrix, const Int8Panel& panel,
                                           const Int8Row* made, const Ints (&sums)[R][NV],
                                           float* y) {
    const bool relu = matrix.activation == LinearActivation::kRelu;
    const Floats least = T::set(relu ? 0 : -__builtin_inff());
    each<NV>([&]<int V>() __attribute__((always_inline)) {
      const std::size_t channel = panel.channel + V * kLanes;
      const std::size_t left = panel.channels - V * kLanes;
      const Ints weights = T::load_ints(matrix.sums + channel);
      const Floats scale = T::load(matrix.scales + channel);
      const Floats bias = T::load(matrix.bias + channel);
      each<R>([&]<int Q>() __attribute__((always_inline)) {
        float* const to = y + Q * matrix.channels + channel;
        const Ints sum =
            T::sub_int(sums[Q][V], T::mul_int(T::set_int(made[Q].zero_point), weights));
        // A NaN stays one.
        const Floats value =
            T::max(least, T::fma(T::to_float(sum), T::mul(T::set(made[Q].scale), scale), bias));
        if (left >= kLanes) {
          T::store(to, value);
        } else {
          T::store_some(to, value, left);
        }
      });
    });
  }

  template <int R, int NV>
  [[gnu::always_inline]] static void store_raw(const Int8Matrix& matrix, const Int8Panel& panel,
                                               const Int8Row* made, const Ints (&sums)[R][NV],
                                               int32_t* raw) {
    each<NV>([&]<int V>() __attribute__((always_inline)) {
      const std::size_t channel = panel.channel + V * kLanes;
      const std::size_t left = panel.channels - V * kLanes;
      const Ints weights = T::load_ints(matrix.sums + channel);
      each<R>([&]<int Q>() __attribute__((always_inline)) {
        alignas(64) int32_t whole[kLanes];
        T::store_ints(whole,
                      T::sub_int(sums[Q][V], T::mul_int(T::set_int(made[Q].zero_point), weights)));
        std::memcpy(raw + Q * matrix.channels + channel, whole,
                    (left < kLanes ? left : kLanes) * sizeof(int32_t));
      });
    });
  }

  // What was just stored, while it is in the first-level cache.
  template <LinearActivation A>
  static void activate_rows(float* y, std::size_t rows, std::size_t stride, std::size_t n) {
    for (std::size_t row = 0; row < rows; ++row, y += stride) {
      std::size_t i = 0;
      for (; i + kLanes <= n; i += kLanes) T::store(y + i, activate<A>(T::load(y + i)));
      if (i < n) T::store_some(y + i, activate<A>(T::load_some(y + i, n - i)), n - i);
    }
  }

  static void activate_rows(LinearActivation activation, float* y, std::size_t rows,
                            std::size_t stride, std::size_t n) {
    switch (activation) {
      case LinearActivation::kNone:
        return;
      case LinearActivation::kRelu:
        return activate_rows<LinearActivation::kRelu>(y, rows, stride, n);
      case LinearActivation::kGeluErf:
        return activate_rows<LinearActivation::kGeluErf>(y, rows, stride, n);
      case LinearActivation::kGeluTanh:
        return activate_rows<LinearActivation::kGeluTanh>(y, rows, stride, n);
      case LinearActivation::kSilu:
        return activate_rows<LinearActivation::kSilu>(y, rows, stride, n);
      case LinearActivation::kSigmoid:
        return activate_rows<LinearActivation::kSigmoid>(y, rows, stride, n);
      case LinearActivation::kTanh:
        return activate_rows<LinearActivation::kTanh>(y, rows, stride, n);
    }
  }

  static void activate_all(LinearActivation activation, float* y, std::size_t n) {
    activate_rows(activation, y, 1, n, n);
  }

  // Another variable from here on.
  [[gnu::always_inline]] static void detach(Ints& sum) { asm volatile("" : "+v"(sum)); }

  template <int R, int NV>
  [[gnu::noinline]] static void tile(const Int8Matrix& matrix, const Int8Panel& panel,
                                     const Int8Rows& rows, std::size_t row, float* y,
                                     int32_t* raw) {
    Ints sums[R][NV];
    T::template products<R, NV>(panel, rows.values + row * rows.stride, rows.stride, sums);
    // Or those of the loop above are kept in memory wherever the code below has too few registers for
    // them (GCC 12 stored each sum after each product).
    each<R>([&]<int Q>() __attribute__((always_inline)) {
      each<NV>([&]<int V>() __attribute__((always_inline)) { detach(sums[Q][V]); });
    });
    const Int8Row* const made = rows.rows + row;
    if (raw != nullptr) [[unlikely]] {
      return store_raw<R, NV>(matrix, panel, made, sums, raw + row * matrix.channels);
    }
    y += row * matrix.channels;
    store<R, NV>(matrix, panel, made, sums, y);
    if (matrix.activation > LinearActivation::kRelu) {
      activate_rows(matrix.activation, y + panel.channel, R, matrix.channels, panel.channels);
    }
  }

  template <int R, int NV>
  static void rest(std::size_t count, const Int8Matrix& matrix, const Int8Panel& panel,
                   const Int8Rows& rows, std::size_t row, float* y, int32_t* raw) {
    if constexpr (R > 0) {
      if (count == R) return tile<R, NV>(matrix, panel, rows, row, y, raw);
      rest<R - 1, NV>(count, matrix, panel, rows, row, y, raw);
    }
  }

  template <int NV>
  static void panel_rows(const Int8Matrix& matrix, const Int8Panel& panel, const Int8Rows& rows,
                         float* y, int32_t* raw) {
    // Tiles of nearly equal height: 5 + 4 rows rather than 8 + 1.
    const std::size_t tiles = (rows.count + T::kRows - 1) / T::kRows;
    for (std::size_t t = 0, row = 0; t < tiles; ++t) {
      const std::size_t count = (rows.count - row + tiles - t - 1) / (tiles - t);
      rest<T::kRows, NV>(count, matrix, panel, rows, row, y, raw);
      row += count;
    }
  }

  static void multiply(const Int8Matrix& matrix, std::size_t first, std::size_t last,
                       const Int8Rows& rows, float* y, int32_t* raw) {
    for (std::size_t p = first; p < last; ++p) {
      const Int8Panel& panel = matrix.panels[p];
      if (panel.vectors == 3) {
        panel_rows<3>(matrix, panel, rows, y, raw);
      } else if (panel.vectors == 2) {
        panel_rows<2>(matrix, panel, rows, y, raw);
      } else {
        panel_rows<1>(matrix, panel, rows, y, raw);
      }
    }
  }
};

}  // namespace headrace
