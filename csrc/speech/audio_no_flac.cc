#include "speech/audio_codec.h"

namespace headrace {

Result<std::unique_ptr<AudioCodec>> make_flac_codec() {
  return Status::unimplemented(
      "this server was built without libFLAC (Debian: libflac-dev): send FLAC audio as WAV");
}

}  // namespace headrace
