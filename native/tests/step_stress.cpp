// Teams of threads do one list of tasks after another, and eight threads step a GPT-2 at once: each result must be the
// one of a thread alone. Built with -DPATCHCAPTION_STRESS=ON, and under a sanitizer as stress.cpp is.
// Prints how many steps there were, 0 where the processor has no variant; exits with 1 where a result differs.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "fail.h"
#include "patchcaption/gpt2.h"
#include "support.h"

namespace {

constexpr int64_t kWidth = 64, kHidden = 128, kHeads = 4, kWords = 70, kPositions = 3, kBlocks = 2;
constexpr int kThreads = 8, kRounds = 20;
constexpr float kMaxDifference = 1e-5f;  // which thread takes which words, and so the order of the sums, is by chance

std::vector<float> random_values(std::mt19937 &random, int64_t count, float scale) {
    std::vector<float> values(count);
    for (float &value : values) value = scale * (static_cast<float>(random() % 2000) / 1000 - 1);
    return values;
}

struct LayerDeleter {
    void operator()(patchcaption_linear *layer) const { patchcaption_linear_free(layer); }
};
using Layer = std::unique_ptr<patchcaption_linear, LayerDeleter>;

Layer make_layer(const char *variant, std::mt19937 &random, int64_t inputs, int64_t outputs, bool has_norm) {
    std::vector<int8_t> weights(inputs * outputs);
    for (int8_t &weight : weights) weight = static_cast<int8_t>(random() % 255 - 127);
    const bool rounds = has_norm;
    const std::vector<float> scales = random_values(random, rounds ? outputs : inputs / 64 * outputs, 0.001f);
    const std::vector<float> biases = random_values(random, outputs, 0.1f), ones(inputs, 1.0f), zeros(inputs, 0.0f);
    const patchcaption_layer described{inputs,
                                       outputs,
                                       weights.data(),
                                       scales.data(),
                                       biases.data(),
                                       rounds ? 0.03f : 0.0f,
                                       has_norm ? ones.data() : nullptr,
                                       has_norm ? zeros.data() : nullptr,
                                       1e-5f,
                                       0};
    patchcaption_linear *layer = nullptr;
    if (patchcaption_linear_create(&described, variant, &layer) != PATCHCAPTION_OK) fail("a layer is refused");
    return Layer(layer);
}

struct Model {
    std::vector<Layer> layers;
    std::vector<patchcaption_gpt2_block> blocks;
    std::vector<float> embeddings;
    patchcaption_gpt2 gpt2{};
};

void make_model(const char *variant, Model &model) {
    std::mt19937 random(1);
    const auto layer = [&](int64_t inputs, int64_t outputs, bool has_norm) {
        model.layers.push_back(make_layer(variant, random, inputs, outputs, has_norm));
        return model.layers.back().get();
    };
    for (int64_t i = 0; i < kBlocks; i++)
        model.blocks.push_back({layer(kWidth, 3 * kWidth, true), layer(kWidth, kWidth, false),
                                layer(kWidth, kHidden, true), layer(kHidden, kWidth, false)});
    model.embeddings = random_values(random, kWords * kWidth, 0.1f);
    const patchcaption_linear *vocabulary = layer(kWidth, kWords, true);
    model.gpt2 = {model.blocks.data(), kBlocks, kHeads, vocabulary, model.embeddings.data(), nullptr, kWords};
}

// Returns the words' log-probabilities, and the new entries of the cache after them.
std::vector<float> step(const Model &model, int64_t rows, int32_t threads) {
    std::mt19937 random(static_cast<unsigned>(rows));
    const int64_t entry = rows * kWidth;
    const std::vector<float> inputs = random_values(random, entry, 1);
    const std::vector<float> past = random_values(random, 2 * kBlocks * entry * kPositions, 1);
    std::vector<float> results(rows * kWords + 2 * kBlocks * entry);
    const uint8_t is_attended[kPositions] = {1, 1, 0};
    const float *pasts[2 * kBlocks];
    float *presents[2 * kBlocks];
    for (int64_t i = 0; i < 2 * kBlocks; i++) {
        pasts[i] = past.data() + i * entry * kPositions;
        presents[i] = results.data() + rows * kWords + i * entry;
    }
    const patchcaption_gpt2_cache cache{kPositions, is_attended, 0, pasts, presents};
    const patchcaption_gpt2_result result{nullptr, nullptr, results.data()};
    if (patchcaption_gpt2_step(&model.gpt2, inputs.data(), nullptr, rows, &cache, threads, &result) != PATCHCAPTION_OK)
        fail("a step is refused");
    return results;
}

// Each task reads what the list before it wrote, in whatever thread.
void check_teams() {
    constexpr int64_t kTasks = 13, kLists = 500;
    std::vector<int64_t> now(kTasks, 0), before(kTasks, 0);
    patchcaption::run_in_team(4, [&](patchcaption::TeamMember team, int64_t) {
        for (int64_t list = 0; list < kLists; list++) {
            team.share(kTasks, [&](int64_t task) { now[task] = before[(task + 1) % kTasks] + 1; });
            team.share(kTasks, [&](int64_t task) { before[task] = now[task]; });
        }
    });
    if (std::any_of(before.begin(), before.end(), [](int64_t count) { return count != kLists; })) fail("a lost task");
}

// Returns how many steps there were.
int64_t step_in_threads(const char *variant) {
    Model model;
    make_model(variant, model);
    const int64_t row_counts[] = {1, 16, 17, 40};
    std::vector<std::vector<float>> expected;
    for (int64_t rows : row_counts) expected.push_back(step(model, rows, 1));
    std::atomic<int64_t> steps{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; t++)
        threads.emplace_back([&, t] {
            for (int round = 0; round < kRounds; round++) {
                const size_t which = (t + round) % expected.size();
                const std::vector<float> results = step(model, row_counts[which], 1 + (t + round) % 4);
                for (size_t i = 0; i < results.size(); i++)
                    if (!(std::abs(results[i] - expected[which][i]) <= kMaxDifference)) fail("another result");
                steps++;
            }
        });
    for (std::thread &thread : threads) thread.join();
    return steps;
}

}  // namespace

int main() {
    check_teams();
    int64_t steps = 0;
    for (int32_t index = 0; const char *variant = patchcaption_gpt2_variant(index); index++)
        steps += step_in_threads(variant);
    std::printf("%lld steps\n", static_cast<long long>(steps));
}
