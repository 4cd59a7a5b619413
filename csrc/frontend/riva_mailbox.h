// What a recogniser tells a Riva call, on its way from the recogniser's threads to the call's loop.
//
// Bounds: of interim results the newest is kept, and none beside a later final one. Finals are all kept: a
// client that does not take them sends no more audio (RivaService), so there are few.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "speech/recognizer.h"
#include "transport/event_loop.h"

namespace headrace {

// Which calls of a loop have news. Any thread; outlives the loop, for mailboxes may.
class RivaNews {
 public:
  explicit RivaNews(EventLoop& loop) : loop_(&loop) {}

  void tell(uint64_t call);
  // The loop's thread: the calls since the last time.
  void take(std::vector<uint64_t>& calls);
  // The loop ends.
  void close();

 private:
  std::mutex mutex_;
  EventLoop* loop_;              // guarded by mutex_, as is
  std::vector<uint64_t> calls_;  // this
};

class RivaMailbox final : public SpeechListener {
 public:
  RivaMailbox(std::shared_ptr<RivaNews> news, uint64_t call)
      : news_(std::move(news)), call_(call) {}

  // Any thread.
  void on_result(SpeechResult result) noexcept override;
  void on_end(Status status) noexcept override;
  void on_room() noexcept override;

  // The loop's thread. The next result, finals first.
  std::optional<SpeechResult> next();
  // Once there is no result left and none will come.
  std::optional<Status> ended();

 private:
  void tell();

  const std::shared_ptr<RivaNews> news_;
  const uint64_t call_;
  std::mutex mutex_;
  std::deque<SpeechResult> finals_;      // guarded by mutex_, as is all below
  std::optional<SpeechResult> interim_;  // newer than the finals
  std::optional<Status> ended_;
};

}  // namespace headrace
