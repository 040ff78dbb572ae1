// Pixels as a decoder gives them become the floats that the network reads: resized, cropped, normalised. docs/preprocessing.md is the
// specification. Resizing is Pillow's (src/libImaging/Resample.c): the same weights, rounded to 22 bits, the same two passes over bytes,
// horizontal first. Only the pixels of the crop are computed. Compiled once, for the baseline, without fused multiply-adds.
#include <stdlib.h>
#include <string.h>

#include "cnet.h"
#include "plan.h"

using namespace cnet;

namespace {

constexpr int channels = CNET_CHANNELS;
constexpr int precision_bits = 32 - 8 - 2;
constexpr int64_t most_side = 1 << 24;     // of an image: Pillow's boxes are floats
constexpr int64_t most_resized = 1 << 25;  // pixels, as MAX_PIXELS in images/decode.py

// Memory that is freed at the end of the block.
template <typename T>
struct Buffer {
    T *at = nullptr;
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { free(at); }
    bool allocate(int64_t count) { return (at = (T *)malloc((size_t)count * sizeof(T))) != nullptr; }
};

// How the outputs of one axis that are in the crop are made: output i is a weighted sum of `count[i]` inputs from `first[i]` on.
struct Axis {
    int64_t stride = 0;  // of weights
    Buffer<int32_t> first, count, weight;
};

double triangle(double x) {
    if (x < 0) x = -x;
    return x < 1 ? 1 - x : 0;
}

double cubic(double x) {
    constexpr double a = -0.5;
    if (x < 0) x = -x;
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

int64_t ceiling(double x) {
    const int64_t whole = (int64_t)x;
    return (double)whole < x ? whole + 1 : whole;
}

// To the nearest whole number, halves to the even one, as Python's round().
int64_t nearest(double x) {
    const int64_t whole = (int64_t)x;
    const double rest = x - (double)whole;
    return rest > 0.5 || (rest == 0.5 && whole % 2) ? whole + 1 : whole;
}

// An axis of `in` pixels that becomes `out`, of which `kept` from `offset` on are computed.
bool resample(Axis &axis, int64_t in, int64_t out, int64_t offset, int64_t kept, bool bicubic) {
    const double scale = (double)in / (double)out, widened = scale < 1 ? 1 : scale;
    const double support = (bicubic ? 2 : 1) * widened, narrowed = 1 / widened;
    axis.stride = in == out ? 1 : ceiling(support) * 2 + 1;
    Buffer<double> exact;
    if (!axis.first.allocate(kept) || !axis.count.allocate(kept) || !axis.weight.allocate(kept * axis.stride) ||
        !exact.allocate(axis.stride))
        return false;
    for (int64_t i = 0; i < kept; i++) {
        int32_t *const weight = axis.weight.at + i * axis.stride;
        if (in == out) {
            axis.first.at[i] = (int32_t)(offset + i);
            axis.count.at[i] = 1;
            weight[0] = 1 << precision_bits;
            continue;
        }
        const double center = ((double)(offset + i) + 0.5) * scale;
        int64_t first = (int64_t)(center - support + 0.5), last = (int64_t)(center + support + 0.5);
        if (first < 0) first = 0;
        if (last > in) last = in;
        double sum = 0;
        for (int64_t x = 0; x < last - first; x++) {
            const double at = ((double)(x + first) - center + 0.5) * narrowed;
            exact.at[x] = bicubic ? cubic(at) : triangle(at);
            sum += exact.at[x];
        }
        for (int64_t x = 0; x < last - first; x++) {
            const double w = (sum != 0 ? exact.at[x] / sum : exact.at[x]) * (1 << precision_bits);
            weight[x] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
        }
        axis.first.at[i] = (int32_t)first;
        axis.count.at[i] = (int32_t)(last - first);
    }
    return true;
}

uint8_t clipped(int32_t sum) {
    const int32_t value = sum >> precision_bits;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

// A pixel of `given` channels as one of the network's: grey as Pillow weighs it (ITU-R 601-2), alpha opaque where there is none.
void convert(const uint8_t *pixel, size_t given, uint8_t *to) {
    if (channels == 1) {
        to[0] = given == 1 ? pixel[0] : (uint8_t)((pixel[0] * 19595u + pixel[1] * 38470u + pixel[2] * 7471u + 0x8000u) >> 16);
        return;
    }
    for (int c = 0; c < 3; c++) to[c] = pixel[given == 1 ? 0 : c];
    if (channels == 4) to[3] = given == 4 ? pixel[3] : 255;
}

// Colours are weighed by their alpha while they are resized, as in Pillow.
void weigh(uint8_t *pixel) {
    for (int c = 0; c < 3; c++) {
        const unsigned product = (unsigned)pixel[c] * pixel[channels - 1] + 128;
        pixel[c] = (uint8_t)(((product >> 8) + product) >> 8);
    }
}

void unweigh(uint8_t *pixel) {
    const unsigned alpha = pixel[channels - 1];
    if (alpha == 0 || alpha == 255) return;
    for (int c = 0; c < 3; c++) {
        const unsigned value = 255u * pixel[c] / alpha;
        pixel[c] = (uint8_t)(value > 255 ? 255 : value);
    }
}

}  // namespace

extern "C" cnet_status cnet_prepare(const uint8_t *pixels, size_t height, size_t width, size_t given, size_t row_bytes, float *image,
                                    size_t image_floats) {
    if (!pixels || !image) return CNET_NULL_POINTER;
    const int64_t rows = plan.height, columns = plan.width, row = columns * channels;
    if (image_floats != (size_t)(rows * row)) return CNET_BAD_SHAPE;
    if ((given != 1 && given != 3 && given != 4) || height == 0 || width == 0 || height > most_side || width > most_side)
        return CNET_BAD_IMAGE;
    if (row_bytes == 0) row_bytes = width * given;
    if (row_bytes < width * given) return CNET_BAD_IMAGE;

    const Preparation &steps = plan.preparation;
    const int64_t h = (int64_t)height, w = (int64_t)width, shorter = h < w ? h : w, wanted = steps.shorter_side;
    const double up = (double)rows / (double)h, across = (double)columns / (double)w, least = up > across ? up : across;
    const bool enough = least * (double)shorter <= (double)wanted;  // the crop is within the resized image
    int64_t tall = enough ? wanted * h / shorter : nearest((double)h * least);
    int64_t wide = enough ? wanted * w / shorter : nearest((double)w * least);
    if (tall < rows) tall = rows;
    if (wide < columns) wide = columns;
    if (tall > most_resized || wide > most_resized || tall * wide > most_resized) return CNET_BAD_IMAGE;

    Axis x, y;
    const bool bicubic = steps.bicubic != 0, resized = tall != h || wide != w;
    if (!resample(x, w, wide, nearest((double)(wide - columns) / 2), columns, bicubic) ||
        !resample(y, h, tall, nearest((double)(tall - rows) / 2), rows, bicubic))
        return CNET_NO_MEMORY;
    // The part of the given image that the crop is made of.
    const int64_t left = x.first.at[0], right = x.first.at[columns - 1] + x.count.at[columns - 1];
    const int64_t top = y.first.at[0], bottom = y.first.at[rows - 1] + y.count.at[rows - 1];
    Buffer<uint8_t> source, across_done, line;
    Buffer<int32_t> sums;
    if (!source.allocate((right - left) * channels) || !across_done.allocate((bottom - top) * row) || !line.allocate(row) ||
        !sums.allocate(row))
        return CNET_NO_MEMORY;
    for (int64_t i = top; i < bottom; i++) {
        const uint8_t *from = pixels + (size_t)i * row_bytes + (size_t)left * given;
        for (int64_t j = 0; j < right - left; j++) {
            convert(from + (size_t)j * given, given, source.at + j * channels);
            if (channels == 4 && resized) weigh(source.at + j * channels);
        }
        uint8_t *to = across_done.at + (i - top) * row;
        for (int64_t j = 0; j < columns; j++, to += channels) {
            const uint8_t *in = source.at + (x.first.at[j] - left) * channels;
            const int32_t *weight = x.weight.at + j * x.stride;
            int32_t sum[channels];
            for (int c = 0; c < channels; c++) sum[c] = 1 << (precision_bits - 1);
            for (int32_t k = 0; k < x.count.at[j]; k++, in += channels)
                for (int c = 0; c < channels; c++) sum[c] += in[c] * weight[k];
            for (int c = 0; c < channels; c++) to[c] = clipped(sum[c]);
        }
    }

    float normalised[channels][256];
    for (int c = 0; c < channels; c++)
        for (int v = 0; v < 256; v++) normalised[c][v] = ((float)v / 255.0f - steps.mean[c]) / steps.deviation[c];
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < row; j++) sums.at[j] = 1 << (precision_bits - 1);
        for (int32_t k = 0; k < y.count.at[i]; k++) {
            const uint8_t *in = across_done.at + (y.first.at[i] - top + k) * row;
            const int32_t weight = y.weight.at[i * y.stride + k];
            for (int64_t j = 0; j < row; j++) sums.at[j] += in[j] * weight;
        }
        for (int64_t j = 0; j < row; j++) line.at[j] = clipped(sums.at[j]);
        for (int64_t j = 0; j < columns; j++) {
            uint8_t *pixel = line.at + j * channels;
            if (channels == 4 && resized) unweigh(pixel);
            for (int c = 0; c < channels; c++) image[(c * rows + i) * columns + j] = normalised[c][pixel[c]];
        }
    }
    return CNET_OK;
}
