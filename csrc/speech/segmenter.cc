#include "speech/segmenter.h"

#include <algorithm>
#include <utility>

namespace headrace {

uint64_t Segmenter::needed_from() const {
  if (open_) return begin_;
  const uint64_t back = options_.preroll + options_.start_window;
  return std::max(floor_, frames_ - std::min<uint64_t>(frames_, back));
}

void Segmenter::push(float probability) {
  ++frames_;
  if (!open_) {
    recent_.push_back(probability > options_.speech);
    if (recent_.size() > options_.start_window) recent_.pop_front();
    const auto speech = static_cast<std::size_t>(std::count(recent_.begin(), recent_.end(), true));
    if (speech < std::max<std::size_t>(options_.start_frames, 1)) return;
    const auto first = std::find(recent_.begin(), recent_.end(), true);
    const uint64_t onset = frames_ - static_cast<uint64_t>(recent_.end() - first);
    start(std::max(floor_, onset - std::min<uint64_t>(onset, options_.preroll)));
    // The frames before this one: silence of the pre-roll, then what was just judged.
    voiced_.assign(frames_ - begin_, false);
    for (std::size_t i = 0; i < recent_.size() && i < voiced_.size(); ++i) {
      voiced_[voiced_.size() - 1 - i] = recent_[recent_.size() - 1 - i];
    }
    heard_.assign(voiced_.size(), 1);
    speech_end_ = frames_;
    recent_.clear();
    return;
  }

  const bool speech = probability > options_.still_speech;
  heard_.push_back(probability);
  voiced_.push_back(speech);
  if (speech) {
    speech_end_ = frames_;
    speculated_ = false;
  } else {
    const uint64_t length = frames_ - begin_;
    if (silent_for(options_.stop_window, options_.stop_share) ||
        (length >= options_.soft_cut && silent_for(options_.dip, 1))) {
      finish(frames_);
      return;
    }
    if (!speculated_ && options_.eou_window > 0 &&
        silent_for(options_.eou_window, options_.eou_share)) {
      emit(SegmentEvent::Kind::kSpeculative, frames_);
      speculated_ = true;
      return;
    }
  }
  if (frames_ - begin_ >= options_.hard_cut) {
    cut_hard();
    return;
  }
  if (options_.partial_interval > 0 && frames_ >= partial_at_ && !speculated_) {
    emit(SegmentEvent::Kind::kPartial, frames_);
    partial_at_ = frames_ + options_.partial_interval;
  }
}

void Segmenter::force_end() {
  if (open_) finish(frames_);
  recent_.clear();
  floor_ = frames_;
}

std::optional<SegmentEvent> Segmenter::next() {
  if (events_.empty()) return std::nullopt;
  SegmentEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

void Segmenter::start(uint64_t begin) {
  open_ = true;
  ++segment_;
  begin_ = begin;
  speculated_ = false;
  partial_at_ = frames_ + options_.partial_interval;
  heard_.clear();
  voiced_.clear();
  emit(SegmentEvent::Kind::kStarted, frames_);
}

void Segmenter::finish(uint64_t end) {
  const auto speech = static_cast<std::size_t>(std::count(voiced_.begin(), voiced_.end(), true));
  emit(speech < options_.least_speech ? SegmentEvent::Kind::kDropped : SegmentEvent::Kind::kFinal,
       end);
  open_ = false;
  floor_ = end;
  recent_.clear();
}

void Segmenter::emit(SegmentEvent::Kind kind, uint64_t end) {
  SegmentEvent event;
  event.kind = kind;
  event.segment = segment_;
  event.begin = begin_;
  event.end = end;
  event.speech_end = std::min(speech_end_, end);
  if (kind == SegmentEvent::Kind::kFinal || kind == SegmentEvent::Kind::kSpeculative) {
    event.speculated = speculated_;
    event.voiced = voiced_;
  }
  events_.push_back(std::move(event));
}

// Ends the segment at the likeliest pause of its last frames; what follows is the next one.
void Segmenter::cut_hard() {
  const std::size_t search = std::min(options_.cut_search, heard_.size() - 1);
  const auto from = heard_.end() - static_cast<std::ptrdiff_t>(search);
  const auto least = std::min_element(from, heard_.end());
  // After the quietest frame; never an empty segment.
  const auto kept = static_cast<std::size_t>(least - heard_.begin()) + 1;
  std::vector<float> heard(heard_.begin() + static_cast<std::ptrdiff_t>(kept), heard_.end());
  std::vector<bool> voiced(voiced_.begin() + static_cast<std::ptrdiff_t>(kept), voiced_.end());
  const uint64_t cut = begin_ + kept;
  voiced_.resize(kept);
  finish(cut);
  start(cut);
  heard_ = std::move(heard);
  voiced_ = std::move(voiced);
}

// Whether the last `window` frames are silent, but for so many that the share allows; the last one is.
bool Segmenter::silent_for(std::size_t window, float share) const {
  if (window == 0 || voiced_.size() < window || voiced_.back()) return false;
  const auto from = voiced_.end() - static_cast<std::ptrdiff_t>(window);
  const auto silent = static_cast<float>(std::count(from, voiced_.end(), false));
  return silent >= share * static_cast<float>(window);
}

}  // namespace headrace
