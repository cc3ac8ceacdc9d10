// SPDX-License-Identifier: BSD-3-Clause
// Plans of recent calls. A call with the same key finds its plan ready.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

namespace fused_subpixel {

// The numbers that a plan depends on.
class PlanKey {
 public:
  void add(int64_t number) {
    if (count_ == numbers_.size()) throw std::logic_error("PlanKey: too many numbers");
    numbers_[count_++] = number;
  }
  template <class... Numbers>
  void add_all(Numbers... numbers) {
    (add(static_cast<int64_t>(numbers)), ...);
  }
  uint64_t hash() const {
    constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
    uint64_t even = count_, odd = ~even;  // two chains, because each multiplication waits for the one before
    for (size_t i = 0; i + 1 < count_; i += 2) {
      even = mixed(even, numbers_[i]) * kOdd;
      odd = mixed(odd, numbers_[i + 1]) * kOdd;
    }
    if (count_ % 2 > 0) even = mixed(even, numbers_[count_ - 1]) * kOdd;
    return mixed(even, static_cast<int64_t>(odd));
  }
  bool operator==(const PlanKey& other) const {
    return count_ == other.count_ &&
           std::equal(numbers_.begin(), numbers_.begin() + static_cast<int64_t>(count_),
                      other.numbers_.begin());
  }

 private:
  static uint64_t mixed(uint64_t h, int64_t number) { return (h ^ h >> 32) + static_cast<uint64_t>(number); }
  std::array<int64_t, 64> numbers_;  // the first count_ are set
  size_t count_ = 0;
};

// The least recently used plans go first. A plan that is in use outlives its place here. Each thread has a cache of its own,
// so that no lock is held when a process forks.
template <class Plan>
class PlanCache {
 public:
  static constexpr size_t kEntries = 64;
  static constexpr int64_t kBytes = int64_t{2} << 20;  // of all plans; half of it is the largest that is kept

  // The plan of `key`, which make() returns if it is not here. Plan has bytes().
  template <class Make>
  std::shared_ptr<const Plan> get(const PlanKey& key, Make make) {
    const uint64_t hash = key.hash();
    for (size_t i = 0; i < hashes_.size(); ++i) {
      if (hashes_[i] != hash || !(entries_[i].key == key)) continue;
      entries_[i].used = ++clock_;
      return entries_[i].plan;
    }
    std::shared_ptr<const Plan> plan = make();
    const int64_t bytes = plan->bytes() + static_cast<int64_t>(sizeof(Entry));
    if (bytes > kBytes / 2) return plan;
    while (entries_.size() == kEntries || bytes_ + bytes > kBytes) forget_oldest();
    hashes_.push_back(hash);
    entries_.push_back({key, plan, bytes, ++clock_});
    bytes_ += bytes;
    return plan;
  }
  size_t size() const { return entries_.size(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    PlanKey key;
    std::shared_ptr<const Plan> plan;
    int64_t bytes;
    uint64_t used;
  };
  void forget_oldest() {
    const auto oldest = std::min_element(entries_.begin(), entries_.end(),
                                         [](const Entry& a, const Entry& b) { return a.used < b.used; });
    bytes_ -= oldest->bytes;
    hashes_[static_cast<size_t>(oldest - entries_.begin())] = hashes_.back();
    hashes_.pop_back();
    if (&*oldest != &entries_.back()) *oldest = std::move(entries_.back());
    entries_.pop_back();
  }

  std::vector<uint64_t> hashes_;  // of the entries
  std::vector<Entry> entries_;
  int64_t bytes_ = 0;
  uint64_t clock_ = 0;
};

}  // namespace fused_subpixel
