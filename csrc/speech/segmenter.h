// Segmenter: cuts a stream into segments, by how likely each frame is speech. A pure function of its input:
// its time is that of the audio.
//
//   Segmenter segmenter(options);
//   segmenter.push(probability);                       // a frame of kVoiceFrame samples
//   while (std::optional<SegmentEvent> event = segmenter.next()) ...
//
// Threads: one at a time.
// ---------------------------------------------------------------------------------------------
// A segment starts when enough frames of the start's window are speech, some time before the first of them
// (pre-roll). It ends in silence; after soft_cut at the first dip; after hard_cut where speech is least likely.
// Segments without enough speech are dropped: nothing is heard of them but kDropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

namespace headrace {

struct SegmenterOptions {
  float speech = 0.5F;           // a frame above it is speech, when nobody speaks
  float still_speech = 0.35F;    // and when somebody does
  std::size_t start_window = 5;  // frames
  std::size_t start_frames = 3;  // of the window that are speech
  std::size_t preroll = 8;
  std::size_t stop_window = 10;  // frames of silence that end a segment
  float stop_share = 1;          // of them that are silent
  std::size_t eou_window = 4;    // silence after which the final may be decoded ahead; 0: never
  float eou_share = 1;
  std::size_t partial_interval = 10;  // frames; 0: no partials
  std::size_t soft_cut = 156;
  std::size_t dip = 2;  // silent frames that end a segment after soft_cut
  std::size_t hard_cut = 375;
  std::size_t cut_search = 48;   // how far back the place of a hard cut is looked for
  std::size_t least_speech = 3;  // frames of speech without which a segment is dropped
};

struct SegmentEvent {
  enum class Kind : uint8_t {
    kStarted,
    kPartial,      // the segment so far may be decoded
    kSpeculative,  // likely its end: the final may be decoded ahead
    kFinal,        // its end
    kDropped,      // there was no speech in it after all
  };
  Kind kind = Kind::kStarted;
  uint64_t segment = 0;      // counts up from 1
  uint64_t begin = 0;        // frames since the stream's start
  uint64_t end = 0;          // one after the last
  uint64_t speech_end = 0;   // one after the last frame of speech
  bool speculated = false;   // kFinal: nothing was said since the kSpeculative before
  std::vector<bool> voiced;  // kFinal and kSpeculative: which frames of the segment are speech
};

class Segmenter {
 public:
  explicit Segmenter(const SegmenterOptions& options) : options_(options) {}

  void push(float probability);
  // The speaker has finished, or the stream.
  void force_end();
  std::optional<SegmentEvent> next();

  uint64_t frames() const { return frames_; }
  bool open() const { return open_; }
  // The first frame that a segment may still need.
  uint64_t needed_from() const;

 private:
  void start(uint64_t begin);
  void finish(uint64_t end);
  void emit(SegmentEvent::Kind kind, uint64_t end);
  void cut_hard();
  bool silent_for(std::size_t window, float share) const;

  SegmenterOptions options_;
  std::deque<SegmentEvent> events_;
  uint64_t frames_ = 0;
  uint64_t floor_ = 0;       // no segment begins before
  std::deque<bool> recent_;  // while none is open: whether the last frames were speech
  bool open_ = false;
  uint64_t segment_ = 0;  // its number
  uint64_t begin_ = 0;
  uint64_t speech_end_ = 0;
  uint64_t partial_at_ = 0;  // when the next is due
  bool speculated_ = false;
  std::vector<float> heard_;  // probabilities since begin_
  std::vector<bool> voiced_;  // since begin_
};

}  // namespace headrace
