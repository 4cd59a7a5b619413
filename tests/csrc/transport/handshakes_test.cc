#include "transport/handshakes.h"

#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

using namespace headrace;
using namespace std::chrono_literals;

namespace {

// Time is what the test says.
struct Rig {
  explicit Rig(std::size_t bound = 100)
      : handshakes(
            wheel, [this] { return now; }, 5s, bound,
            [this](Handshakes::Entry& entry, bool crowded) {
              ended.push_back(*static_cast<std::string*>(entry.owner) +
                              (crowded ? " crowded" : ""));
            }) {}
  Handshakes::Entry& begin(const std::string& name) {
    names.push_back(std::make_unique<std::string>(name));
    entries.push_back(std::make_unique<Handshakes::Entry>(names.back().get()));
    handshakes.begin(*entries.back());
    return *entries.back();
  }
  void pass(Nanoseconds time) {
    now += time;
    wheel.advance(now);
  }
  TimePoint now{};
  TimerWheel wheel{TimePoint{}};
  std::vector<std::string> ended;
  std::vector<std::unique_ptr<std::string>> names;
  std::vector<std::unique_ptr<Handshakes::Entry>> entries;
  Handshakes handshakes;
};

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("a handshake that does not finish in its time is overdue, whatever else finishes") {
  Rig rig;
  rig.begin("a");
  rig.pass(1s);
  Handshakes::Entry& b = rig.begin("b");
  rig.begin("c");
  rig.pass(3999ms);
  CHECK(rig.ended.empty());
  rig.pass(2ms);
  CHECK(rig.ended == Names{"a"});
  rig.handshakes.finish(b);
  rig.handshakes.finish(b);
  CHECK(rig.handshakes.size() == 1);
  rig.pass(998ms);
  CHECK(rig.ended == Names{"a"});
  rig.pass(2ms);
  CHECK(rig.ended == Names{"a", "c"});
  CHECK(rig.handshakes.size() == 0);
  rig.begin("d");
  rig.pass(4999ms);
  CHECK(rig.ended.size() == 2);
  rig.pass(2ms);
  CHECK(rig.ended.size() == 3);
}

TEST_CASE("all that are overdue go at once") {
  Rig rig(2000);
  for (int i = 0; i < 1500; ++i) rig.begin("x");
  rig.pass(6s);
  CHECK(rig.ended.size() == 1500);
}

TEST_CASE("past the bound the oldest goes") {
  Rig rig(2);
  Handshakes::Entry& a = rig.begin("a");
  rig.begin("b");
  rig.begin("c");
  CHECK(rig.ended == Names{"a crowded"});
  rig.handshakes.finish(a);
  rig.begin("d");
  CHECK(rig.ended == Names{"a crowded", "b crowded"});
  CHECK(rig.handshakes.size() == 2);
}
