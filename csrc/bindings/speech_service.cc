#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/python_status.h"
#include "frontend/speech_servable.h"
#include "speech/audio_reader.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

using Channels = std::vector<std::vector<float>>;

// What AudioReader makes of all of `bytes`.
Result<Channels> decode(std::string_view bytes, const AudioOptions& options, double max_seconds) {
  ResamplerFilters filters;
  AudioReader reader(options, filters);
  Channels channels;
  reader.feed(std::as_bytes(std::span(bytes)));
  for (const bool last : {false, true}) {
    if (last) {
      reader.feed({});
      reader.end();
    }
    bool more = true;
    while (more) {
      const Result<bool> read = reader.next();
      if (!read) return read.error();
      more = *read;
      channels.resize(std::max(channels.size(), reader.channels()));
      for (std::size_t i = 0; i < reader.channels(); ++i) {
        const std::span<const float> samples = reader.samples(i);
        channels[i].insert(channels[i].end(), samples.begin(), samples.end());
      }
      if (reader.seconds() > max_seconds) {
        return Status::invalid_argument("the audio is longer than " +
                                        std::to_string(static_cast<int64_t>(max_seconds)) + " s");
      }
    }
  }
  return channels;
}

}  // namespace

void bind_speech_service(py::module_& module) {
  py::class_<SpeechServable, Servable, std::shared_ptr<SpeechServable>>(module, "SpeechServable")
      .def(py::init<std::string, int64_t>(), "model"_a, "version"_a);
  module.def(
      "decode_audio",
      [](const py::bytes& audio, int32_t encoding, uint32_t sample_rate, uint32_t channels,
         bool separate_channels, double max_seconds) {
        const std::string_view bytes = audio;
        AudioOptions options;
        options.encoding = static_cast<AudioEncoding>(encoding);
        options.sample_rate = sample_rate;
        options.channels = channels;
        options.separate_channels = separate_channels;
        Result<Channels> decoded = [&] {
          const py::gil_scoped_release release;
          return decode(bytes, options, max_seconds);
        }();
        std::vector<py::array_t<float>> arrays;
        for (const std::vector<float>& channel : value_or_raise(std::move(decoded))) {
          arrays.emplace_back(static_cast<py::ssize_t>(channel.size()), channel.data());
        }
        return arrays;
      },
      "audio"_a, py::kw_only(), "encoding"_a = 0, "sample_rate"_a = 0, "channels"_a = 1,
      "separate_channels"_a = false, "max_seconds"_a = 4 * 3600.0);
}

}  // namespace headrace
