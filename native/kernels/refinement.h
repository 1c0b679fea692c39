// Sums the rows of highest logit again, with their residuals, and tells what error the others' rounding leaves.
//
// The regions of an image have much the same rows: a range of the bank at a time, the residual of each row that a query
// refines is read once for all queries.
//
// Shapes: R queries, M memory rows, D width.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "residual_reader.h"
#include "scan_interface.h"
#include "support.h"

namespace patchcaption {

constexpr int64_t kRangeRows = 4096;  // whose residuals one thread has at a time

inline bool has_higher_logit(const Candidate &a, const Candidate &b) { return a.logit > b.logit; }

// The residuals of those rows of a range that are asked for.
class ResidualsOfRange {
  public:
    explicit ResidualsOfRange(const patchcaption_bank &bank) : bank_(bank), reader_(bank), places_(kRangeRows) {}

    void begin(int64_t first) {
        first_ = first;
        std::fill(places_.begin(), places_.end(), kNone);
    }

    void ask_for(int64_t row) { places_[row - first_] = kAsked; }

    // Makes those asked for ready.
    void read() {
        if (bank_.residual) return;
        const auto asked = std::count(places_.begin(), places_.end(), kAsked);
        if (asked * bank_.width > capacity_) {
            capacity_ = asked * bank_.width;
            residuals_ = allocate<int8_t>(capacity_);
        }
        int32_t count = 0;
        for (int64_t row = 0; row < kRangeRows;) {
            int64_t end = row;
            while (end < kRangeRows && places_[end] == kAsked) ++end;
            if (end > row) reader_.read(first_ + row, end - row, residuals_.get() + count * bank_.width);
            while (row < end) places_[row++] = count++;
            ++row;
        }
    }

    const int8_t *of(int64_t row) const {
        if (bank_.residual) return bank_.residual + row * bank_.width;
        return residuals_.get() + places_[row - first_] * bank_.width;
    }

  private:
    static constexpr int32_t kNone = -1, kAsked = -2;

    const patchcaption_bank &bank_;
    ResidualReader reader_;
    int64_t first_ = 0, capacity_ = 0;
    std::vector<int32_t> places_;  // in `residuals_`, or one of the numbers above
    AlignedArray<int8_t> residuals_;
};

// What the rows that were not refined leave of a query, relative to the length of its weighted sum.
struct UnrefinedRest {
    double error;  // the root of the sum of weight**2 * squared error
    double drift;  // the length of their part of the sum across the whole
};

// What one thread has summed, and its memory.
struct ThreadSums : RefinedSums {
    explicit ThreadSums(const QueryBatch &batch)
        : floats(allocate_zeroed<float>(multiply(2 * batch.count, batch.padded_width))),
          doubles(allocate_zeroed<double>(2 * batch.count)) {
        stored_sum = floats.get();
        sum = stored_sum + batch.count * batch.padded_width;
        stored_weights = doubles.get();
        weights = stored_weights + batch.count;
    }

    AlignedArray<float> floats;
    AlignedArray<double> doubles;
};

// The rows that are refined, of all queries, and what each thread has summed of them.
class Refinement {
  public:
    Refinement(const Variant &variant, const patchcaption_bank &bank, const QueryBatch &batch, int64_t top_k,
               int64_t threads)
        : variant_(variant), bank_(bank), batch_(batch), top_k_(top_k), queries_(batch.count) {
        for (int64_t thread = 0; thread < threads; ++thread) sums_of_.emplace_back(batch);
    }

    // Chooses the rows of a query, whose softmax over all rows is `merged`, from the candidates of all threads: the
    // nearest top_k, or as many as leave an error of at most `max_error`.
    void choose(int64_t query, const std::vector<const Partial *> &partials, const Partial &merged, double max_error) {
        ChosenRows &chosen = queries_[query];
        chosen.squared_error = merged.squared_errors[query];
        if (top_k_ == 0) return;
        std::vector<Candidate> &rows = chosen.rows;
        for (const Partial *partial : partials) {
            const Candidate *candidates = partial->candidates + query * partial->candidate_capacity;
            rows.insert(rows.end(), candidates, candidates + partial->candidate_counts[query]);
        }
        if (static_cast<int64_t>(rows.size()) > top_k_) {
            std::nth_element(rows.begin(), rows.begin() + top_k_, rows.end(), has_higher_logit);
            rows.resize(top_k_);
        }
        const double of_rows = squared_error_of(rows.begin(), rows.end(), merged.max_logits[query]);
        chosen.squared_error = std::max(0.0, chosen.squared_error - of_rows);
        const float *sums = merged.weighted_sum + query * batch_.padded_width;
        double squared_length = 0;
        for (int64_t d = 0; d < batch_.padded_width; ++d) squared_length += static_cast<double>(sums[d]) * sums[d];
        leave_out(chosen, merged.max_logits[query], max_error * max_error * squared_length);
        std::sort(rows.begin(), rows.end(), [](const Candidate &a, const Candidate &b) { return a.row < b.row; });
    }

    // Sums the rows of all queries, in ranges that threads take from a shared counter.
    void sum(int64_t thread, const Partial &merged, std::atomic<int64_t> &next_range, void *scratch) {
        ResidualsOfRange residuals(bank_);
        std::vector<RefinedRow> rows;
        for (int64_t first; (first = kRangeRows * next_range.fetch_add(1)) < bank_.row_count;) {
            residuals.begin(first);
            bool is_empty = true;
            for (const ChosenRows &chosen : queries_) {
                for (const Candidate &candidate : chosen.in_range(first)) {
                    residuals.ask_for(candidate.row);
                    is_empty = false;
                }
            }
            if (is_empty) continue;
            residuals.read();
            for (int64_t query = 0; query < batch_.count; ++query) {
                rows.clear();
                for (const Candidate &candidate : queries_[query].in_range(first)) {
                    rows.push_back({candidate.logit, candidate.row, residuals.of(candidate.row)});
                }
                variant_.refine(bank_, batch_, query, merged.max_logits[query], rows.data(),
                                static_cast<int64_t>(rows.size()), sums_of_[thread], scratch);
            }
        }
    }

    // Puts the refined rows in the place of those that the scan summed, in a query's sums (padded D,) and denominator.
    UnrefinedRest apply(int64_t query, Partial &merged) const {
        const int64_t width = batch_.padded_width;
        const ChosenRows &chosen = queries_[query];
        float *sums = merged.weighted_sum + query * width;
        double weight = merged.denominators[query];
        for (const ThreadSums &refined : sums_of_) {
            weight += refined.weights[query] - refined.stored_weights[query];
        }
        merged.denominators[query] = static_cast<float>(weight);
        double rest_squares = 0, squares = 0, product = 0;
        for (int64_t d = 0; d < width; ++d) {
            float rest = sums[d], all = 0;
            for (const ThreadSums &refined : sums_of_) {
                rest -= refined.stored_sum[query * width + d];
                all += refined.sum[query * width + d];
            }
            sums[d] = all += rest;
            rest_squares += static_cast<double>(rest) * rest;
            squares += static_cast<double>(all) * all;
            product += static_cast<double>(rest) * all;
        }
        const double across = std::max(0.0, rest_squares - product * product / squares);
        return {std::sqrt(chosen.squared_error / squares), std::sqrt(across / squares)};
    }

  private:
    struct ChosenRows;
    static constexpr int64_t kStep = 4;

    // Leaves out the lowest quarter of the rows, time and again, as long as the squared error stays within `most`.
    void leave_out(ChosenRows &chosen, float max_logit, double most) const {
        std::vector<Candidate> &rows = chosen.rows;
        auto end = rows.end();
        while (end - rows.begin() >= kStep) {
            const auto kept = end - (end - rows.begin()) / kStep;
            std::nth_element(rows.begin(), kept, end, has_higher_logit);
            const double squared_error = chosen.squared_error + squared_error_of(kept, end, max_logit);
            if (!(squared_error <= most)) break;
            chosen.squared_error = squared_error;
            end = kept;
        }
        rows.erase(end, rows.end());
    }

    // The sum over some rows of weight**2 * squared error.
    template <typename Rows>
    double squared_error_of(Rows first, Rows end, float max_logit) const {
        double sum = 0;
        for (Rows row = first; bank_.squared_errors && row != end; ++row) {
            const double weight = std::exp(row->logit - max_logit);
            sum += weight * weight * bank_.squared_errors[row->row];
        }
        return sum;
    }

    struct ChosenRows {
        std::vector<Candidate> rows;  // in the order of the bank
        double squared_error = 0;     // of all other rows, the sum of weight**2 * squared error

        struct Range {
            const Candidate *first, *last;
            const Candidate *begin() const { return first; }
            const Candidate *end() const { return last; }
        };

        Range in_range(int64_t first) const {
            const auto is_before = [](const Candidate &candidate, int64_t row) { return candidate.row < row; };
            const Candidate *all = rows.data(), *end = all + rows.size();
            const Candidate *from = std::lower_bound(all, end, first, is_before);
            return {from, std::lower_bound(from, end, first + kRangeRows, is_before)};
        }
    };

    const Variant &variant_;
    const patchcaption_bank &bank_;
    const QueryBatch &batch_;
    int64_t top_k_;
    std::vector<ChosenRows> queries_;
    std::vector<ThreadSums> sums_of_;  // of each thread
};

}  // namespace patchcaption
