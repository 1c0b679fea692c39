// A layer as callers of the C interface hold it.
#pragma once

#include "linear_interface.h"
#include "support.h"

struct patchcaption_linear {
    const patchcaption::Packing *packing = nullptr;
    patchcaption::LinearLayer layer{};
    patchcaption::AlignedArray<char> weights;
    patchcaption::AlignedArray<float> scales, biases, norm_weights, norm_biases;
};
