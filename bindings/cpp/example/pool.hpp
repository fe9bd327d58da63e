/* pool.hpp: the server's own thread pool. Lamella's parallel sections run on it, beside whatever
 * else the server does.
 * Invariant: run returns when every piece was run, and may be called by many threads at once. */
#ifndef LAMELLA_EXAMPLE_POOL_HPP
#define LAMELLA_EXAMPLE_POOL_HPP

#include <condition_variable>
#include <lamella.hpp>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

class thread_pool {
 public:
  explicit thread_pool(int n) {
    for (int i = 0; i < n; i++) threads_.emplace_back([this] { serve(); });
  }
  ~thread_pool() {
    {
      const std::lock_guard<std::mutex> hold(lock_);
      closing_ = true;
    }
    news_.notify_all();
    for (std::thread &t : threads_) t.join();
  }
  int size() const { return static_cast<int>(threads_.size()); }

  /* The caller helps, so a section needs no free thread to come to its end. */
  void run(int64_t n, lamella::work piece) {
    section mine = {piece, n, 0, n};
    std::unique_lock<std::mutex> hold(lock_);
    sections_.push_back(&mine);
    news_.notify_all();
    while (mine.left > 0) run_one_or_wait(hold);
  }

 private:
  struct section {
    lamella::work piece;
    int64_t n, next, left; /* how many; the next to be taken; not yet done */
  };

  void run_one_or_wait(std::unique_lock<std::mutex> &hold) {
    if (sections_.empty()) return news_.wait(hold);
    section &s = *sections_.front();
    const int64_t i = s.next++;
    if (s.next == s.n) sections_.pop_front();
    hold.unlock();
    s.piece(i);
    hold.lock();
    if (--s.left == 0) news_.notify_all();
  }
  void serve() {
    std::unique_lock<std::mutex> hold(lock_);
    while (!closing_) run_one_or_wait(hold);
  }

  std::mutex lock_;
  std::condition_variable news_;
  std::list<section *> sections_; /* with pieces that nobody took yet */
  std::vector<std::thread> threads_;
  bool closing_ = false;
};

#endif
