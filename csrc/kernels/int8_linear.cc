#include "kernels/int8_linear.h"

#include <algorithm>
#include <cassert>

namespace headrace {
namespace {

// Rows quantised and multiplied in one go: what stays in the second-level cache.
constexpr std::size_t kBlockRows = 64;
// Fewer products than this are not worth waking another thread for.
constexpr std::size_t kTaskProducts = std::size_t{1} << 18;

std::size_t stride_of(const PackedLinear& layer) { return (layer.inputs() + 63) / 64 * 64; }

Int8Row quantise_row(const PackedLinear& layer, const Int8Table& table, const float* x,
                     uint8_t* to) {
  if (!layer.is_static()) {
    return table.quantise_dynamic(x, layer.inputs(), layer.activation_max(), to);
  }
  const StaticActivations& a = layer.activations();
  return table.quantise_static(x, layer.inputs(), a.scale, a.zero_point, a.low, a.high, to);
}

struct Job {
  std::span<const LinearOutput> outputs;
  const Int8Table& table;
  const float* x;
  std::size_t rows;
  std::size_t stride;
  uint8_t* values;
  Int8Row* made;
  std::size_t tasks = 1;

  const PackedLinear& layer() const { return *outputs.front().layer; }

  void quantise(std::size_t first, std::size_t last) const {
    for (std::size_t row = first; row < last; ++row) {
      made[row] = quantise_row(layer(), table, x + row * layer().inputs(), values + row * stride);
    }
  }
  // The share [from, to) / of of every output's panels.
  void multiply(std::size_t first, std::size_t last, std::size_t part, std::size_t parts) const {
    const Int8Rows some{values + first * stride, stride, made + first, last - first};
    for (const LinearOutput& output : outputs) {
      const std::size_t panels = output.layer->panel_count();
      table.multiply(output.layer->matrix(), panels * part / parts, panels * (part + 1) / parts,
                     some, output.y + first * output.layer->outputs(), nullptr);
    }
  }
  void block(std::size_t first, std::size_t last) const {
    for (; first < last; first += kBlockRows) {
      const std::size_t end = std::min(last, first + kBlockRows);
      quantise(first, end);
      multiply(first, end, 0, 1);
    }
  }
};

}  // namespace

bool reads_alike(const PackedLinear& a, const PackedLinear& b) {
  const StaticActivations &one = a.activations(), &other = b.activations();
  return a.inputs() == b.inputs() && a.isa() == b.isa() && a.is_static() == b.is_static() &&
         a.activation_max() == b.activation_max() && one.scale == other.scale &&
         one.zero_point == other.zero_point && one.low == other.low && one.high == other.high;
}

std::size_t linear_scratch_bytes(const PackedLinear& layer, std::size_t rows) {
  return rows * stride_of(layer) + (rows * sizeof(Int8Row) + 63) / 64 * 64;
}

void linear(std::span<const LinearOutput> outputs, const float* x, std::size_t rows,
            std::byte* scratch, const LinearParallel& parallel) {
  if (rows == 0 || outputs.empty()) return;
  const PackedLinear& layer = *outputs.front().layer;
  const std::size_t stride = stride_of(layer);
  auto* const values = reinterpret_cast<uint8_t*>(scratch);
  Job job{outputs,
          *int8_table(layer.isa()),
          x,
          rows,
          stride,
          values,
          reinterpret_cast<Int8Row*>(scratch + rows * stride)};
  std::size_t channels = 0;
  for (const LinearOutput& output : outputs) {
    assert(reads_alike(layer, *output.layer));
    channels += output.layer->outputs();
  }
  const std::size_t worth = rows * layer.inputs() * channels / kTaskProducts;
  const std::size_t threads = parallel.run == nullptr ? 1 : std::min(parallel.threads, worth);
  if (threads <= 1) return job.block(0, rows);

  // Enough tasks that a thread which comes late costs little.
  const std::size_t tasks = std::min(worth, 4 * threads);
  constexpr std::size_t kLeastRows = 8;
  if (rows >= kLeastRows * tasks) {
    job.tasks = tasks;
    parallel.run(
        tasks,
        [](void* context, std::size_t index) {
          const Job& all = *static_cast<const Job*>(context);
          all.block(all.rows * index / all.tasks, all.rows * (index + 1) / all.tasks);
        },
        &job);
    return;
  }
  // Few rows: each task has all of them and a part of the channels.
  job.quantise(0, rows);
  job.tasks = std::min(tasks, std::max<std::size_t>(1, layer.panel_count()));
  parallel.run(
      job.tasks,
      [](void* context, std::size_t index) {
        const Job& all = *static_cast<const Job*>(context);
        all.multiply(0, all.rows, index, all.tasks);
      },
      &job);
}

void linear_quantise(const PackedLinear& layer, const float* x, std::size_t rows, uint8_t* values,
                     std::size_t stride, Int8Row* made) {
  const Int8Table& table = *int8_table(layer.isa());
  for (std::size_t row = 0; row < rows; ++row) {
    made[row] = quantise_row(layer, table, x + row * layer.inputs(), values + row * stride);
  }
}

void linear_sums(const PackedLinear& layer, const uint8_t* values, std::size_t stride,
                 const Int8Row* made, std::size_t rows, int32_t* sums) {
  int8_table(layer.isa())
      ->multiply(layer.matrix(), 0, layer.panel_count(), {values, stride, made, rows}, nullptr,
                 sums);
}

}  // namespace headrace
