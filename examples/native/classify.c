/* Classify an image with a network that `cnet-deploy export --native` compiled:
 *
 *     cc -O2 -I"$(python -c 'import cnet_deploy.exporters.native as n; print(n.INCLUDE)')" classify.c model.so -Wl,-rpath,'$ORIGIN' -o classify
 *     ./classify image.ppm
 *
 * The image is a binary PPM (P6) of the network's size. Prints the best three classes and their logits.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cnet.h"

static int fail(const char *what) {
    fprintf(stderr, "classify: %s\n", what);
    return 1;
}

/* Three numbers of a list in the library's description, as "mean": [0.49, 0.48, 0.45]. */
static int triple(const char *json, const char *key, float out[3]) {
    const char *at = strstr(json, key);
    return at && sscanf(at + strlen(key), " [%f, %f, %f", &out[0], &out[1], &out[2]) == 3;
}

int main(int argc, char **argv) {
    if (argc != 2) return fail("expected the name of a PPM image");
    const char *json, *count;
    float input[3], mean[3], std[3];
    cnet_status status = cnet_describe(&json);
    if (status != CNET_OK) return fail(cnet_message(status));
    if (triple(json, "\"input\":", input) && input[0] != 3) return fail("expected a network that reads RGB images");
    if (!triple(json, "\"input\":", input) || !triple(json, "\"mean\":", mean) || !triple(json, "\"std\":", std) ||
        !(count = strstr(json, "\"classes\": ")))
        return fail("the library does not describe itself");
    size_t height = (size_t)input[1], width = (size_t)input[2], area = height * width;
    size_t classes = strtoul(count + 11, 0, 10);

    FILE *file = fopen(argv[1], "rb");
    size_t w = 0, h = 0;
    if (!file || fscanf(file, "P6 %zu %zu 255", &w, &h) != 2 || w != width || h != height || fgetc(file) == EOF)
        return fail("expected a binary PPM of the network's size");
    unsigned char *pixels = malloc(3 * area);
    float *image = malloc(3 * area * sizeof *image), *logits = malloc(classes * sizeof *logits);
    if (!pixels || !image || !logits) return fail("out of memory");
    if (fread(pixels, 3, area, file) != area) return fail("the image ends too early");
    fclose(file);
    for (size_t i = 0; i < area; i++)
        for (size_t c = 0; c < 3; c++) image[c * area + i] = ((float)pixels[3 * i + c] / 255.0f - mean[c]) / std[c];

    cnet_model *model;
    if ((status = cnet_create(0, &model)) != CNET_OK) return fail(cnet_message(status));
    status = cnet_run(model, image, 3 * area, 1, logits, classes);
    cnet_destroy(model);
    if (status != CNET_OK) return fail(cnet_message(status));
    for (int rank = 0; rank < 3 && (size_t)rank < classes; rank++) {
        size_t best = 0;
        for (size_t c = 1; c < classes; c++)
            if (logits[c] > logits[best]) best = c;
        printf("%zu %.4f\n", best, (double)logits[best]);
        logits[best] = -3e38f;
    }
    free(pixels);
    free(image);
    free(logits);
    return 0;
}
