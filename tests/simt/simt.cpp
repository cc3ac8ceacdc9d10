// SPDX-License-Identifier: BSD-3-Clause
// One fiber per thread of a block, one block after another. A fiber runs until an operation makes it wait;
// then schedule() picks, at random, a warp and in it a lane.

// The checked longjmp refuses to leave for another stack, which is all that fibers do.
#undef _FORTIFY_SOURCE
#define _FORTIFY_SOURCE 0

#include "simt.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace fused_subpixel::simt {

Here here;

Options& options() {
  static Options instance;
  return instance;
}

namespace {

constexpr int kWarp = 32, kWarpgroup = 128, kMaxThreads = 1024, kMaxShared = 227 << 10, kAlignment = 128;
constexpr size_t kStack = 192 << 10;  // of a fiber; only what is used of it costs memory...
constexpr size_t kFiber = 256 << 10;  // ...after unreadable memory, for stacks grow down
constexpr size_t kGuard = 1 << 20;    // unreadable on either side of a buffer: strides go far astray

unsigned char* map_unreadable(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<unsigned char*>(p);
}
void make_usable(void* p, size_t bytes) {
  if (bytes && mprotect(p, bytes, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
}
size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

std::vector<const GuardedBuffer*>& buffers() {
  static std::vector<const GuardedBuffer*> instance;
  return instance;
}
const GuardedBuffer* buffer_near(const void* p) {
  for (const GuardedBuffer* b : buffers())
    if (b->near(p)) return b;
  return nullptr;
}
// NaN as float, half and bfloat16, yet not what buffers are filled with.
unsigned char canary(const unsigned char* p) { return reinterpret_cast<uintptr_t>(p) % 2 ? 0xff : 0xa5; }

// ---- the state of a launch --------------------------------------------------------------------------------
struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  bool valid;
  int group;
  Site site;
};

enum class State { kRunnable, kInCollective, kAtBarrier, kAtMbarrier, kEnded };

struct Thread;
struct BulkCopy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  const Thread* thread;
  Site site;
};
// An mbarrier. The eight bytes where it lies are its name only.
struct Mbarrier {
  int arrivals, missing;         // of a phase, and of this one
  int64_t announced;             // bytes of this phase
  std::vector<BulkCopy> copies;  // of this phase, which are performed when it ends
  uint32_t phase;                // as many have ended
  uint32_t seen_phase,
      seen_epoch;  // the latest that a thread has seen to end, and the first such thread's epoch
};

// A warp's part of a wgmma that is under way: 16 of the 64 rows. Its sums are in `saved`, not in the registers.
struct Wgmma {
  Multiply type;
  uint64_t a, b;
  bool accumulate;
  float* d[kWarp];  // the lanes' registers
  int group;
  Site site;
  std::vector<float> saved;  // [lane][register], empty if those of an earlier one are awaited
};
struct Issued {  // what the warps of a warpgroup must agree about
  uint64_t a, b;
  bool accumulate;
  Site site;
};

struct Thread {
  State state;
  Site site;                                  // the latest named operation
  void* arguments;                            // for the collective it waits in
  std::vector<Copy> copies;                   // issued, in this order, and not waited for
  int groups;                                 // committed so far
  uint32_t epoch;                             // block barriers passed, by all blocks so far
  uint32_t warp_epoch;                        // warp barriers passed
  uint32_t fences;                            // of the asynchronous proxy, so far
  std::map<const Mbarrier*, uint32_t> ended;  // phases that it has waited for
  std::array<std::array<uint32_t, cuda::kMarks>, cuda::kMarks> marks;  // passed, see Statistics
  uint64_t mark_count;
  int mark;              // the latest
  bool started = false;  // its fiber waits in registers, else it is to be made
  jmp_buf registers;
};

struct Warp {
  int lanes, runnable;
  int arrived;                 // lanes that wait in a collective...
  const Thread* first;         // ...and the first one of them
  Thread* thread;              // of lane 0
  unsigned char order[kWarp];  // in which its lanes run
  std::vector<Wgmma> wgmmas;   // issued, in this order, and not waited for
  int groups;                  // of these, committed so far
  size_t issued;
  bool registers_fenced;
};

// How a word of shared memory was last read or written, see touch().
struct Access {
  const Thread* thread = nullptr;
  Site site;
  uint32_t epoch = 0, warp_epoch;
  bool by_other_warps, by_other_lanes;  // too, in the same epochs
  uint32_t fences;                      // that its thread had made
};
struct Word {
  Access read, write;
  bool awaits_copy = false, is_mbarrier = false;
  uint16_t readers = 0;            // wgmmas of warps that are under way
  const Mbarrier* with = nullptr;  // written by a bulk copy...
  uint32_t phase;                  // ...in this phase
};

struct Machine {
  unsigned char* stacks = nullptr;
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / kWarp];
  int thread_count, warp_count, ended, at_barrier;
  const Thread* first_at_barrier;
  const GuardedBuffer* shared;
  std::vector<Word> words;  // of shared memory
  uint32_t epoch;           // in which the block began
  std::map<const void*, Mbarrier> mbarriers;
  std::vector<Issued> issued[kMaxThreads / kWarpgroup];
  const std::function<void()>* body;
  Thread* current = nullptr;  // whose fiber runs, or none
  bool preempted;             // it gave way, although it could go on
  std::string error;          // why the launch ends early
  uint64_t random;
  uint32_t preemption;  // how likely a thread gives way, of 2^16
  jmp_buf scheduler;
  sigjmp_buf on_signal;
  pthread_t host;
  int signal;
  const void* fault;
  bool busy = false;
} m;

uint32_t random_bits() {  // splitmix64
  uint64_t z = m.random += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((z ^ z >> 31) >> 32);
}
uint32_t random_below(uint32_t n) { return static_cast<uint32_t>(uint64_t{random_bits()} * n >> 32); }
bool chance(uint32_t of_65536) { return of_65536 && random_bits() >> 16 < of_65536; }
template <class T>
void shuffle_order(T* p, int n) {
  for (int i = n - 1; i > 0; --i) std::swap(p[i], p[random_below(i + 1)]);
}

Warp& warp_of(const Thread& t) { return m.warps[(&t - m.threads) / kWarp]; }
unsigned char* stack_of(const Thread& t) { return m.stacks + (&t - m.threads + 1) * kFiber - kStack; }
bool on_a_stack(const void* p) { return p >= m.stacks && p < m.stacks + kMaxThreads * kFiber; }

Word* word_at(const void* p) {
  return m.words.data() + (static_cast<const unsigned char*>(p) - m.shared->data()) / 4;
}

// ---- errors -----------------------------------------------------------------------------------------------
std::string str(const Site& site) {
  const char* name = std::strrchr(site.file, '/');
  return std::string(site.operation) + " (" + (name ? name + 1 : site.file) + ":" +
         std::to_string(site.line) + ")";
}
std::string block_name() {
  return "block (" + std::to_string(here.block_x) + ", " + std::to_string(here.block_y) + ")";
}
std::string thread_name(const Thread& t) {
  const int i = static_cast<int>(&t - m.threads);
  return block_name() + ", warp " + std::to_string(i / kWarp) + ", lane " + std::to_string(i % kWarp) +
         " (thread " + std::to_string(i) + ")";
}

[[noreturn]] void fail(const std::string& what) {
  if (!m.current) throw std::runtime_error(what);
  throw std::runtime_error(thread_name(*m.current) + ", " + str(m.current->site) + ": " + what);
}

std::string activity(const Thread& t) {
  if (t.state == State::kEnded) return "ended";
  return (t.state == State::kRunnable ? "can run after " : "waiting in ") + str(t.site);
}
// "warp 0: lanes 0-15 waiting in sync_threads (a.cuh:7), lanes 16-31 ended"
std::string activities(const Warp& w) {
  std::string text = "warp " + std::to_string(&w - m.warps) + ":";
  for (int l = 0, end; l < w.lanes; l = end) {
    const std::string doing = activity(w.thread[l]);
    for (end = l + 1; end < w.lanes && activity(w.thread[end]) == doing;) ++end;
    text += (l ? ", lanes " : " lanes ") + std::to_string(l);
    text += (end == l + 1 ? "" : "-" + std::to_string(end - 1)) + " " + doing;
  }
  return text;
}
std::string deadlock() {
  std::string text = block_name() + " is stuck";
  for (int w = 0; w < m.warp_count; ++w) text += "; " + activities(m.warps[w]);
  return text;
}

void on_signal(int signal, siginfo_t* info, void*) {
  if (!m.current || !pthread_equal(pthread_self(), m.host)) {  // not a kernel's doing: die of it
    ::signal(signal, SIG_DFL);
    return;
  }
  m.signal = signal, m.fault = info->si_addr;
  siglongjmp(m.on_signal, 1);
}
std::string fault() {
  const Thread& t = *m.current;
  std::string text = thread_name(t) + ": ";
  if (m.signal == SIGFPE) return text + "integer division by zero after " + str(t.site);
  if (m.signal == SIGILL || m.signal == SIGTRAP) return text + "trap after " + str(t.site);
  const auto* p = static_cast<const unsigned char*>(m.fault);
  const GuardedBuffer* buffer = buffer_near(p);
  char address[32];
  snprintf(address, sizeof(address), "%p", m.fault);
  text += std::string("access to ") + address + " in or after " + str(t.site) + ", ";
  if (buffer) return text + buffer->distance(p);
  if (on_a_stack(p)) return text + "past the end of a thread's stack (local arrays too large, or overrun)";
  return text + "near no known buffer";
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}, kSignalCount = 5;
class CatchSignals {
 public:
  CatchSignals() : stack_(new char[kSize]) {
    stack_t mine = {};
    mine.ss_sp = stack_.get(), mine.ss_size = kSize;
    sigaltstack(&mine, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &old_[i]);
  }
  ~CatchSignals() {
    for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr size_t kSize = 64 << 10;
  std::unique_ptr<char[]> stack_;
  stack_t old_stack_;
  struct sigaction old_[kSignalCount];
};

// ---- fibers -----------------------------------------------------------------------------------------------
// makecontext makes a fiber, but it is _longjmp that switches: it needs no system call for the signal mask.
[[gnu::noinline]] void leave_fiber() {
  if (_setjmp(m.current->registers) == 0) _longjmp(m.scheduler, 1);
}

void fiber_main() {
  for (;;) {  // once per block
    try {
      (*m.body)();
      Thread& t = *m.current;
      if (!t.copies.empty())
        t.site = t.copies[0].site, fail("thread ended with asynchronous copies under way");
      if (!warp_of(t).wgmmas.empty())
        t.site = warp_of(t).wgmmas[0].site, fail("thread ended with wgmmas under way");
    } catch (const std::exception& e) {
      m.error = e.what();
    }
    m.current->state = State::kEnded;
    --warp_of(*m.current).runnable, ++m.ended;
    leave_fiber();
  }
}

void make_fiber(Thread& t) {
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(t);
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  make_usable(stack_of(t), kStack);
  makecontext(&context, fiber_main, 0);
  t.started = true;
  setcontext(&context);
}

[[gnu::noinline]] void enter_fiber(Thread& t) {
  m.current = &t;
  here.thread = static_cast<int>(&t - m.threads);
  if (_setjmp(m.scheduler) == 0) {
    if (t.started) _longjmp(t.registers, 1);
    make_fiber(t);
  }
  m.current = nullptr;
}

void schedule() {
  while (m.ended < m.thread_count) {
    int tries = m.warp_count;
    uint32_t pick = random_below(m.warp_count);
    while (tries && !m.warps[pick].runnable) --tries, pick = (pick + 1) % m.warp_count;
    if (!tries) {
      m.error = deadlock();
      return;
    }
    Warp& w = m.warps[pick];
    m.preempted = false;
    do {
      shuffle_order(w.order, w.lanes);
      for (int i = 0; i < w.lanes && !m.preempted; ++i) {
        Thread& t = w.thread[w.order[i]];
        if (t.state != State::kRunnable) continue;
        ++options().statistics.switches;
        enter_fiber(t);
        if (!m.error.empty()) return;
      }
    } while (w.runnable && !m.preempted && !chance(m.preemption));
  }
}

void run_block() {
  // Float16 of all blocks let warps run as far ahead as they can; the others interleave, more or less finely.
  const uint32_t preemption[] = {0, 0, 0x100, 0x2000};
  m.preemption = preemption[random_below(4)];
  m.ended = m.at_barrier = 0;
  std::memset(m.shared->data(), 0xff, m.shared->size());
  for (int i = 0; i < m.thread_count; ++i) {
    Thread& t = m.threads[i];
    t.state = State::kRunnable, t.site = {"the start", "kernel", 0}, t.copies.clear(), t.groups = 0;
    t.epoch = m.epoch, t.warp_epoch = 0, t.fences = 0, t.ended.clear();
    t.marks = {}, t.mark_count = 0, t.mark = 0;
  }
  if (!m.mbarriers.empty())
    for (Word& w : m.words) w.with = nullptr;
  m.mbarriers.clear();
  for (auto& issued : m.issued) issued.clear();
  for (int i = 0; i < m.warp_count; ++i) {
    Warp& w = m.warps[i];
    w.lanes = w.runnable = std::min(kWarp, m.thread_count - i * kWarp);
    w.arrived = 0, w.thread = m.threads + i * kWarp;
    w.wgmmas.clear(), w.groups = 0, w.issued = 0, w.registers_fenced = false;
    std::iota(w.order, w.order + kWarp, 0);
  }
  if (sigsetjmp(m.on_signal, 1) == 0) {
    schedule();
  } else {
    m.error = fault();
    m.current = nullptr;
  }
  if (!m.error.empty()) throw std::runtime_error(m.error);
  try {
    m.shared->check();
  } catch (const std::exception& e) {
    throw std::runtime_error(block_name() + ": " + e.what());
  }
  for (const auto& [at, barrier] : m.mbarriers) {
    if (!barrier.copies.empty())
      throw std::runtime_error(block_name() + " ended with bulk copies under way, " +
                               str(barrier.copies[0].site));
    for (Word* w = word_at(at); w < word_at(at) + 2; ++w) w->is_mbarrier = false;
  }
  for (int i = 0; i < m.warp_count; ++i)
    if (m.warps[i].issued != m.issued[i * kWarp / kWarpgroup].size())
      throw std::runtime_error(block_name() + ", warp " + std::to_string(i) +
                               ": not all wgmmas of its warpgroup");
  m.epoch = m.threads[0].epoch + 1;
  Statistics& statistics = options().statistics;
  for (int i = 0; i < m.thread_count; ++i) {
    Thread& t = m.threads[i];
    if (t.mark_count <= statistics.mark_count) continue;
    ++t.marks[t.mark][0];
    statistics.marks = t.marks, statistics.mark_count = t.mark_count;
  }
  ++statistics.blocks;
}

// ---- what operations share --------------------------------------------------------------------------------
// Every operation is a place where other threads may come in between.
Thread& begin(const Site& site) {
  if (!m.current) throw std::runtime_error(std::string(site.operation) + " outside of a launch");
  m.current->site = site;
  if (chance(m.preemption)) m.preempted = true, leave_fiber();
  return *m.current;
}

void check_aligned(const void* p, int bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) {
    char text[64];
    snprintf(text, sizeof(text), "misaligned address %p, not a multiple of %d", p, bytes);
    fail(text);
  }
}
void check_access(const void* p, int bytes) {
  check_aligned(p, bytes);
  const GuardedBuffer* buffer = buffer_near(p);
  if (buffer && !buffer->holds(p, bytes)) fail("out of bounds, " + buffer->distance(p));
}
void check_shared(const void* p, int bytes) {
  check_access(p, bytes);
  if (!m.shared->holds(p, bytes)) fail("the address does not lie in shared memory");
}

// What a bulk copy wrote is seen by those that waited for its mbarrier, and by all after a barrier that follows.
bool has_seen(const Thread& t, const Word& w) {
  const auto own = t.ended.find(w.with);
  if (own != t.ended.end() && own->second > w.phase) return true;
  return w.with->seen_phase > w.phase && w.with->seen_epoch < t.epoch;
}

// Copy engine and wgmma see what threads wrote only after these threads' fence.
void check_fenced(const void* p, int bytes) {
  if (!options().check_races) return;
  for (const Word *w = word_at(p), *end = w + bytes / 4; w < end; ++w)
    if (!w->with && w->write.epoch >= m.epoch && w->write.fences == w->write.thread->fences)
      fail("no fence_async_proxy since it was written by " + thread_name(*w->write.thread) + ", " +
           str(w->write.site));
}

// Two threads that use the same word, one of them to write it, must have a barrier in between, be it that of
// their warp, whichever of them came first this time. Shuffles, ldmatrix and mma are none: lanes meet there,
// but what they wrote need not be seen. Only named operations are checked.
void touch(const Thread& t, const void* p, int bytes, bool write) {
  if (!options().check_races || !m.shared->holds(p, bytes)) return;
  const Warp& warp = warp_of(t);
  const auto conflicts = [&](const Access& a) {
    if (a.epoch != t.epoch) return false;
    if (a.by_other_warps || &warp_of(*a.thread) != &warp) return true;
    return a.warp_epoch == t.warp_epoch && (a.by_other_lanes || a.thread != &t);
  };
  for (Word *word = word_at(p), *end = word + bytes / 4; word < end; ++word) {
    Word& w = *word;
    if (w.awaits_copy)
      fail("the address awaits a copy by " + thread_name(*w.write.thread) + ", " + str(w.write.site));
    if (write && w.readers) fail("a wgmma that is under way reads the address");
    if (write && w.is_mbarrier) fail("the address holds an mbarrier");
    if (w.with && !has_seen(t, w))
      fail("no wait for the mbarrier of the copy that wrote it, " + str(w.write.site));
    for (const Access* a : {&w.write, &w.read})
      if ((write || a == &w.write) && !(w.with && a == &w.write) && conflicts(*a))
        fail(std::string("race, no barrier since it was ") + (a == &w.write ? "written" : "read") + " by " +
             thread_name(*a->thread) + ", " + str(a->site) +
             (a->by_other_warps || a->by_other_lanes ? ", and by others" : ""));
    Access& a = write ? w.write : w.read;
    const bool same_epoch = a.epoch == t.epoch, same_warp = same_epoch && &warp_of(*a.thread) == &warp;
    a.by_other_warps = same_epoch && (a.by_other_warps || !same_warp);
    a.by_other_lanes = same_warp && a.warp_epoch == t.warp_epoch && (a.by_other_lanes || a.thread != &t);
    a.thread = &t, a.site = t.site, a.epoch = t.epoch, a.warp_epoch = t.warp_epoch, a.fences = t.fences;
    if (write) w.with = nullptr;
  }
}
void set_awaits_copy(const void* p, int bytes, bool awaits) {
  for (Word *w = word_at(p), *end = w + bytes / 4; w < end; ++w) w->awaits_copy = awaits;
}

void wait(Thread& t, State state) {
  t.state = state;
  --warp_of(t).runnable;
  leave_fiber();
}

void check_same(const Thread& first, const Thread& t) {
  const Site &a = first.site, &b = t.site;
  if (a.line != b.line || (a.operation != b.operation && std::strcmp(a.operation, b.operation)) ||
      (a.file != b.file && std::strcmp(a.file, b.file)))
    fail("divergence, " + thread_name(first) + " waits in " + str(a));
}

// All lanes of a warp meet; the last one to come does the work of all, complete(arguments of lanes 0...31).
template <class Arguments, class Complete>
void collective(Thread& t, Arguments& arguments, Complete complete) {
  Warp& w = warp_of(t);
  if (w.lanes < kWarp) fail("a collective in a warp of " + std::to_string(w.lanes) + " lanes");
  if (w.arrived++ == 0) w.first = &t;
  check_same(*w.first, t);
  t.arguments = &arguments;
  if (w.arrived < kWarp) return wait(t, State::kInCollective);
  Arguments* all[kWarp];
  for (int l = 0; l < kWarp; ++l) all[l] = static_cast<Arguments*>(w.thread[l].arguments);
  complete(all);
  ++options().statistics.collectives;
  w.arrived = 0, w.runnable = kWarp;
  for (int l = 0; l < kWarp; ++l) w.thread[l].state = State::kRunnable;
  leave_fiber();
}

float half_to_float(uint32_t bits) { return cuda::widen(Float16{static_cast<uint16_t>(bits)}); }

}  // namespace

// ---- operations -------------------------------------------------------------------------------------------
void pass_mark(cuda::Mark mark) {  // no other thread may run here: seeds repeat the runs that they always did
  if (!m.current) throw std::runtime_error("a mark outside of a launch");
  Thread& t = *m.current;
  ++t.marks[t.mark][static_cast<int>(mark)], ++t.mark_count;
  t.mark = static_cast<int>(mark);
}

namespace {
bool skipped(const Site& site) {
  const std::string& end = options().skipped_file;
  if (site.line != options().skipped_line || end.empty()) return false;
  const std::string file = site.file;
  return file.size() >= end.size() && file.compare(file.size() - end.size(), end.size(), end) == 0;
}
}  // namespace

void block_barrier(Site site) {
  if (skipped(site)) return;
  Thread& t = begin(site);
  if (m.at_barrier++ == 0) m.first_at_barrier = &t;
  check_same(*m.first_at_barrier, t);
  if (m.at_barrier < m.thread_count) {
    wait(t, State::kAtBarrier);
    ++t.epoch;
    return;
  }
  for (int i = 0; i < m.thread_count; ++i) m.threads[i].state = State::kRunnable;
  for (int i = 0; i < m.warp_count; ++i) m.warps[i].runnable = m.warps[i].lanes;
  m.at_barrier = 0;
  ++options().statistics.barriers;
  m.preempted = true;  // who came last need not go on first
  leave_fiber();
  ++t.epoch;
}

void warp_barrier(Site site) {
  Thread& t = begin(site);
  int none;
  collective(t, none, [](int**) {});
  ++t.warp_epoch;
}

void exchange(void* to, const void* from, int bytes, int mask, Site site) {
  struct Arguments {
    void* to;
    const void* from;
    int mask;
  } mine = {to, from, mask};
  Thread& t = begin(site);
  if (mask < 0 || mask >= kWarp) fail("no lane is this one's index ^ " + std::to_string(mask));
  collective(t, mine, [bytes](Arguments** all) {
    for (int l = 0; l < kWarp; ++l) std::memcpy(all[l]->to, all[l ^ all[l]->mask]->from, bytes);
  });
}

void load(void* to, const void* from, int bytes, Site site) {
  Thread& t = begin(site);
  check_access(from, bytes);
  touch(t, from, bytes, false);
  std::memcpy(to, from, bytes);
}

void store(void* to, const void* from, int bytes, Site site) {
  Thread& t = begin(site);
  check_access(to, bytes);
  touch(t, to, bytes, true);
  std::memcpy(to, from, bytes);
}

// Of all that hardware may do: the destination is lost at once, and the source is read as late as can be.
void copy(void* to, const void* from, int bytes, bool valid, Site site) {
  Thread& t = begin(site);
  check_shared(to, bytes);
  check_aligned(from, bytes);  // be it read or not
  if (valid) check_access(from, bytes);
  if (valid && (m.shared->near(from) || on_a_stack(from))) fail("the source is not in global memory");
  auto* p = static_cast<unsigned char*>(to);
  for (const Copy& c : t.copies)
    if (p < c.to + c.bytes && c.to < p + bytes)
      fail("the destination still awaits another copy, " + str(c.site));
  touch(t, to, bytes, true);
  set_awaits_copy(to, bytes, options().check_races);
  std::memset(p, 0xff, bytes);
  t.copies.push_back({p, static_cast<const unsigned char*>(from), bytes, valid, t.groups, site});
  ++options().statistics.copies;
}

void copy_commit(Site site) { ++begin(site).groups; }

void copy_wait(int pending, Site site) {
  if (skipped(site)) return;
  Thread& t = begin(site);
  auto c = t.copies.begin();
  for (; c != t.copies.end() && c->group < t.groups - pending; ++c) {
    t.site = c->site;  // for the error, if `from` cannot be read
    set_awaits_copy(c->to, c->bytes, false);
    touch(t, c->to, c->bytes, true);
    if (c->valid)
      std::memcpy(c->to, c->from, c->bytes);
    else
      std::memset(c->to, 0, c->bytes);
  }
  t.copies.erase(t.copies.begin(), c);
  t.site = site;
}

void load_matrices(uint32_t* r, const void* row, bool transposed, Site site) {
  struct Arguments {
    uint32_t* r;
    const unsigned char* row;
  } mine = {r, static_cast<const unsigned char*>(row)};
  Thread& self = begin(site);
  check_shared(row, 16);
  touch(self, row, 16, false);
  collective(self, mine, [transposed](Arguments** all) {
    uint16_t e[4][8][8];
    for (int l = 0; l < kWarp; ++l) std::memcpy(e[l / 8][l % 8], all[l]->row, 16);
    for (int l = 0; l < kWarp; ++l) {
      const int g = l / 4, t = l % 4;
      for (int q = 0; q < 4; ++q) {
        const uint32_t low = transposed ? e[q][2 * t][g] : e[q][g][2 * t];
        const uint32_t high = transposed ? e[q][2 * t + 1][g] : e[q][g][2 * t + 1];
        all[l]->r[q] = low | high << 16;
      }
    }
  });
}

void store_matrices(void* row, const uint32_t* r, Site site) {
  struct Arguments {
    unsigned char* row;
    const uint32_t* r;
  } mine = {static_cast<unsigned char*>(row), r};
  Thread& self = begin(site);
  check_shared(row, 16);
  touch(self, row, 16, true);
  collective(self, mine, [](Arguments** all) {
    for (int l = 0; l < kWarp; ++l)
      for (int q = 0; q < 4; ++q)  // two elements of row l / 4 of matrix q
        std::memcpy(all[q * 8 + l / 4]->row + l % 4 * 4, all[l]->r + q, 4);
  });
}

// d = float(d + a b) for k = 0, 1, ...: products are exact, and every partial sum is rounded to float.
// Hardware sums in another order, and rounds less well, so results agree exactly only where sums are exact.
void multiply(Multiply type, float* d, const uint32_t* a, const uint32_t* b, Site site) {
  struct Arguments {
    float* d;
    const uint32_t *a, *b;
  } mine = {d, a, b};
  collective(begin(site), mine, [type](Arguments** all) {
    ++options().statistics.mmas;
    const bool wide = type == Multiply::kTF32;
    const int steps = wide ? 8 : 16, per_register = wide ? 1 : 2;
    const auto element = [type](uint32_t bits, int i) {
      switch (type) {
        case Multiply::kHalf: return half_to_float(bits >> 16 * i);
        case Multiply::kBFloat16: return cuda::float_of(bits >> 16 * i << 16);
        default: return cuda::float_of(bits & 0xffffe000u);  // hardware does not look at the other bits
      }
    };
    double left[16][16], right[16][8];  // [row][k], [k][column]
    float sum[16][8];
    for (int l = 0; l < kWarp; ++l) {
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < per_register; ++i) {
        const int k = per_register * t + i, k2 = k + steps / 2;
        left[g][k] = element(all[l]->a[0], i), left[g + 8][k] = element(all[l]->a[1], i);
        left[g][k2] = element(all[l]->a[2], i), left[g + 8][k2] = element(all[l]->a[3], i);
        right[k][g] = element(all[l]->b[0], i), right[k2][g] = element(all[l]->b[1], i);
      }
      for (int i = 0; i < 4; ++i) sum[g + i / 2 * 8][2 * t + i % 2] = all[l]->d[i];
    }
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < steps; ++k)
        for (int n = 0; n < 8; ++n)
          sum[row][n] = static_cast<float>(sum[row][n] + left[row][k] * right[k][n]);
    for (int l = 0; l < kWarp; ++l)
      for (int i = 0; i < 4; ++i) all[l]->d[i] = sum[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
  });
}

// ---- mbarriers and bulk copies ----------------------------------------------------------------------------
namespace {
Mbarrier& mbarrier_at(Thread& t, uint64_t* barrier) {
  check_shared(barrier, 8);
  touch(t, barrier, 8, false);
  const auto found = m.mbarriers.find(barrier);
  if (found == m.mbarriers.end()) fail("there is no mbarrier at this address");
  return found->second;
}

// Whoever waits for an mbarrier looks again.
void wake_waiters() {
  for (int i = 0; i < m.thread_count; ++i) {
    if (m.threads[i].state != State::kAtMbarrier) continue;
    m.threads[i].state = State::kRunnable, ++warp_of(m.threads[i]).runnable;
  }
}

// Performs the copies of a phase if nothing lacks that could end it.
bool end_phase(Mbarrier& b) {
  if (b.missing) return false;
  int64_t bytes = 0;
  for (const BulkCopy& c : b.copies) bytes += c.bytes;
  if (bytes > b.announced) fail("more bytes are copied than the mbarrier's arrivals announced");
  if (bytes < b.announced) return false;
  for (const BulkCopy& c : b.copies) {
    std::memcpy(c.to, c.from, c.bytes);
    set_awaits_copy(c.to, c.bytes, false);
    for (Word *w = word_at(c.to), *end = w + c.bytes / 4; w < end; ++w) w->with = &b, w->phase = b.phase;
  }
  b.copies.clear(), b.missing = b.arrivals, b.announced = 0, ++b.phase;
  wake_waiters();
  return true;
}
}  // namespace

void barrier_init(uint64_t* barrier, int arrivals, Site site) {
  Thread& t = begin(site);
  check_shared(barrier, 8);
  if (arrivals < 1) fail("an mbarrier of no arrivals");
  touch(t, barrier, 8, true);
  m.mbarriers[barrier] = {arrivals, arrivals, 0, {}, 0, 0, 0};
  for (Word* w = word_at(barrier); w < word_at(barrier) + 2; ++w) w->is_mbarrier = true;
}

void barrier_arrive(uint64_t* barrier, int bytes, Site site) {
  Mbarrier& b = mbarrier_at(begin(site), barrier);
  if (b.missing-- == 0) fail("one arrival too many");
  b.announced += bytes;
  if (chance(0x8000)) end_phase(b);
  wake_waiters();
}

// The copies come as late as can be, with the first thread that cannot go on without them; or at any time.
void barrier_wait(uint64_t* barrier, int parity, Site site) {
  if (skipped(site)) return;
  Thread& t = begin(site);
  Mbarrier& b = mbarrier_at(t, barrier);
  if (parity != 0 && parity != 1) fail("a parity is 0 or 1");
  while (static_cast<int>(b.phase % 2) == parity && !end_phase(b)) wait(t, State::kAtMbarrier);
  t.ended[&b] = b.phase;
  if (b.seen_phase < b.phase) b.seen_phase = b.phase, b.seen_epoch = t.epoch;
}

void bulk_copy(void* to, const void* from, int bytes, uint64_t* barrier, Site site) {
  Thread& t = begin(site);
  Mbarrier& b = mbarrier_at(t, barrier);
  if (bytes <= 0 || bytes % 16) fail("the number of bytes is no multiple of 16");
  check_aligned(to, 16), check_aligned(from, 16);
  if (!m.shared->holds(to, bytes)) fail("the destination does not lie in shared memory");
  const GuardedBuffer* buffer = buffer_near(from);
  if (!buffer || buffer == m.shared) fail("the source is not in global memory");
  if (!buffer->holds(from, bytes)) fail("out of bounds, " + buffer->distance(from));
  check_fenced(barrier, 8), check_fenced(to, bytes);
  touch(t, to, bytes, true);
  set_awaits_copy(to, bytes, options().check_races);
  std::memset(to, 0xff, bytes);
  b.copies.push_back(
      {static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, &t, site});
  ++options().statistics.copies;
  if (chance(0x8000)) end_phase(b);
  wake_waiters();
}

void fence_async_proxy(Site site) {
  if (!skipped(site)) ++begin(site).fences;
}

// ---- products of a warpgroup ------------------------------------------------------------------------------
namespace {
// The 128 bytes of eight rows from `row` on, `second` or first 16 bytes along k, of an operand.
const unsigned char* core_matrix(uint64_t operand, int row, int second) {
  const auto field = [operand](int bit) { return static_cast<ptrdiff_t>(operand >> bit & 0x3fff) * 16; };
  return m.shared->data() + field(0) + row / 8 * field(32) + second * field(16);
}
// All core matrices that a warp's part of a wgmma reads.
template <class Visit>
void for_operands(const Warp& w, const Wgmma& g, Visit visit) {
  const int first = static_cast<int>(&w - m.warps) % (kWarpgroup / kWarp) * 16;
  for (int second = 0; second < 2; ++second) {
    for (int row = first; row < first + 16; row += 8) visit(core_matrix(g.a, row, second));
    for (int row = 0; row < cuda::kWgmmaN; row += 8) visit(core_matrix(g.b, row, second));
  }
}
constexpr int kCoreBytes = 128;
constexpr uint32_t kPoison = 0xffffffffu;

// The sums of a warp's part, g.saved, as multiply() does them.
void sum_up(const Warp& w, Wgmma& g) {
  constexpr int kColumns = cuda::kWgmmaN;
  static double left[16][16], right[16][kColumns];  // [row][k], [k][column]
  const int first = static_cast<int>(&w - m.warps) % (kWarpgroup / kWarp) * 16;
  const bool wide = g.type == Multiply::kTF32;
  const int steps = wide ? 8 : 16;
  const auto element = [&](uint64_t operand, int row, int k) -> double {
    const int half = steps / 2;  // lies in one core matrix
    const unsigned char* at = core_matrix(operand, row, k / half) + row % 8 * 16 + k % half * (16 / half);
    uint32_t bits = 0;
    std::memcpy(&bits, at, static_cast<size_t>(16 / half));
    if (wide) return cuda::float_of(bits & 0xffffe000u);  // hardware does not look at the other bits
    return g.type == Multiply::kHalf ? half_to_float(bits) : cuda::float_of(bits << 16);
  };
  for (int k = 0; k < steps; ++k) {
    for (int row = 0; row < 16; ++row) left[row][k] = element(g.a, first + row, k);
    for (int n = 0; n < kColumns; ++n) right[k][n] = element(g.b, n, k);
  }
  for (int row = 0; row < 16; ++row) {
    float sum[kColumns];
    // column n of row r is register n / 8 * 4 + r / 8 * 2 + n % 2 of lane r % 8 * 4 + n % 8 / 2
    const auto at = [&](int n) -> float& {
      return g.saved[(row % 8 * 4 + n % 8 / 2) * cuda::kWgmmaAcc + n / 8 * 4 + row / 8 * 2 + n % 2];
    };
    for (int n = 0; n < kColumns; ++n) sum[n] = g.accumulate ? at(n) : 0;
    for (int k = 0; k < steps; ++k)
      for (int n = 0; n < kColumns; ++n) sum[n] = static_cast<float>(sum[n] + left[row][k] * right[k][n]);
    for (int n = 0; n < kColumns; ++n) at(n) = sum[n];
  }
}
}  // namespace

void group_fence(Site site) {
  if (skipped(site)) return;
  Thread& t = begin(site);
  int none;
  collective(t, none, [&t](int**) { warp_of(t).registers_fenced = true; });
}

void group_commit(Site site) {
  if (skipped(site)) return;
  Thread& t = begin(site);
  int none;
  collective(t, none, [&t](int**) { ++warp_of(t).groups; });
}

// Issued by each warp for itself, as it comes; the warpgroup's four must issue the same.
void group_multiply(Multiply type, float* d, uint64_t a, uint64_t b, bool accumulate, Site site) {
  struct Arguments {
    float* d;
    uint64_t a, b;
    bool accumulate;
  } mine = {d, a, b, accumulate};
  Thread& t = begin(site);
  collective(t, mine, [&t, type, site](Arguments** all) {
    Warp& w = warp_of(t);
    const Arguments& x = *all[0];
    Wgmma g{type, x.a, x.b, x.accumulate, {}, w.groups, site, {}};
    for (int l = 0; l < kWarp; ++l) {
      if (all[l]->a != x.a || all[l]->b != x.b || all[l]->accumulate != x.accumulate)
        fail("lanes disagree about the operands");
      g.d[l] = all[l]->d;
    }
    const int group = static_cast<int>(&w - m.warps) * kWarp / kWarpgroup;
    if ((group + 1) * kWarpgroup > m.thread_count) fail("there are not four warps in the warpgroup");
    std::vector<Issued>& issued = m.issued[group];
    if (w.issued == issued.size()) issued.push_back({x.a, x.b, x.accumulate, site});
    const Issued& same = issued[w.issued++];
    if (same.a != x.a || same.b != x.b || same.accumulate != x.accumulate || same.site.line != site.line)
      fail("the warps of a warpgroup disagree, another one issued " + str(same.site));
    for_operands(w, g, [&t](const unsigned char* p) {
      if (!m.shared->holds(p, kCoreBytes)) fail("out of bounds, " + m.shared->distance(p));
      touch(t, p, kCoreBytes, false);
      check_fenced(p, kCoreBytes);
      for (Word *word = word_at(p), *end = word + kCoreBytes / 4; word < end; ++word) ++word->readers;
    });
    const bool in_line = std::any_of(w.wgmmas.begin(), w.wgmmas.end(),
                                     [&](const Wgmma& before) { return before.d[0] == x.d; });
    if (!in_line) {
      if (!w.registers_fenced) fail("no wgmma_fence since the registers of the sums were free");
      g.saved.resize(kWarp * cuda::kWgmmaAcc);
      for (int l = 0; l < kWarp; ++l) {
        std::memcpy(&g.saved[l * cuda::kWgmmaAcc], g.d[l], cuda::kWgmmaAcc * 4);
        std::memset(g.d[l], kPoison & 0xff, cuda::kWgmmaAcc * 4);
      }
    }
    w.wgmmas.push_back(std::move(g));
  });
}

// Everything that a warp waits for is done now, as late as can be: operands are read, and sums appear.
void group_wait(int pending, Site site) {
  if (skipped(site)) return;
  Thread& t = begin(site);
  int none;
  collective(t, none, [&t, pending](int**) {
    Warp& w = warp_of(t);
    w.registers_fenced = false;
    while (!w.wgmmas.empty() && w.wgmmas.front().group < w.groups - pending) {
      Wgmma g = std::move(w.wgmmas.front());
      w.wgmmas.erase(w.wgmmas.begin());
      for (int l = 0; l < kWarp; ++l)
        for (int i = 0; i < cuda::kWgmmaAcc; ++i)
          if (cuda::bits_of(g.d[l][i]) != kPoison) fail("the sums were written while a wgmma was under way");
      for_operands(w, g, [&t](const unsigned char* p) {
        for (Word *word = word_at(p), *end = word + kCoreBytes / 4; word < end; ++word) --word->readers;
        touch(t, p, kCoreBytes, false);
      });
      sum_up(w, g);
      ++options().statistics.wgmmas;
      const auto next = std::find_if(w.wgmmas.begin(), w.wgmmas.end(),
                                     [&](const Wgmma& later) { return later.d[0] == g.d[0]; });
      if (next != w.wgmmas.end()) {
        next->saved = std::move(g.saved);
        continue;
      }
      for (int l = 0; l < kWarp; ++l) std::memcpy(g.d[l], &g.saved[l * cuda::kWgmmaAcc], cuda::kWgmmaAcc * 4);
    }
  });
}

// ---- launches ---------------------------------------------------------------------------------------------
void run(int grid_x, int grid_y, int threads, int shared_bytes, const std::function<void()>& thread) {
  if (m.busy) throw std::runtime_error("a launch inside of another one");
  if (grid_x < 1 || grid_y < 1 || grid_y > 65535) throw std::runtime_error("launch: no such grid");
  if (threads < 1 || threads > kMaxThreads) throw std::runtime_error("launch: no such number of threads");
  if (shared_bytes < 0 || shared_bytes > kMaxShared)
    throw std::runtime_error("launch: no such shared memory");
  if (!m.stacks) m.stacks = map_unreadable(kMaxThreads * kFiber);

  const GuardedBuffer shared(shared_bytes, GuardedBuffer::kEnd, "shared memory");
  const CatchSignals catch_signals;
  m.random = options().seed;
  options().statistics = {};
  options().statistics.grid_x = grid_x, options().statistics.grid_y = grid_y;
  options().statistics.threads = threads, options().statistics.shared_bytes = shared_bytes;
  m.words.assign(shared_bytes / 4 + 1, {}), m.epoch = 1;
  m.thread_count = threads, m.warp_count = (threads + kWarp - 1) / kWarp;
  m.shared = &shared, m.body = &thread, m.host = pthread_self();
  here = {0, threads, 0, 0, grid_x, shared.data()};
  std::vector<int64_t> blocks(int64_t{grid_x} * grid_y);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (const std::vector<int64_t>& some = options().blocks; !some.empty())
    blocks.erase(
        std::remove_if(blocks.begin(), blocks.end(),
                       [&](int64_t b) { return std::find(some.begin(), some.end(), b) == some.end(); }),
        blocks.end());
  shuffle_order(blocks.data(), static_cast<int>(blocks.size()));
  m.busy = true;
  try {
    for (const int64_t block : blocks) {
      here.block_x = static_cast<int>(block % grid_x), here.block_y = static_cast<int>(block / grid_x);
      run_block();
    }
  } catch (...) {
    for (Thread& t : m.threads) t.started = false;  // what they were at is over: they get new fibers
    m.error.clear(), m.current = nullptr, m.busy = false;
    throw;
  }
  m.busy = false;
}

GuardedBuffer::GuardedBuffer(size_t bytes, Place place, std::string name)
    : size_(bytes), name_(std::move(name)) {
  const size_t room = round_up(std::max<size_t>(bytes, 1), static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  mapped_ = room + 2 * kGuard;
  map_ = map_unreadable(mapped_);
  unsigned char* start = map_ + kGuard;
  make_usable(start, room);
  data_ = place == kStart ? start : start + room - round_up(bytes, kAlignment);
  for (unsigned char* p = start; p < start + room; ++p) *p = holds(p, 1) ? 0xff : canary(p);
  buffers().push_back(this);
}
GuardedBuffer::~GuardedBuffer() {
  buffers().erase(std::find(buffers().begin(), buffers().end(), this));
  munmap(map_, mapped_);
}
bool GuardedBuffer::near(const void* p) const { return p >= map_ && p < map_ + mapped_; }
bool GuardedBuffer::holds(const void* p, size_t bytes) const {
  const auto* q = static_cast<const unsigned char*>(p);
  return q >= data_ && q < data_ + size_ && bytes <= static_cast<size_t>(data_ + size_ - q);
}
std::string GuardedBuffer::distance(const void* p) const {
  const ptrdiff_t at = static_cast<const unsigned char*>(p) - data_, size = static_cast<ptrdiff_t>(size_);
  return (at < 0      ? std::to_string(-at) + " bytes before the start of "
          : at < size ? std::to_string(size - at) + " bytes before the end of "
                      : std::to_string(at - size) + " bytes past the end of ") +
         name_ + " (" + std::to_string(size) + " bytes)";
}
void GuardedBuffer::check() const {
  const auto look = [this](const unsigned char* p, const unsigned char* end) {
    for (; p < end; ++p)
      if (*p != canary(p)) throw std::runtime_error("stray write " + distance(p));
  };
  look(map_ + kGuard, data_);
  look(data_ + size_, map_ + mapped_ - kGuard);
}

}  // namespace fused_subpixel::simt
