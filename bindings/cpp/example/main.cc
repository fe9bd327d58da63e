/* main.cc: several clients ask a server for tokens at once, read them as they come, and compare
 * them with what the unsplit model gives.
 *
 *   server [clients] [tokens]
 *
 * Exits with 0 where all of them are right. */
#include <cstdio>
#include <cstdlib>
#include <random>

#include "server.hpp"

static model_weights random_model(int64_t hidden, int64_t ffn) {
  std::mt19937 chance(7);
  std::uniform_real_distribution<float> weight(-0.2f, 0.2f);
  const std::size_t n = static_cast<std::size_t>(hidden * ffn);
  model_weights w = {hidden, ffn, std::vector<float>(n), std::vector<float>(n)};
  for (float &v : w.w1) v = weight(chance);
  for (float &v : w.w2) v = weight(chance);
  return w;
}

/* The unsplit model, for one token: another model of the process, in a context of its own. */
static token reference(const lamella::context &ctx, const model_weights &w, const token &x) {
  token y(x.size());
  lamella::ops::ffn(lamella::tensor(x.data(), {1, w.hidden}),
                    lamella::tensor(w.w1.data(), {w.ffn, w.hidden}), lamella::tensor(),
                    lamella::tensor(w.w2.data(), {w.hidden, w.ffn}))
      .out(lamella::tensor(y.data(), {1, w.hidden}))
      .set("act", "silu")
      .run(ctx);
  return y;
}

struct outcome {
  int tokens = 0;
  float worst = 0;
  std::string error;
};

/* One client: asks, reads its stream, and checks each result when it comes. */
static void ask(server &s, const model_weights &w, int client, int steps, outcome &out) {
  lamella::hooks one_thread;
  one_thread.threads = 1;
  const auto ctx = lamella::make<lamella::context>(one_thread);
  token x(static_cast<std::size_t>(w.hidden)), y;
  for (std::size_t i = 0; i < x.size(); i++)
    x[i] = std::sin(static_cast<float>(client + 1) * static_cast<float>(i));
  const std::shared_ptr<request> r = s.submit(x, steps);
  while (r->read(y)) {
    const token want = reference(ctx, w, x);
    for (std::size_t i = 0; i < y.size(); i++)
      out.worst = std::max(out.worst, std::fabs(y[i] - want[i]));
    x = next_token(y.data(), y.size());
    out.tokens++;
  }
  out.error = r->error();
}

int main(int argc, char **argv) {
  const int n_clients = argc > 1 ? std::atoi(argv[1]) : 4,
            steps = argc > 2 ? std::atoi(argv[2]) : 32;
  if (n_clients < 1 || steps < 1) return std::fprintf(stderr, "server [clients] [tokens]\n"), 2;
  const model_weights weights = random_model(/*hidden*/ 256, /*ffn*/ 1000);
  std::vector<outcome> outcomes(static_cast<std::size_t>(n_clients));
  outcome all;
  try {
    thread_pool pool(2);
    server s(weights, pool);
    std::vector<std::thread> clients;
    for (int c = 0; c < n_clients; c++)
      clients.emplace_back(
          [&, c] { ask(s, weights, c, steps, outcomes[static_cast<std::size_t>(c)]); });
    for (std::thread &c : clients) c.join();
    for (const outcome &o : outcomes) {
      all.tokens += o.tokens;
      all.worst = std::max(all.worst, o.worst);
      if (all.error.empty()) all.error = o.error;
    }
    std::printf(
        "%d tokens for %d clients in %d batches; largest difference to the unsplit model: %g\n",
        all.tokens, n_clients, s.n_batches(), static_cast<double>(all.worst));
    std::printf("scratch and group took %zu bytes from the server's allocator\n", s.bytes());
  } catch (const lamella::error &e) {
    all.error = e.what();
  }
  if (!all.error.empty()) std::fprintf(stderr, "server: %s\n", all.error.c_str());
  return all.error.empty() && all.tokens == n_clients * steps && all.worst < 1e-4f ? 0 : 1;
}
