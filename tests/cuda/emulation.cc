#include "cuda/emulation.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <numeric>

namespace headrace::cuda::emulation {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kSharedLimit = 99 * 1024;  // what sm_86 and sm_89 give a block
constexpr std::size_t kFront = 64;               // bytes of the margin before a buffer
constexpr unsigned char kMargin = 0xc5;
constexpr unsigned char kPoison = 0x5b;  // 91 as int8, 6e16 as float

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
};

enum class Place { kRunnable, kMeeting, kLeft };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack;
  dim3 index;
  Place place = Place::kRunnable;
  Meeting meeting = Meeting::kNone;
  void* argument = nullptr;
  std::deque<std::vector<Copy>> groups;  // the last is open
};

// Buffers that cp.async may read: begin -> end.
std::map<const std::byte*, const std::byte*>& buffers() {
  static std::map<const std::byte*, const std::byte*> all;
  return all;
}

std::mt19937_64 generator{0};  // NOLINT: every run is the same
bool skewed = false;

struct Machine {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  int threads = 0;
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  alignas(128) unsigned char shared[kSharedLimit];
  std::size_t shared_bytes = 0;
  std::string error;

  bool runs() const { return error.empty(); }
};

Machine& machine() {
  static Machine one;
  return one;
}

std::string place_of(const Fiber& fiber) {
  return " (block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + ", thread " +
         std::to_string(fiber.index.x) + ")";
}

void blame(const Fiber& fiber, const std::string& what) {
  Machine& m = machine();
  if (m.runs()) m.error = what + place_of(fiber);
}

void begin_fiber() {
  Machine& m = machine();
  (*m.body)();
  Fiber& fiber = *m.current;
  for (const std::vector<Copy>& group : fiber.groups) {
    if (!group.empty()) blame(fiber, "a thread ends with copies under way");
  }
  fiber.place = Place::kLeft;
  swapcontext(&fiber.context, &m.scheduler);
}

void resume(Fiber& fiber) {
  Machine& m = machine();
  m.current = &fiber;
  threadIdx = fiber.index;
  swapcontext(&m.scheduler, &fiber.context);
  m.current = nullptr;
}

void do_shuffle(Fiber* warp) {
  std::uint32_t values[32];
  const int distance = static_cast<Shuffle*>(warp[0].argument)->distance;
  for (int lane = 0; lane < 32; ++lane) {
    const auto* shuffle = static_cast<Shuffle*>(warp[lane].argument);
    if (shuffle->distance != distance) blame(warp[lane], "lanes shuffle over different distances");
    values[lane] = shuffle->value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    static_cast<Shuffle*>(warp[lane].argument)->value = values[(lane ^ distance) & 31];
  }
}

void do_ldmatrix(Fiber* warp) {
  Machine& m = machine();
  const unsigned char* row[32];
  for (int lane = 0; lane < 32; ++lane) {
    row[lane] = static_cast<Ldmatrix*>(warp[lane].argument)->from;
    const std::ptrdiff_t offset = row[lane] - m.shared;
    if (offset < 0 || offset + 16 > static_cast<std::ptrdiff_t>(m.shared_bytes)) {
      return blame(warp[lane], "ldmatrix reads outside of the shared memory");
    }
    if (offset % 16 != 0) return blame(warp[lane], "ldmatrix from an address not aligned to 16");
  }
  for (int matrix = 0; matrix < 4; ++matrix) {
    // 32 banks of four bytes: eight rows of 16 bytes fill them once, if no two want the same.
    int rows_of_bank[8] = {};
    for (int i = 0; i < 8; ++i) ++rows_of_bank[(row[matrix * 8 + i] - m.shared) / 16 % 8];
    statistics.bank_conflicts +=
        static_cast<std::uint64_t>(*std::max_element(rows_of_bank, rows_of_bank + 8) - 1);
    for (int lane = 0; lane < 32; ++lane) {
      std::memcpy(&static_cast<Ldmatrix*>(warp[lane].argument)->to[matrix],
                  row[matrix * 8 + lane / 4] + lane % 4 * 4, 4);
    }
  }
}

std::int8_t byte_of(std::uint32_t word, int index) {
  return static_cast<std::int8_t>(word >> (8 * index) & 0xff);
}

// The fragment layout is the PTX ISA's for mma.m16n8k32 with 8-bit elements.
void do_mma(Fiber* warp) {
  std::int8_t a[16][32];
  std::int8_t b[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* mma = static_cast<Mma*>(warp[lane].argument);
    const int group = lane >> 2;
    const int within = lane & 3;
    for (int i = 0; i < 16; ++i) {
      const int row = i < 4 || (i >= 8 && i < 12) ? group : group + 8;
      const int column = within * 4 + (i & 3) + (i < 8 ? 0 : 16);
      a[row][column] = byte_of(mma->a[i / 4], i % 4);
    }
    for (int i = 0; i < 8; ++i) {
      const int row = within * 4 + (i & 3) + (i < 4 ? 0 : 16);
      b[row][group] = byte_of(mma->b[i / 4], i % 4);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* acc = static_cast<Mma*>(warp[lane].argument)->acc;
    for (int i = 0; i < 4; ++i) {
      const int row = (lane >> 2) + (i < 2 ? 0 : 8);
      const int column = (lane & 3) * 2 + (i & 1);
      std::int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += a[row][k] * b[k][column];
      acc[i] += sum;
    }
  }
  ++statistics.mma;
}

// Ends the meeting of a warp if all its lanes have come. False: it waits for a barrier, or has left.
bool settle_warp(Fiber* warp) {
  const Meeting meeting = warp[0].meeting;
  bool one_left = false;
  bool one_met = false;
  for (int lane = 0; lane < 32; ++lane) {
    one_left |= warp[lane].place == Place::kLeft;
    one_met |= warp[lane].place == Place::kMeeting;
  }
  if (!one_met) return false;
  for (int lane = 0; lane < 32; ++lane) {
    if (one_left || warp[lane].meeting != meeting) {
      blame(warp[lane], one_left ? "some lanes of a warp have left, others wait for them"
                                 : "lanes of a warp meet in different places");
      return false;
    }
  }
  switch (meeting) {
    case Meeting::kShuffle:
      do_shuffle(warp);
      break;
    case Meeting::kLdmatrix:
      do_ldmatrix(warp);
      break;
    case Meeting::kMma:
      do_mma(warp);
      break;
    default:
      return false;  // the block's barrier
  }
  for (int lane = 0; lane < 32; ++lane) warp[lane].place = Place::kRunnable;
  return true;
}

// Runs a warp until its lanes have met or left; false if nothing could move.
bool step_warp(Fiber* warp) {
  Machine& m = machine();
  bool moved = false;
  const auto turn = static_cast<int>(generator() % 32);
  for (int i = 0; i < 32 && m.runs(); ++i) {
    Fiber& fiber = warp[(i + turn) % 32];
    if (fiber.place != Place::kRunnable) continue;
    resume(fiber);
    moved = true;
  }
  return m.runs() && (settle_warp(warp) || moved);
}

void run_block() {
  Machine& m = machine();
  std::fill_n(m.shared, kSharedLimit, kPoison);
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[static_cast<std::size_t>(i)];
    if (!fiber.stack) fiber.stack = std::make_unique<unsigned char[]>(kStackBytes);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, begin_fiber, 0);
    fiber.index = dim3(static_cast<unsigned>(i), 0, 0);
    fiber.place = Place::kRunnable;
    fiber.groups.assign(1, {});
  }
  std::vector<int> order(static_cast<std::size_t>(m.threads / 32));
  std::iota(order.begin(), order.end(), 0);
  while (m.runs()) {
    std::shuffle(order.begin(), order.end(), generator);
    bool moved = false;
    for (const int warp : order) {
      Fiber* lanes = &m.fibers[static_cast<std::size_t>(warp) * 32];
      bool again = step_warp(lanes);
      moved |= again;
      while (skewed && again && m.runs()) again = step_warp(lanes);
    }
    if (moved || !m.runs()) continue;
    const auto end = m.fibers.begin() + m.threads;
    const auto waits = [](const Fiber& f) { return f.place == Place::kMeeting; };
    const auto waiting = std::count_if(m.fibers.begin(), end, waits);
    if (waiting == 0) return;
    if (waiting != m.threads) {
      return blame(*std::find_if(m.fibers.begin(), end, waits),
                   "some threads wait at a barrier that others never reach");
    }
    for (auto fiber = m.fibers.begin(); fiber != end; ++fiber) fiber->place = Place::kRunnable;
  }
}

}  // namespace

Memory::Memory(std::size_t bytes) : bytes_(bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t rounded = (bytes + 15) / 16 * 16;
  mapped_ = (kFront + rounded + page - 1) / page * page + page;
  base_ = static_cast<std::byte*>(
      mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  std::memset(base_, kMargin, mapped_ - page);
  if (mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) throw std::bad_alloc();
  data_ = base_ + mapped_ - page - rounded;
  buffers()[data_] = data_ + bytes_;
}

Memory::~Memory() {
  buffers().erase(data_);
  munmap(base_, mapped_);
}

bool Memory::margins_intact() const {
  const auto intact = [](std::byte byte) { return byte == std::byte{kMargin}; };
  const std::size_t rounded = (bytes_ + 15) / 16 * 16;
  return std::all_of(base_, data_, intact) && std::all_of(data_ + bytes_, data_ + rounded, intact);
}

void fail(const std::string& what) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  blame(fiber, what);
  for (;;) swapcontext(&fiber.context, &m.scheduler);  // never resumed
}

void meet(Meeting meeting, void* argument) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  fiber.place = Place::kMeeting;
  fiber.meeting = meeting;
  fiber.argument = argument;
  swapcontext(&fiber.context, &m.scheduler);
}

void queue_copy(void* shared, const void* global, int bytes) {
  Machine& m = machine();
  auto* to = static_cast<unsigned char*>(shared);
  const auto* from = static_cast<const unsigned char*>(global);
  const std::ptrdiff_t offset = to - m.shared;
  if (offset < 0 || offset + 16 > static_cast<std::ptrdiff_t>(m.shared_bytes)) {
    fail("cp.async writes outside of the shared memory");
  }
  if (offset % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) {
    fail("cp.async with an address that is not aligned to 16");
  }
  if (bytes < 0 || bytes > 16) fail("cp.async of more or less than 0..16 bytes");
  if (bytes > 0) {
    const auto* begin = reinterpret_cast<const std::byte*>(from);
    auto buffer = buffers().upper_bound(begin);
    if (buffer == buffers().begin() || (--buffer)->second < begin + bytes) {
      fail("cp.async reads outside of a buffer");
    }
  }
  std::memset(to, kPoison, 16);
  m.current->groups.back().push_back({to, from, bytes});
}

void commit_copies() { machine().current->groups.emplace_back(); }

void wait_copies(int pending) {
  auto& groups = machine().current->groups;
  while (groups.size() > static_cast<std::size_t>(pending) + 1) {  // the open one stays
    for (const Copy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    }
    groups.pop_front();
  }
}

unsigned char* shared_memory() { return machine().shared; }

void set_schedule(std::uint64_t seed) {
  generator.seed(seed);
  skewed = seed % 2 == 1;
}

const char* run(dim3 grid, int threads, std::size_t shared_bytes,
                const std::function<void()>& body) {
  Machine& m = machine();
  m.error.clear();
  ++statistics.launches;
  if (threads < 1 || threads > 1024 || threads % 32 != 0) return "blocks are of whole warps";
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535) return "no such grid";
  if (shared_bytes > kSharedLimit) return "more shared memory than a block may have";
  if (m.fibers.size() < static_cast<std::size_t>(threads)) {
    m.fibers.resize(static_cast<std::size_t>(threads));
  }
  m.threads = threads;
  m.body = &body;
  m.shared_bytes = shared_bytes;
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  std::vector<unsigned> blocks(std::size_t{grid.x} * grid.y);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), generator);
  for (const unsigned block : blocks) {
    blockIdx = dim3(block % grid.x, block / grid.x);
    run_block();
    if (!m.runs()) return m.error.c_str();
  }
  return nullptr;
}

}  // namespace headrace::cuda::emulation
