/* server.hpp: a server of one feed-forward model, split over two ranks, with continuous batching.
 *
 * Rank 0 gathers what the clients ask for: each of its steps takes the next token of every request
 * under way, as one batch. It tells rank 1 the batch through the group, both run the layer, each on
 * its half of the weights, and rank 0 streams every request its row of the sum. Only the group
 * connects the ranks: as processes they would do the same.
 * Invariant: both ranks make the same calls in the same order. Leaves what a token means to the
 * client: here it is a vector, and the next one is the last result, scaled. */
#ifndef LAMELLA_EXAMPLE_SERVER_HPP
#define LAMELLA_EXAMPLE_SERVER_HPP

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "pool.hpp"

using token = std::vector<float>;

struct model_weights { /* y = silu(x w1^T) w2^T */
  int64_t hidden, ffn;
  std::vector<float> w1, w2; /* [ffn, hidden], [hidden, ffn] */
};

/* The token that follows a result: it is scaled, so that any number of steps stays finite. */
inline token next_token(const float *y, std::size_t n) {
  float most = 1e-6f;
  for (std::size_t i = 0; i < n; i++) most = std::max(most, std::fabs(y[i]));
  token t(y, y + n);
  for (float &v : t) v /= most;
  return t;
}

/* What a client reads while the server still writes. */
class request {
 public:
  request(token first, int steps) : token_(std::move(first)), left_(steps) {}

  /* The next result; false after the last, or where the server failed: then error() says why. */
  bool read(token &out) {
    std::unique_lock<std::mutex> hold(lock_);
    news_.wait(hold, [&] { return !results_.empty() || ended_; });
    if (results_.empty()) return false;
    out = std::move(results_.front());
    results_.pop_front();
    return true;
  }
  std::string error() {
    const std::lock_guard<std::mutex> hold(lock_);
    return error_;
  }

 private:
  friend class server;

  bool step(const float *y, std::size_t n) {
    token_ = next_token(y, n);
    const std::lock_guard<std::mutex> hold(lock_);
    results_.emplace_back(y, y + n);
    ended_ = --left_ == 0;
    news_.notify_one();
    return !ended_;
  }
  void fail(const std::string &why) {
    const std::lock_guard<std::mutex> hold(lock_);
    ended_ = true, error_ = why;
    news_.notify_one();
  }

  token token_; /* the server's alone */
  std::mutex lock_;
  std::condition_variable news_;
  std::deque<token> results_;
  int left_;
  bool ended_ = false;
  std::string error_;
};

class server {
 public:
  static constexpr int n_ranks = 2, most_rows = 16;

  server(const model_weights &w, thread_pool &pool) : weights_(w) {
    lamella::hooks host;
    host.threads = pool.size() + 1; /* and the one that calls */
    host.parallel_for = [&pool](int64_t n, lamella::work piece) { pool.run(n, piece); };
    host.alloc = [this](std::size_t bytes, std::size_t alignment) {
      bytes_ += bytes;
      return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    };
    host.free = [this](void *p, std::size_t bytes) {
      bytes_ -= bytes;
      std::free(p);
    };
    lamella::context::create(std::move(host), context_);
    lamella::make_group_id(id_);
    for (int rank = 0; rank < n_ranks; rank++)
      ranks_.emplace_back([this, rank] { run_rank(rank); });
  }
  ~server() {
    {
      const std::lock_guard<std::mutex> hold(lock_);
      closing_ = true;
    }
    news_.notify_one();
    for (std::thread &rank : ranks_) rank.join();
  }

  std::shared_ptr<request> submit(token first, int steps) {
    const bool fits = static_cast<int64_t>(first.size()) == weights_.hidden && steps > 0;
    auto r = std::make_shared<request>(std::move(first), steps);
    const std::lock_guard<std::mutex> hold(lock_);
    if (!fits || !broken_.empty())
      r->fail(fits ? broken_ : "the first token, or the number of steps, does not fit the model");
    else
      waiting_.push_back(r);
    news_.notify_one();
    return r;
  }
  std::size_t bytes() const { return bytes_; }
  int n_batches() const { return n_batches_; }

 private:
  using requests = std::vector<std::shared_ptr<request>>;
  static constexpr int64_t end = -1; /* in place of a batch's rows */

  /* -- a rank -- */

  struct rank_state {
    lamella::group group;
    bool leads;
    int64_t first, n; /* its share of the ffn dimension */
    std::vector<float> told, x, y;
  };

  void run_rank(int rank) {
    requests running; /* rank 0's */
    try {
      rank_state r = join(rank);
      for (int64_t rows; (rows = agree(r, running)) != end;)
        if (rows > 0) step(r, running, rows);
    } catch (const lamella::error &e) { /* the other rank has one too: a group fails as a whole */
      give_up(running, e.what());
    }
  }

  rank_state join(int rank) {
    lam_group_desc desc = lamella::group_desc();
    desc.rank = rank, desc.size = n_ranks, desc.id = id_;
    desc.deadline_ms = desc.first_deadline_ms = 10000; /* a server would rather fail than hang */
    lam_shard_info share = LAM_SHARD_INFO_INIT;
    lamella::check(lam_shard(weights_.ffn, /*unit*/ 1, /*gated*/ 0, rank, n_ranks, &share));
    const std::size_t room = static_cast<std::size_t>(most_rows * weights_.hidden);
    return {lamella::make<lamella::group>(context_, desc),
            rank == 0,
            share.pieces[0].begin,
            share.pieces[0].end - share.pieces[0].begin,
            std::vector<float>(room),
            std::vector<float>(room),
            std::vector<float>(room)};
  }

  /* What rank 0 has, on all ranks. */
  template <class T>
  void broadcast(rank_state &r, T *from, T *to, int64_t rows, int64_t cols) {
    lamella::ops::broadcast(lamella::tensor(from, {rows, cols}))
        .out(lamella::tensor(to, {rows, cols}))
        .set("group", r.group)
        .run();
  }

  /* The batch of the next step: its rows, the same on both ranks, and r.x. */
  int64_t agree(rank_state &r, requests &running) {
    int64_t mine = r.leads ? gather(r, running) : 0, rows = 0;
    broadcast(r, &mine, &rows, 1, 1);
    if (rows > 0) broadcast(r, r.told.data(), r.x.data(), rows, weights_.hidden);
    return rows;
  }

  void step(rank_state &r, requests &running, int64_t rows) {
    const int64_t h = weights_.hidden, f = weights_.ffn;
    /* this rank's rows of w1, and columns of w2 where they lie */
    const lamella::tensor w1(weights_.w1.data() + r.first * h, {r.n, h}),
        w2(weights_.w2.data() + r.first, {h, r.n}, {f, 1});
    lamella::ops::ffn(lamella::tensor(r.x.data(), {rows, h}), w1, lamella::tensor(), w2)
        .out(lamella::tensor(r.y.data(), {rows, h}))
        .set("group", r.group)
        .set("act", "silu")
        .run();
    if (r.leads) stream(r, running);
  }

  /* -- rank 0's part -- */

  /* Waits for work, at most a second: rank 1 waits in the group, which would take a longer silence
   * for a rank that hangs. */
  int64_t gather(rank_state &r, requests &running) {
    std::unique_lock<std::mutex> hold(lock_);
    if (running.empty())
      news_.wait_for(hold, std::chrono::seconds(1), [&] { return closing_ || !waiting_.empty(); });
    while (!waiting_.empty() && running.size() < most_rows) {
      running.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
    }
    if (running.empty() && closing_) return end;
    float *row = r.told.data();
    for (const auto &q : running) row = std::copy(q->token_.begin(), q->token_.end(), row);
    return static_cast<int64_t>(running.size());
  }

  void stream(const rank_state &r, requests &running) {
    const std::size_t h = static_cast<std::size_t>(weights_.hidden);
    const float *y = r.y.data();
    n_batches_++;
    requests on;
    for (const auto &q : running) {
      if (q->step(y, h)) on.push_back(q);
      y += h;
    }
    running.swap(on);
  }

  void give_up(const requests &running, const std::string &why) {
    const std::lock_guard<std::mutex> hold(lock_);
    if (broken_.empty()) broken_ = why;
    for (const auto &q : running) q->fail(why);
    for (const auto &q : waiting_) q->fail(why);
    waiting_.clear();
  }

  const model_weights &weights_;
  std::atomic<std::size_t> bytes_{0};
  std::atomic<int> n_batches_{0};
  lamella::context context_; /* one for the model: both ranks are its */
  lam_group_id id_;
  std::mutex lock_;
  std::condition_variable news_;
  std::deque<std::shared_ptr<request>> waiting_;
  bool closing_ = false;
  std::string broken_;
  std::vector<std::thread> ranks_;
};

#endif
