// RivaService: nvidia.riva.asr.RivaSpeechRecognition for one event loop: from a call's bytes to the
// recogniser's stream and back. docs/RIVA.md says what it makes of which field.
//
// Threads: its loop's; recognisers tell their results on threads of their own, through RivaMailbox.
// Back-pressure. A stream's next message is asked for when the last one is in the recogniser, its backlog has
// room and the client takes results; so it holds one message, the recogniser's backlog, and one interim
// result a channel. A message is decoded some blocks a turn: others' calls go on meanwhile.
// A call that ends, however it does, frees the recogniser's stream at once.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "base/snapshot.h"
#include "base/status.h"
#include "frontend/riva_codec.h"
#include "frontend/riva_mailbox.h"
#include "frontend/server_state.h"
#include "rpc/call.h"
#include "speech/audio_resampler.h"
#include "transport/event_loop.h"

namespace headrace {

class RivaService final : public EventLoop::Inbox {
 public:
  // Of one message of a stream; a whole file may be as large as the server takes messages.
  static constexpr std::size_t kMaxStreamMessage = 16 << 20;
  // Of a file: what is compressed well may be far longer than its bytes tell.
  static constexpr double kMaxFileSeconds = 4 * 3600;

  RivaService(EventLoop& loop, CallSet& calls, ServerState& state);
  ~RivaService() override;

  void add_to(MethodTable& methods, std::size_t max_message_bytes);

  // Looks at the newest snapshot, so that this loop lets go of the old one.
  void refresh() { table_.get(); }
  // The server stops: streams hear no more audio, and end with this after their last finals.
  void end_streams(const Status& status);
  std::size_t open_streams() const { return recognitions_.size(); }

  void on_wake() override;

 private:
  class StreamHandler;
  class FileHandler;
  class ModelsHandler;
  struct Recognition;
  using Recognitions = std::list<Recognition>;

  Recognition& begin(Call& call, bool file);
  // Chooses the model; its stream is opened here, or when the number of channels is known.
  Status configure(Recognition& recognition, const RivaConfig& config);
  Status open_channels(Recognition& recognition, std::size_t count);
  // Goes on with the call as far as it can: results out, audio in. The call may end in here.
  void advance(Call& call, Recognition& recognition);
  // False: the call has ended.
  bool send_results(Call& call, Recognition& recognition);
  bool feed(Call& call, Recognition& recognition);
  Status read_block(Recognition& recognition, bool& more);
  void message_read(Call& call, Recognition& recognition);
  void finish(Call& call, Recognition& recognition);
  void fail(Call& call, const Status& status);
  // Frees it, and with it the recogniser's streams.
  void drop(Call& call);

  EventLoop& loop_;
  CallSet& calls_;
  ServerState& state_;
  SnapshotReader<SpeechTable> table_;
  const std::shared_ptr<RivaNews> news_;
  ResamplerFilters filters_;
  std::vector<std::unique_ptr<Handler>> handlers_;
  Recognitions recognitions_;
  std::vector<uint64_t> woken_;
  Status ending_;  // not OK: by end_streams()
};

}  // namespace headrace
