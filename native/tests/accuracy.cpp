// Projects with every variant that this CPU supports, and compares with the definition in float64.
// Built with -DPATCHCAPTION_ACCURACY=ON. Prints a line a variant: its name, how many projections there were and their
// largest difference; exits with 1 where one differs by 1e-3, as a unit vector.
//
// Banks are of every storage, with residuals and without, of sizes that are no multiple of a block or a vector. Queries
// are narrow, near the rows of one of few concepts, or wide, with weight in all rows.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "test_bank.h"

namespace {

constexpr double kMaxDifference = 1e-3;  // the promise of the library's users
constexpr int64_t kConcepts = 20;
constexpr float kTemperature = 0.02f;
constexpr float kResidualStep = 1 / 254.0f;  // times 127 it is half a step of int8

struct Size {
    int64_t rows, width, queries;
};
// One row; less than a block; whole blocks and vectors; one more of each; more than is gathered, and few queries.
constexpr Size kSizes[] = {{1, 8, 1},      {63, 50, 2},   {128, 64, 16}, {129, 65, 17},
                           {300, 200, 15}, {300, 128, 1}, {200, 96, 33}};

// A bank, and its rows (M, D) in float64.
struct ExactBank : Bank {
    std::vector<double> exact;
};

std::mt19937 generator(11);

float normal() {
    static std::normal_distribution<float> distribution;
    return distribution(generator);
}

// The concepts (kConcepts, width) that rows and narrow queries are near: all have something in common, as captions do.
std::vector<float> make_concepts(int64_t width) {
    std::vector<float> common(width), concepts(kConcepts * width);
    for (float &value : common) value = normal();
    for (size_t i = 0; i < concepts.size(); i++) concepts[i] = common[i % width] + normal();
    return concepts;
}

ExactBank make_bank(const Size &size, const std::vector<float> &concepts, int32_t storage, bool has_residual) {
    ExactBank made;
    for (int64_t row = 0; row < size.rows; row++) {
        const float *concept_values = concepts.data() + row % kConcepts * size.width;
        const float scale = storage == PATCHCAPTION_INT8 ? 0.01f + 0.001f * static_cast<float>(row % 7) : 1.0f;
        const float step = scale * kResidualStep;
        if (storage == PATCHCAPTION_INT8) made.scales.push_back(scale);
        if (has_residual) made.residual_scales.push_back(step);
        double squares = 0;
        for (int64_t d = 0; d < size.width; d++) {
            const int64_t value = std::clamp<int64_t>(std::lround(20 * (concept_values[d] + normal())), -127, 127);
            append_stored(static_cast<float>(value), storage, made.rows);
            double exact = static_cast<double>(scale) * static_cast<double>(value);
            if (has_residual) {
                made.residual.push_back(static_cast<int8_t>(static_cast<int64_t>(generator() % 255) - 127));
                exact += static_cast<double>(step) * made.residual.back();
            }
            made.exact.push_back(exact);
            squares += exact * exact;
        }
        made.inverse_norms.push_back(static_cast<float>(1 / std::sqrt(squares)));
    }
    describe_bank(made, size.rows, size.width, storage, -1);
    return made;
}

std::vector<float> make_queries(const Size &size, const std::vector<float> &concepts, bool is_narrow) {
    std::vector<float> queries(size.queries * size.width);
    for (int64_t r = 0; r < size.queries; r++) {
        float *query = queries.data() + r * size.width, squares = 0;
        for (int64_t d = 0; d < size.width; d++) {
            query[d] = normal() + (is_narrow ? concepts[r % kConcepts * size.width + d] : 0);
            squares += query[d] * query[d];
        }
        for (int64_t d = 0; d < size.width; d++) query[d] /= std::sqrt(squares);
    }
    return queries;
}

// The definition: softmax(cosine / temperature) @ rows, (queries, width).
std::vector<double> project_by_definition(const ExactBank &made, const std::vector<float> &queries,
                                          int64_t query_count) {
    const int64_t width = made.bank.width, count = made.bank.row_count;
    std::vector<double> sums(query_count * width), logits(count);
    for (int64_t r = 0; r < query_count; r++) {
        for (int64_t row = 0; row < count; row++) {
            double product = 0;
            for (int64_t d = 0; d < width; d++) product += made.exact[row * width + d] * queries[r * width + d];
            logits[row] = product * made.bank.inverse_norms[row] / kTemperature;
        }
        const double largest = *std::max_element(logits.begin(), logits.end());
        double denominator = 0;
        for (double &logit : logits) denominator += std::exp(logit - largest);
        for (int64_t row = 0; row < count; row++) {
            const double weight = std::exp(logits[row] - largest) / denominator;
            for (int64_t d = 0; d < width; d++) sums[r * width + d] += weight * made.exact[row * width + d];
        }
    }
    return sums;
}

// The largest distance of vectors (count, width) from those expected, each made a unit vector.
double largest_difference(const std::vector<float> &found, const std::vector<double> &expected, int64_t width) {
    double largest = 0;
    for (size_t first = 0; first < found.size(); first += width) {
        double found_squares = 0, expected_squares = 0, squares = 0;
        for (int64_t d = 0; d < width; d++) {
            found_squares += static_cast<double>(found[first + d]) * found[first + d];
            expected_squares += expected[first + d] * expected[first + d];
        }
        for (int64_t d = 0; d < width; d++) {
            const double difference =
                found[first + d] / std::sqrt(found_squares) - expected[first + d] / std::sqrt(expected_squares);
            squares += difference * difference;
        }
        if (std::isnan(squares)) return INFINITY;
        largest = std::max(largest, std::sqrt(squares));
    }
    return largest;
}

struct Result {
    const char *variant;
    int projections = 0;
    double largest = 0;
};

void project_with_all(const ExactBank &made, const std::vector<float> &queries, int64_t query_count,
                      std::vector<Result> &results) {
    const std::vector<double> expected = project_by_definition(made, queries, query_count);
    std::vector<float> found(queries.size());
    for (Result &result : results) {
        const int32_t status = patchcaption_project(&made.bank, queries.data(), query_count, kTemperature, 2,
                                                    result.variant, found.data());
        if (status != PATCHCAPTION_OK) fail("status " + std::to_string(status));
        result.projections++;
        result.largest = std::max(result.largest, largest_difference(found, expected, made.bank.width));
    }
}

}  // namespace

int main() {
    std::vector<Result> results;
    for (int32_t index = 0; const char *variant = patchcaption_variant(index); index++) results.push_back({variant});
    for (const Size &size : kSizes) {
        const std::vector<float> concepts = make_concepts(size.width);
        for (int32_t storage : {PATCHCAPTION_FP32, PATCHCAPTION_FP16, PATCHCAPTION_BF16, PATCHCAPTION_INT8}) {
            for (bool has_residual : {false, true}) {
                const ExactBank made = make_bank(size, concepts, storage, has_residual);
                for (bool is_narrow : {false, true}) {
                    project_with_all(made, make_queries(size, concepts, is_narrow), size.queries, results);
                }
            }
        }
    }
    bool is_exact = true;
    for (const Result &result : results) {
        std::printf("%s: %d projections, largest difference %.1e\n", result.variant, result.projections,
                    result.largest);
        is_exact &= result.largest < kMaxDifference;
    }
    return is_exact ? 0 : 1;
}
