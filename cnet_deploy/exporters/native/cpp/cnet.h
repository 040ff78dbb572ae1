/* cnet.h: run a CondenseNet that `cnet-deploy export --native` compiled into a shared library.
 *
 *     size_t channels, height, width, classes;
 *     cnet_model *model;
 *     cnet_shape(&channels, &height, &width, &classes);
 *     cnet_create(0, &model);
 *     cnet_prepare(pixels, rows, columns, 3, 0, image, channels * height * width);
 *     cnet_run(model, image, channels * height * width, 1, logits, classes);
 *     cnet_destroy(model);
 *
 * What the network reads. cnet_run takes normalised floats, not bytes: one plane for each channel in the order red, green, blue (one
 * plane for grey; alpha after blue), row by row from the top left. A byte v of channel c is
 *
 *     (v / 255 - mean[c]) / std[c]         in float
 *
 * with the model's own mean and std ("preprocessing" in cnet_describe), so values are about -3 to 3. The image was turned upright (as its
 * EXIF tag says), its shorter side was resized to "resize" pixels (none given: to the shorter side of the input) with "interpolation"
 * (none given: bilinear) and antialiasing, and the centre of "crop" was cut out. cnet_prepare does all of it but decoding and turning, to
 * the bit as `cnet-deploy run` does; docs/preprocessing.md has the arithmetic.
 *
 * Several models in one process. All libraries have functions of the same names, so only one can be linked to a program: of two, the first
 * would answer for both. Open each with dlopen(path, RTLD_NOW | RTLD_LOCAL) and take its functions with dlsym. A handle given to another
 * model's library is CNET_BAD_HANDLE.
 *
 * Every call returns a status and touches nothing of the caller's but what it is given: no global state, no output, no exit, no
 * exception. Any number of handles may live at once. One handle serves one call at a time: others wait for their turn.
 * examples/native/ has a program that classifies an image and an HTTP server.
 */
#ifndef CNET_H
#define CNET_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define CNET_API __attribute__((visibility("default")))
#else
#define CNET_API
#endif

#define CNET_API_VERSION 3u
#define CNET_MAX_THREADS 32

typedef enum cnet_status {
    CNET_OK = 0,
    CNET_NULL_POINTER = 1,
    CNET_BAD_HANDLE = 2,      /* not from this library's cnet_create, or destroyed already (certain in debug builds, best effort in others) */
    CNET_BAD_THREADS = 3,     /* outside 0 .. CNET_MAX_THREADS */
    CNET_BAD_BATCH = 4,       /* zero images */
    CNET_BAD_SHAPE = 5,       /* the number of floats is not what the batch needs */
    CNET_UNSUPPORTED_CPU = 6, /* this processor lacks the instructions that the file, or the call, asks for */
    CNET_UNKNOWN_ISA = 7,     /* the file carries no code of that name */
    CNET_NO_MEMORY = 8,
    CNET_NO_THREAD = 9,       /* the system refused to start a thread */
    CNET_FORKED = 10,         /* the handle was made before fork(): its threads are not in this process; create one here */
    CNET_BAD_IMAGE = 11,      /* no pixels, not 1, 3 or 4 channels, rows shorter than their pixels, or too large when resized */
    CNET_BAD_CLASS = 12,      /* the number is not that of a class */
    CNET_BAD_SHARING = 13     /* not one of cnet_sharing */
} cnet_status;

typedef struct cnet_model cnet_model;

/* How the threads of a handle share a batch. The logits are the same to the bit in each way, and the same as those of single images. */
typedef enum cnet_sharing {
    CNET_SHARE_AUTO = 0,   /* images, as many as are the same number for each thread; layers of the rest, or of all where memory is short */
    CNET_SHARE_LAYERS = 1, /* all threads work on one image after the other */
    CNET_SHARE_IMAGES = 2  /* each thread takes whole images, also where there are fewer images than threads */
} cnet_sharing;

/* The version of this interface that the library was built with. A later one only adds calls and statuses: a program runs with a library
 * of at least the version that it was written for. Version 2 added cnet_shape, cnet_class_name and cnet_prepare, version 3 cnet_share,
 * cnet_threads and cnet_memory. */
CNET_API cnet_status cnet_version(uint32_t *version);

/* What the library holds, as JSON that lives as long as the library: architecture, input [channels, height, width], classes,
 * precision, preprocessing, class_names (if they are known), the instruction sets inside, the digest of the checkpoint. */
CNET_API cnet_status cnet_describe(const char **json);

/* What an image and its logits are: channels 1 (grey), 3 (RGB) or 4 (RGBA), height and width in pixels, the number of classes. */
CNET_API cnet_status cnet_shape(size_t *channels, size_t *height, size_t *width, size_t *classes);

/* The name of a class, 0 to classes - 1, in UTF-8; "" if the model has no names. It lives as long as the library. */
CNET_API cnet_status cnet_class_name(size_t number, const char **name);

/* Prepare one image for cnet_run: resize, crop and normalise it, without a handle and from any thread.
 *
 * `pixels` are bytes as decoders give them: `height` rows from the top, of `width` pixels of `channels` bytes: 1 (grey), 3 (red, green,
 * blue) or 4 (red, green, blue, alpha). `row_bytes` is the distance from row to row; 0: width * channels. They are converted to the
 * network's channels: alpha is left out or opaque, grey is repeated, colours become grey as ITU-R 601-2 weighs them. `image_floats` must be
 * channels * height * width of cnet_shape. */
CNET_API cnet_status cnet_prepare(const uint8_t *pixels, size_t height, size_t width, size_t channels, size_t row_bytes, float *image,
                                  size_t image_floats);

/* Make a handle that runs on `threads` threads, the caller's included, and on no more than there are processors that this process may use
 * (by its affinity and its container's quota): with more, threads would wait for some that have no processor. 0: one for each of these
 * processors, at most CNET_MAX_THREADS. The best instructions that both the file and the processor have are chosen. */
CNET_API cnet_status cnet_create(int threads, cnet_model **model);

/* With instructions chosen by name, as "isas" of cnet_describe lists them, and as many threads as are asked for, whatever the processors
 * (0: as in cnet_create): for tests and measurements. */
CNET_API cnet_status cnet_create_for(const char *isa, int threads, cnet_model **model);

/* Which instructions a handle runs on. The name lives as long as the library. */
CNET_API cnet_status cnet_isa(const cnet_model *model, const char **isa);

/* Run `batch` prepared images, [batch, channels, height, width] floats in row-major order, to logits [batch, classes]. `image_floats` and
 * `logit_floats` are the sizes of the two arrays: anything but what the batch needs is refused. NaN in an image gives NaN. */
CNET_API cnet_status cnet_run(cnet_model *model, const float *images, size_t image_floats, size_t batch, float *logits,
                              size_t logit_floats);

/* How the handle's threads share batches from now on; CNET_SHARE_AUTO unless this is called. To take images of its own, each thread but one
 * needs memory of its own: CNET_SHARE_IMAGES reserves it here, and CNET_NO_MEMORY leaves all as it was; CNET_SHARE_AUTO reserves it
 * in the first run that needs it. It is kept until the handle is destroyed. */
CNET_API cnet_status cnet_share(cnet_model *model, cnet_sharing sharing);

/* How many threads the handle runs on, the caller's included. */
CNET_API cnet_status cnet_threads(const cnet_model *model, int *threads);

/* Bytes of memory that the handle has reserved for activations, without the threads' stacks and the weights, which are the library's. */
CNET_API cnet_status cnet_memory(cnet_model *model, size_t *bytes);

/* Stop the threads and free the handle. The caller must see to it that no other call uses the handle. */
CNET_API cnet_status cnet_destroy(cnet_model *model);

#define CNET_TEXT_OF(number) #number
#define CNET_TEXT(number) CNET_TEXT_OF(number)

/* A status in words. */
static inline const char *cnet_message(cnet_status status) {
    switch (status) {
        case CNET_OK: return "done";
        case CNET_NULL_POINTER: return "a pointer is null";
        case CNET_BAD_HANDLE: return "the handle was not made by this library's cnet_create, or was destroyed";
        case CNET_BAD_THREADS: return "the number of threads must be 0 to " CNET_TEXT(CNET_MAX_THREADS);
        case CNET_BAD_BATCH: return "the batch holds no image";
        case CNET_BAD_SHAPE: return "the arrays are not of the size that the batch needs";
        case CNET_UNSUPPORTED_CPU: return "this processor lacks the instructions that the library was built for";
        case CNET_UNKNOWN_ISA: return "the library carries no code for the instructions of that name";
        case CNET_NO_MEMORY: return "out of memory";
        case CNET_NO_THREAD: return "the system refused to start a thread";
        case CNET_FORKED: return "the handle was made before fork(); create one in this process";
        case CNET_BAD_IMAGE: return "the image has no pixels, another number of channels than 1, 3 or 4, or is too long and narrow";
        case CNET_BAD_CLASS: return "there is no class of that number";
        case CNET_BAD_SHARING: return "threads share a batch automatically, by layers or by images";
    }
    return "unknown status";
}

#undef CNET_TEXT
#undef CNET_TEXT_OF

#ifdef __cplusplus
}
#endif

#endif
