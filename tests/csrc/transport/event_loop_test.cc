#include "transport/event_loop.h"

#include <doctest/doctest.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <vector>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

struct RunningLoop {
  RunningLoop() {
    REQUIRE(loop.open().ok());
    thread = std::thread([this] { loop.run(); });
  }
  ~RunningLoop() {
    loop.stop();
    if (thread.joinable()) thread.join();
  }
  EventLoop loop;
  std::thread thread;
};

}  // namespace

TEST_CASE("posted functions run in order on the loop's thread, from however many threads") {
  RunningLoop running;
  std::vector<std::pair<int, int>> seen;  // the loop's thread only
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 1000; ++i) running.loop.post([&seen, t, i] { seen.emplace_back(t, i); });
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::promise<std::thread::id> done;
  running.loop.post([&] { done.set_value(std::this_thread::get_id()); });
  CHECK(done.get_future().get() == running.thread.get_id());
  running.loop.stop();
  running.thread.join();
  REQUIRE(seen.size() == 4000);
  std::vector<int> next(4);
  for (const auto& [t, i] : seen) REQUIRE(next[static_cast<std::size_t>(t)]++ == i);
}

TEST_CASE("after the end post() says no; what was posted before runs") {
  EventLoop loop;
  REQUIRE(loop.open().ok());
  int ran = 0;
  loop.stop();  // before it runs: it ends at once
  CHECK(loop.post([&] {
    ++ran;
    CHECK_FALSE(loop.post([&] { ++ran; }));
  }));
  std::thread([&] { loop.run(); }).join();
  CHECK(ran == 1);
  CHECK_FALSE(loop.post([&] { ++ran; }));
  CHECK(ran == 1);
}

TEST_CASE("an inbox hears of every message, though wake-ups are merged") {
  struct Counter final : EventLoop::Inbox {
    void on_wake() override {
      taken += waiting.exchange(0);
      if (taken == 4000 && !told) {
        told = true;  // a late wake-up finds nothing new
        all.set_value();
      }
    }
    std::atomic<int> waiting{0};
    int taken = 0;
    bool told = false;
    std::promise<void> all;
  };
  Counter inbox;
  EventLoop loop;
  REQUIRE(loop.open().ok());
  loop.add_inbox(inbox);
  std::thread runner([&] { loop.run(); });
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        inbox.waiting.fetch_add(1);
        loop.wake();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  // No wake() follows: the last message must have been seen by itself.
  CHECK(inbox.all.get_future().wait_for(60s) == std::future_status::ready);
  loop.stop();
  runner.join();
}

TEST_CASE("timers fire on the loop, at their time") {
  RunningLoop running;
  struct Alarm {
    TimerWheel::Timer timer;
    std::promise<TimePoint> fired;
    EventLoop* loop = nullptr;
  } alarm;
  alarm.loop = &running.loop;
  alarm.timer.owner = &alarm;
  alarm.timer.on_fire = [](TimerWheel::Timer& timer) {
    auto& self = *static_cast<Alarm*>(timer.owner);
    self.fired.set_value(self.loop->now());
  };
  std::promise<TimePoint> when;
  running.loop.post([&] {
    const TimePoint at = running.loop.now() + 5ms;
    when.set_value(at);
    running.loop.timers().schedule(alarm.timer, at);
  });
  CHECK(alarm.fired.get_future().get() >= when.get_future().get());
}

TEST_CASE("a turn's end may ask for another, and it comes without an event") {
  RunningLoop running;
  struct Ends final : EventLoop::TurnEnd {
    void on_turn_end() override {
      if (++count < 3) return loop->at_turn_end(*this);
      done.set_value();
    }
    EventLoop* loop = nullptr;
    int count = 0;
    std::promise<void> done;
  } ends;
  ends.loop = &running.loop;
  running.loop.post([&] { running.loop.at_turn_end(ends); });
  CHECK(ends.done.get_future().wait_for(60s) == std::future_status::ready);
}

TEST_CASE("descriptors: readiness comes, and stops after remove()") {
  RunningLoop running;
  int pipe_fds[2];
  REQUIRE(::pipe(pipe_fds) == 0);
  struct Reader final : EventLoop::FdHandler {
    void on_ready(uint32_t events) override {
      CHECK((events & EPOLLIN) != 0);
      char byte = 0;
      CHECK(::read(fd, &byte, 1) == 1);
      loop->remove(fd);
      got.set_value(byte);
    }
    EventLoop* loop = nullptr;
    int fd = -1;
    std::promise<char> got;
  } reader;
  reader.loop = &running.loop;
  reader.fd = pipe_fds[0];
  running.loop.post([&] { CHECK(running.loop.add(reader.fd, EPOLLIN, reader).ok()); });
  CHECK(::write(pipe_fds[1], "ab", 2) == 2);
  CHECK(reader.got.get_future().get() == 'a');
  std::promise<void> turn;  // a second event would set the promise again, and throw
  running.loop.post([&] { turn.set_value(); });
  turn.get_future().wait();
  CHECK_FALSE(running.loop.add(-1, EPOLLIN, reader).ok());
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
}

TEST_CASE("a loop that looks again before it sleeps misses nothing: messages, timers, the end") {
  std::atomic<bool> idle{true};
  EventLoop loop(5ms, [&] { return idle.load(); });
  REQUIRE(loop.open().ok());
  std::thread thread([&] { loop.run(); });
  const auto round_trip = [&] {
    std::promise<void> done;
    loop.post([&] { done.set_value(); });
    done.get_future().wait();
  };
  for (int i = 0; i < 200; ++i) round_trip();  // by now it looks
  idle = false;
  for (int i = 0; i < 50; ++i) round_trip();
  idle = true;
  for (int i = 0; i < 50; ++i) round_trip();
  std::promise<void> fired;
  TimerWheel::Timer timer;
  timer.owner = &fired;
  timer.on_fire = [](TimerWheel::Timer& t) {
    static_cast<std::promise<void>*>(t.owner)->set_value();
  };
  loop.post([&] { loop.timers().schedule(timer, loop.now() + 2ms); });
  fired.get_future().wait();
  loop.stop();
  thread.join();
  CHECK_FALSE(loop.post([] {}));
}

TEST_CASE("a turn in order: its ends, flushes, untrusted work, its descriptors, and what follows") {
  struct Ends final : EventLoop::TurnEnd, EventLoop::UntrustedWork, EventLoop::FdHandler {
    explicit Ends(EventLoop& on) : loop(on) {}
    void on_turn_end() override { seen += flushing ? 'f' : 'e', flushing = true; }
    void on_untrusted_turn() override {
      seen += 'u';
      if (++turns < 3) return loop.at_untrusted_turn(*this);
      flushing = false;
      loop.at_turn_end(*this);
    }
    void on_ready(uint32_t) override {
      seen += 'r';
      loop.remove(pipe[0], EventLoop::Lane::kUntrusted);
    }
    EventLoop& loop;
    std::string seen;
    bool flushing = false;
    int turns = 0;
    std::array<int, 2> pipe{};
  };
  EventLoop loop;
  REQUIRE(loop.open().ok());
  Ends ends(loop);
  REQUIRE(::pipe(ends.pipe.data()) == 0);
  REQUIRE(::write(ends.pipe[1], "x", 1) == 1);
  REQUIRE(loop.add(ends.pipe[0], EPOLLIN, ends, EventLoop::Lane::kUntrusted).ok());
  loop.at_flush(ends);
  loop.at_turn_end(ends);
  loop.at_untrusted_turn(ends);
  std::thread runner([&] { loop.run(); });
  std::promise<void> over;
  std::function<void()> look = [&] {
    if (ends.turns == 3) return over.set_value();
    loop.post(look);
  };
  loop.post(look);
  over.get_future().get();
  loop.stop();
  runner.join();
  CHECK(ends.seen == "efuruue");
  for (const int fd : ends.pipe) ::close(fd);
}

TEST_CASE("untrusted work goes on while others are protected, and a paused loop sleeps") {
  struct Work final : EventLoop::UntrustedWork {
    explicit Work(EventLoop& on) : loop(on) {}
    void on_untrusted_turn() override {
      const TimePoint until = Clock::now() + 1ms;
      while (Clock::now() < until) {
      }
      loop.protect();
      if (++turns == 20) return done.set_value();
      loop.at_untrusted_turn(*this);
    }
    EventLoop& loop;
    int turns = 0;
    std::promise<void> done;
  };
  EventLoop loop(
      0ns, [] { return true; }, 25);
  REQUIRE(loop.open().ok());
  Work work(loop);
  work.loop.at_untrusted_turn(work);
  const TimePoint began = Clock::now();
  std::thread runner([&] { loop.run(); });
  work.done.get_future().get();
  // A quarter of the time at most, but for what a slice may owe; never faster.
  CHECK(Clock::now() - began >= 30ms);
  loop.stop();
  runner.join();
}
