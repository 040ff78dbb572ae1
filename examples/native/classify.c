/* Classify an image with a network that `cnet-deploy export --native` compiled:
 *
 *     cc -O2 -I "$(cnet-deploy include)" classify.c model.so -Wl,-rpath,'$ORIGIN' -o classify
 *     ./classify image.ppm
 *
 * The image is a binary PPM (P6) of any size. Prints the best three classes with their logits and names. A program that is linked to a
 * library has one model; server.cpp opens libraries with dlopen, and so any number.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "cnet.h"

static int fail(const char *what) {
    fprintf(stderr, "classify: %s\n", what);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 2) return fail("expected the name of a PPM image");
    FILE *file = fopen(argv[1], "rb");
    size_t w = 0, h = 0, most = 0;
    if (!file || fscanf(file, "P6 %5zu %5zu %5zu", &w, &h, &most) != 3 || most != 255 || fgetc(file) == EOF || w * h == 0 || w * h > (1u << 26))
        return fail("expected a binary PPM image with 8 bits a channel, of at most 64 megapixels");
    uint8_t *pixels = malloc(3 * w * h);
    if (!pixels) return fail("out of memory");
    if (fread(pixels, 3, w * h, file) != w * h) return fail("the image ends too early");
    fclose(file);

    size_t channels, height, width, classes;
    cnet_status status = cnet_shape(&channels, &height, &width, &classes);
    if (status != CNET_OK) return fail(cnet_message(status));
    size_t floats = channels * height * width;
    float *image = malloc(floats * sizeof *image), *logits = malloc(classes * sizeof *logits);
    if (!image || !logits) return fail("out of memory");

    cnet_model *model;
    if ((status = cnet_create(0, &model)) != CNET_OK) return fail(cnet_message(status));
    status = cnet_prepare(pixels, h, w, 3, 0, image, floats);
    if (status == CNET_OK) status = cnet_run(model, image, floats, 1, logits, classes);
    cnet_destroy(model);
    if (status != CNET_OK) return fail(cnet_message(status));

    for (int rank = 0; rank < 3 && (size_t)rank < classes; rank++) {
        size_t best = 0;
        for (size_t c = 1; c < classes; c++)
            if (logits[c] > logits[best]) best = c;
        const char *name = "";
        cnet_class_name(best, &name);
        printf("%zu %.4f %s\n", best, (double)logits[best], name);
        logits[best] = -3e38f;
    }
    free(pixels);
    free(image);
    free(logits);
    return 0;
}
