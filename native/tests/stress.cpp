// Sixteen threads project at once, on banks that they share: each result must be the one of a thread alone.
// Built with -DPATCHCAPTION_STRESS=ON, and under a sanitizer with -DCMAKE_CXX_FLAGS=-fsanitize=thread for example.
// Prints how many projections there were; exits with 1 where a result differs or a call fails.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "test_bank.h"

namespace {

constexpr int64_t kFewRows = 700, kManyRows = 33'000;  // those of one thread's task, and of three
constexpr int64_t kWidth = 24, kMaxQueries = 17;
constexpr int kThreads = 16;
constexpr int kRounds = 8;  // after so many, each thread has done every case
constexpr float kTemperature = 0.05f;
constexpr float kMaxDifference = 1e-4f;  // which thread takes which rows, and so the order of the sums, is by chance

// Makes a bank of small whole numbers.
Bank make_bank(int64_t row_count, int32_t storage, bool has_residual, int residual_fd) {
    Bank made;
    std::mt19937 random(storage * 2 + has_residual);
    const int64_t size = row_count * kWidth;
    for (int64_t i = 0; i < size; i++) append_stored(static_cast<float>(random() % 8) - 3.0f, storage, made.rows);
    made.inverse_norms.assign(row_count, 1 / (3.0f * std::sqrt(static_cast<float>(kWidth))));
    if (storage == PATCHCAPTION_INT8) made.scales.assign(row_count, 0.5f);
    if (has_residual) {
        made.residual.resize(size);
        for (int8_t &value : made.residual) value = static_cast<int8_t>(random() % 255 - 127);
        made.residual_scales.assign(row_count, 0.001f);
        if (residual_fd >= 0 && write(residual_fd, made.residual.data(), made.residual.size()) !=
                                    static_cast<ssize_t>(made.residual.size()))
            fail("the residual cannot be written");
    }
    describe_bank(made, row_count, kWidth, storage, residual_fd);
    return made;
}

struct Case {
    const Bank *bank;
    int64_t queries, top_k;  // top_k below 0: without refinement
    float max_error;
    int32_t threads;
    const char *variant;
    std::vector<float> expected;
};

std::vector<float> unit_queries() {
    std::vector<float> queries(kMaxQueries * kWidth);
    std::mt19937 random(7);
    for (int64_t r = 0; r < kMaxQueries; r++) {
        float *query = queries.data() + r * kWidth;
        float squares = 0;
        for (int64_t d = 0; d < kWidth; d++) {
            query[d] = static_cast<float>(random() % 1000) / 500 - 1;
            squares += query[d] * query[d];
        }
        for (int64_t d = 0; d < kWidth; d++) query[d] /= std::sqrt(squares);
    }
    return queries;
}

// Returns the weighted sums, and with refinement what the other rows leave after them.
std::vector<float> project(const Case &one, const std::vector<float> &queries) {
    std::vector<float> results(one.queries * (kWidth + 2));
    float *errors = results.data() + one.queries * kWidth, *drifts = errors + one.queries;
    const int32_t status = one.top_k < 0 ? patchcaption_project(&one.bank->bank, queries.data(), one.queries,
                                                                kTemperature, one.threads, one.variant, results.data())
                                         : patchcaption_project_with_refinement(
                                               &one.bank->bank, queries.data(), one.queries, kTemperature, one.top_k,
                                               one.max_error, one.threads, one.variant, results.data(), errors, drifts);
    if (status != PATCHCAPTION_OK) fail("status " + std::to_string(status));
    return results;
}

float largest_difference(const std::vector<float> &results, const std::vector<float> &expected) {
    float largest = 0;
    for (size_t i = 0; i < results.size(); i++) {
        const float difference = std::abs(results[i] - expected[i]);
        if (std::isnan(difference)) return INFINITY;
        largest = std::max(largest, difference);
    }
    return largest;
}

}  // namespace

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : kRounds;
    char name[] = "/tmp/patchcaption-stress-XXXXXX";
    const int residual_fd = mkstemp(name);
    if (residual_fd < 0) fail("no file can be made in /tmp");
    unlink(name);

    std::vector<Bank> banks;
    for (int32_t storage : {PATCHCAPTION_FP32, PATCHCAPTION_FP16, PATCHCAPTION_BF16, PATCHCAPTION_INT8})
        banks.push_back(make_bank(kFewRows, storage, false, -1));
    banks.push_back(make_bank(kFewRows, PATCHCAPTION_INT8, true, -1));
    banks.push_back(make_bank(kManyRows, PATCHCAPTION_FP32, false, -1));
    banks.push_back(make_bank(kManyRows, PATCHCAPTION_INT8, true, residual_fd));

    const std::vector<float> queries = unit_queries();
    std::vector<Case> cases;
    for (int32_t index = 0; const char *variant = patchcaption_variant(index); index++)
        for (const Bank &bank : banks)
            for (int64_t count : {int64_t{1}, kMaxQueries})
                for (int64_t top_k : {int64_t{-1}, int64_t{0}, int64_t{8}, kManyRows}) {
                    if (top_k >= 0 && bank.bank.residual_scales == nullptr) continue;
                    cases.push_back({&bank, count, top_k, 0, static_cast<int32_t>(1 + cases.size() % 4), variant, {}});
                    cases.back().expected = project(cases.back(), queries);
                }

    std::atomic<int64_t> projections{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; t++)
        threads.emplace_back([&, t] {
            for (int round = 0; round < rounds; round++)
                for (size_t i = (t + round) % kRounds; i < cases.size(); i += kRounds) {
                    const Case &one = cases[i];
                    const std::vector<float> results = project(one, queries);
                    if (largest_difference(results, one.expected) > kMaxDifference)
                        fail(std::string("another result with ") + one.variant);
                    projections++;
                }
        });
    for (std::thread &thread : threads) thread.join();
    close(residual_fd);
    std::printf("%lld projections\n", static_cast<long long>(projections));
}
