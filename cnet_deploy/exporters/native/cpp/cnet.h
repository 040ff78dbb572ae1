/* cnet.h: run a CondenseNet that `cnet-deploy export --native` compiled into a shared library.
 *
 * Every call returns a status and touches nothing of the caller's but what it is given: no global state, no output, no exit, no
 * exception. Any number of handles may live at once. One handle serves one call at a time: others wait for their turn.
 * examples/native/ classifies an image with it.
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

#define CNET_API_VERSION 1u
#define CNET_MAX_THREADS 32

typedef enum cnet_status {
    CNET_OK = 0,
    CNET_NULL_POINTER = 1,
    CNET_BAD_HANDLE = 2,      /* not from cnet_create, or destroyed already (certain in debug builds, best effort in others) */
    CNET_BAD_THREADS = 3,     /* outside 0 .. CNET_MAX_THREADS */
    CNET_BAD_BATCH = 4,       /* zero images */
    CNET_BAD_SHAPE = 5,       /* the number of floats is not what the batch needs */
    CNET_UNSUPPORTED_CPU = 6, /* this processor lacks the instructions that the file, or the call, asks for */
    CNET_UNKNOWN_ISA = 7,     /* the file carries no code of that name */
    CNET_NO_MEMORY = 8,
    CNET_NO_THREAD = 9,       /* the system refused to start a thread */
    CNET_FORKED = 10          /* the handle was made before fork(): its threads are not in this process; create one here */
} cnet_status;

typedef struct cnet_model cnet_model;

/* The version of this interface that the library was built with: compare with CNET_API_VERSION. */
CNET_API cnet_status cnet_version(uint32_t *version);

/* What the library holds, as JSON that lives as long as the library: architecture, input [channels, height, width], classes,
 * precision, preprocessing, the instruction sets inside, the digest of the checkpoint; "class_names", where they are known. */
CNET_API cnet_status cnet_describe(const char **json);

/* Make a handle that runs on `threads` threads, the caller's included; 0: one for each processor that this process may use,
 * at most CNET_MAX_THREADS.
 * The best instructions that both the file and the processor have are chosen. */
CNET_API cnet_status cnet_create(int threads, cnet_model **model);

/* The same with instructions chosen by name, as "isas" of cnet_describe lists them: for tests and measurements. */
CNET_API cnet_status cnet_create_for(const char *isa, int threads, cnet_model **model);

/* Which instructions a handle runs on. The name lives as long as the library. */
CNET_API cnet_status cnet_isa(const cnet_model *model, const char **isa);

/* Run `batch` images, [batch, channels, height, width] floats in row-major order, to logits [batch, classes]. `image_floats` and
 * `logit_floats` are the sizes of the two arrays: anything but what the batch needs is refused. NaN in an image gives NaN. */
CNET_API cnet_status cnet_run(cnet_model *model, const float *images, size_t image_floats, size_t batch, float *logits,
                              size_t logit_floats);

/* Stop the threads and free the handle. The caller must see to it that no other call uses the handle. */
CNET_API cnet_status cnet_destroy(cnet_model *model);

#define CNET_TEXT_OF(number) #number
#define CNET_TEXT(number) CNET_TEXT_OF(number)

/* A status in words. */
static inline const char *cnet_message(cnet_status status) {
    switch (status) {
        case CNET_OK: return "done";
        case CNET_NULL_POINTER: return "a pointer is null";
        case CNET_BAD_HANDLE: return "the handle was not made by cnet_create, or was destroyed";
        case CNET_BAD_THREADS: return "the number of threads must be 0 to " CNET_TEXT(CNET_MAX_THREADS);
        case CNET_BAD_BATCH: return "the batch holds no image";
        case CNET_BAD_SHAPE: return "the arrays are not of the size that the batch needs";
        case CNET_UNSUPPORTED_CPU: return "this processor lacks the instructions that the library was built for";
        case CNET_UNKNOWN_ISA: return "the library carries no code for the instructions of that name";
        case CNET_NO_MEMORY: return "out of memory";
        case CNET_NO_THREAD: return "the system refused to start a thread";
        case CNET_FORKED: return "the handle was made before fork(); create one in this process";
    }
    return "unknown status";
}

#undef CNET_TEXT
#undef CNET_TEXT_OF

#ifdef __cplusplus
}
#endif

#endif
