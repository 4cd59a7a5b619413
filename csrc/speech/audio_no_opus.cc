#include "speech/audio_codec.h"

namespace headrace {

Result<std::unique_ptr<AudioCodec>> make_ogg_opus_codec() {
  return Status::unimplemented(
      "this server was built without libogg and libopus (Debian: libogg-dev, libopus-dev): send "
      "Ogg "
      "audio as WAV");
}

}  // namespace headrace
