/* Drives a native library from C, as its users do: built by the tests with sanitizers, for other processors, in debug form.
 *
 *   driver run ISA THREADS BATCH FLOATS CLASSES IMAGES LOGITS   run a batch in each way of sharing it; exit with the status
 *   driver refuse FLOATS CLASSES                                every wrong call; exit 0 if each is refused as cnet.h says
 *   driver many FLOATS CLASSES IMAGES TIMES                     four threads with a handle each, four on one handle, batches of 1 to 7
 *                                                               shared in all ways; all must agree
 *   driver destroyed                                            use a handle after its end (debug builds)
 *   driver fork FLOATS CLASSES                                  use a handle in a child process
 *   driver prepare HEIGHT WIDTH CHANNELS ROW_BYTES PIXELS OUT   prepare an image; exit with the status
 *   driver foreign LIBRARY                                      use another model's library beside this one, and mix up their handles
 */
#define _DEFAULT_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cnet.h"

#define EXPECT(call, status)                                                                                   \
    do {                                                                                                       \
        int got = (int)(call);                                                                                 \
        if (got != (int)(status)) {                                                                            \
            fprintf(stderr, "%s:%d: %s gave %d, expected %d\n", __FILE__, __LINE__, #call, got, (int)(status)); \
            exit(100);                                                                                         \
        }                                                                                                      \
    } while (0)

static float *read_floats(const char *path, size_t count) {
    float *values = malloc(count * sizeof *values);
    FILE *file = fopen(path, "rb");
    if (!values || !file || fread(values, sizeof *values, count, file) != count) exit(101);
    fclose(file);
    return values;
}

static int run(char **a) {
    const char *isa = a[0];
    int threads = atoi(a[1]);
    size_t batch = strtoul(a[2], 0, 10), floats = strtoul(a[3], 0, 10), classes = strtoul(a[4], 0, 10);
    cnet_model *model;
    cnet_status status = strcmp(isa, "best") ? cnet_create_for(isa, threads, &model) : cnet_create(threads, &model);
    if (status != CNET_OK) return (int)status;
    const char *name;
    EXPECT(cnet_isa(model, &name), CNET_OK);
    printf("%s\n", name);
    float *images = read_floats(a[5], batch * floats), *logits = calloc(batch * classes, sizeof *logits);
    float *others = malloc(batch * classes * sizeof *others);
    for (int i = 0; i < 9; i++) {
        memset(others, 0, batch * classes * sizeof *others);
        EXPECT(cnet_run(model, images, batch * floats, batch, i ? others : logits, batch * classes), CNET_OK);
        if (i) EXPECT(memcmp(logits, others, batch * classes * sizeof *others), 0);
        EXPECT(cnet_share(model, (cnet_sharing)((i + 1) % 3)), CNET_OK);
    }
    free(others);
    FILE *file = fopen(a[6], "wb");
    if (!file || fwrite(logits, sizeof *logits, batch * classes, file) != batch * classes) exit(101);
    fclose(file);
    free(images);
    free(logits);
    EXPECT(cnet_destroy(model), CNET_OK);
    return 0;
}

static int refuse(char **a) {
    size_t floats = strtoul(a[0], 0, 10), classes = strtoul(a[1], 0, 10);
    float *images = calloc(2 * floats, sizeof *images), *logits = calloc(2 * classes, sizeof *logits);
    cnet_model *model = (cnet_model *)images;
    uint32_t version = 0;
    const char *text = 0;
    EXPECT(cnet_version(0), CNET_NULL_POINTER);
    EXPECT(cnet_version(&version), CNET_OK);
    EXPECT(version, CNET_API_VERSION);
    EXPECT(cnet_describe(0), CNET_NULL_POINTER);
    EXPECT(cnet_describe(&text), CNET_OK);
    EXPECT(text[0], '{');
    size_t shape[4] = {0};
    EXPECT(cnet_shape(0, &shape[1], &shape[2], &shape[3]), CNET_NULL_POINTER);
    EXPECT(cnet_shape(&shape[0], &shape[1], &shape[2], 0), CNET_NULL_POINTER);
    EXPECT(cnet_shape(&shape[0], &shape[1], &shape[2], &shape[3]), CNET_OK);
    EXPECT(shape[0] * shape[1] * shape[2] == floats && shape[3] == classes, 1);
    EXPECT(cnet_class_name(0, 0), CNET_NULL_POINTER);
    EXPECT(cnet_class_name(classes, &text), CNET_BAD_CLASS);
    EXPECT(cnet_class_name(classes - 1, &text), CNET_OK);
    EXPECT(text != 0, 1);
    static const uint8_t pixels[4 * 4 * 4];
    EXPECT(cnet_prepare(0, 4, 4, 3, 0, images, floats), CNET_NULL_POINTER);
    EXPECT(cnet_prepare(pixels, 4, 4, 3, 0, 0, floats), CNET_NULL_POINTER);
    EXPECT(cnet_prepare(pixels, 4, 4, 3, 0, images, floats - 1), CNET_BAD_SHAPE);
    EXPECT(cnet_prepare(pixels, 0, 4, 3, 0, images, floats), CNET_BAD_IMAGE);
    EXPECT(cnet_prepare(pixels, 4, 0, 3, 0, images, floats), CNET_BAD_IMAGE);
    EXPECT(cnet_prepare(pixels, (size_t)-1, 4, 3, 0, images, floats), CNET_BAD_IMAGE);
    EXPECT(cnet_prepare(pixels, 4, (size_t)-1, 3, 0, images, floats), CNET_BAD_IMAGE);
    EXPECT(cnet_prepare(pixels, 4, 4, 2, 0, images, floats), CNET_BAD_IMAGE);
    EXPECT(cnet_prepare(pixels, 4, 4, 5, 0, images, floats), CNET_BAD_IMAGE);
    EXPECT(cnet_prepare(pixels, 4, 4, 3, 11, images, floats), CNET_BAD_IMAGE);
    EXPECT(cnet_prepare(pixels, 1, 1 << 24, 3, 0, images, floats), CNET_BAD_IMAGE);
    EXPECT(cnet_prepare(pixels, 4, 4, 3, 16, images, floats), CNET_OK);
    EXPECT(cnet_prepare(pixels, 1, 1, 1, 0, images, floats), CNET_OK);
    memset(images, 0, floats * sizeof *images);
    EXPECT(cnet_create(1, 0), CNET_NULL_POINTER);
    EXPECT(cnet_create(-1, &model), CNET_BAD_THREADS);
    EXPECT(model == 0, 1);
    EXPECT(cnet_create(CNET_MAX_THREADS + 1, &model), CNET_BAD_THREADS);
    EXPECT(cnet_create_for("no-such", 1, &model), CNET_UNKNOWN_ISA);
    EXPECT(cnet_create_for(0, 1, &model), CNET_NULL_POINTER);
    EXPECT(cnet_create(0, &model), CNET_OK);
    EXPECT(cnet_isa(0, &text), CNET_NULL_POINTER);
    EXPECT(cnet_isa(model, 0), CNET_NULL_POINTER);
    EXPECT(cnet_run(0, images, floats, 1, logits, classes), CNET_NULL_POINTER);
    EXPECT(cnet_run(model, 0, floats, 1, logits, classes), CNET_NULL_POINTER);
    EXPECT(cnet_run(model, images, floats, 1, 0, classes), CNET_NULL_POINTER);
    EXPECT(cnet_run(model, images, 0, 0, logits, 0), CNET_BAD_BATCH);
    EXPECT(cnet_run(model, images, floats, 2, logits, 2 * classes), CNET_BAD_SHAPE);
    EXPECT(cnet_run(model, images, floats - 1, 1, logits, classes), CNET_BAD_SHAPE);
    EXPECT(cnet_run(model, images, floats + 1, 1, logits, classes), CNET_BAD_SHAPE);
    EXPECT(cnet_run(model, images, floats, 1, logits, classes - 1), CNET_BAD_SHAPE);
    EXPECT(cnet_run(model, images, floats, 1, logits, classes + 1), CNET_BAD_SHAPE);
    EXPECT(cnet_run(model, images, floats, (size_t)-1, logits, classes), CNET_BAD_SHAPE);
    EXPECT(cnet_run(model, images, 2 * floats, 2, logits, 2 * classes), CNET_OK);
    for (int i = CNET_OK; i <= CNET_BAD_SHARING + 1; i++) EXPECT(strlen(cnet_message((cnet_status)i)) > 3, 1);
    char limit[16];
    snprintf(limit, sizeof limit, "0 to %d", CNET_MAX_THREADS);
    EXPECT(strstr(cnet_message(CNET_BAD_THREADS), limit) != 0, 1);
    EXPECT(cnet_share(0, CNET_SHARE_AUTO), CNET_NULL_POINTER);
    EXPECT(cnet_share((cnet_model *)images, CNET_SHARE_AUTO), CNET_BAD_HANDLE);
    EXPECT(cnet_share(model, (cnet_sharing)3), CNET_BAD_SHARING);
    EXPECT(cnet_share(model, (cnet_sharing)-1), CNET_BAD_SHARING);
    size_t bytes = 0, more = 0;
    const char *name;
    EXPECT(cnet_isa(model, &name), CNET_OK);
    int threads = 0;
    EXPECT(cnet_threads(0, &threads), CNET_NULL_POINTER);
    EXPECT(cnet_threads(model, 0), CNET_NULL_POINTER);
    EXPECT(cnet_threads((cnet_model *)images, &threads), CNET_BAD_HANDLE);
    EXPECT(cnet_memory(0, &bytes), CNET_NULL_POINTER);
    EXPECT(cnet_memory(model, 0), CNET_NULL_POINTER);
    EXPECT(cnet_memory((cnet_model *)images, &bytes), CNET_BAD_HANDLE);
    EXPECT(cnet_memory(model, &bytes), CNET_OK);
    EXPECT(bytes > 0, 1);
    EXPECT(cnet_destroy(model), CNET_OK);
    EXPECT(cnet_create_for(name, 3, &model), CNET_OK);
    EXPECT(cnet_threads(model, &threads), CNET_OK);
    EXPECT(threads, 3);
    EXPECT(cnet_memory(model, &bytes), CNET_OK);
    EXPECT(cnet_run(model, images, 2 * floats, 2, logits, 2 * classes), CNET_OK);
    EXPECT(cnet_memory(model, &more), CNET_OK);
    EXPECT(more == bytes, 1);
    EXPECT(cnet_share(model, CNET_SHARE_IMAGES), CNET_OK);
    EXPECT(cnet_memory(model, &more), CNET_OK);
    EXPECT(more > bytes, 1);
    EXPECT(cnet_destroy(0), CNET_NULL_POINTER);
    EXPECT(cnet_destroy((cnet_model *)images), CNET_BAD_HANDLE);
    EXPECT(cnet_destroy(model), CNET_OK);
    free(images);
    free(logits);
    return 0;
}

enum { most_images = 7 };

struct task {
    const char *isa;
    cnet_model *model;
    const float *images;
    size_t floats, classes, times;
    float *logits;
};

static void *repeat(void *argument) {
    struct task *t = argument;
    cnet_model *own = t->model;
    if (!own) EXPECT(cnet_create_for(t->isa, 2, &own), CNET_OK);
    for (size_t i = 0; i < t->times; i++) {
        size_t batch = 1 + i % most_images;
        EXPECT(cnet_share(own, (cnet_sharing)(i % 3)), CNET_OK);
        memset(t->logits, 0, batch * t->classes * sizeof *t->logits);
        EXPECT(cnet_run(own, t->images, batch * t->floats, batch, t->logits, batch * t->classes), CNET_OK);
        for (size_t j = 1; j < batch; j++) EXPECT(memcmp(t->logits, t->logits + j * t->classes, t->classes * sizeof *t->logits), 0);
    }
    if (!t->model) EXPECT(cnet_destroy(own), CNET_OK);
    return 0;
}

static int many(char **a) {
    size_t floats = strtoul(a[0], 0, 10), classes = strtoul(a[1], 0, 10), times = strtoul(a[3], 0, 10);
    float *image = read_floats(a[2], floats), *images = malloc(most_images * floats * sizeof *images);
    for (int i = 0; i < most_images; i++) memcpy(images + i * floats, image, floats * sizeof *images);
    free(image);
    cnet_model *shared;
    EXPECT(cnet_create(1, &shared), CNET_OK);
    const char *isa;
    EXPECT(cnet_isa(shared, &isa), CNET_OK);
    EXPECT(cnet_destroy(shared), CNET_OK);
    EXPECT(cnet_create_for(isa, 3, &shared), CNET_OK);
    struct task task[8];
    pthread_t thread[8];
    for (int i = 0; i < 8; i++) {
        task[i] = (struct task){isa, i < 4 ? 0 : shared, images, floats, classes, times, calloc(most_images * classes, sizeof(float))};
        if (pthread_create(&thread[i], 0, repeat, &task[i])) exit(101);
    }
    for (int i = 0; i < 8; i++) pthread_join(thread[i], 0);
    for (int i = 1; i < 8; i++) EXPECT(memcmp(task[0].logits, task[i].logits, classes * sizeof(float)), 0);
    for (int i = 0; i < 8; i++) free(task[i].logits);
    EXPECT(cnet_destroy(shared), CNET_OK);
    free(images);
    return 0;
}

static int prepare(char **a) {
    size_t size[4], channels, height, width, classes;
    for (int i = 0; i < 4; i++) size[i] = strtoul(a[i], 0, 10);
    size_t bytes = size[0] * (size[3] ? size[3] : size[1] * size[2]);
    EXPECT(cnet_shape(&channels, &height, &width, &classes), CNET_OK);
    size_t floats = channels * height * width;
    uint8_t *pixels = malloc(bytes);
    float *image = malloc(floats * sizeof *image);
    FILE *file = fopen(a[4], "rb");
    if (!pixels || !image || !file || fread(pixels, 1, bytes, file) != bytes) exit(101);
    fclose(file);
    cnet_status status = cnet_prepare(pixels, size[0], size[1], size[2], size[3], image, floats);
    file = fopen(a[5], "wb");
    if (!file || (status == CNET_OK && fwrite(image, sizeof *image, floats, file) != floats)) exit(101);
    fclose(file);
    free(pixels);
    free(image);
    return (int)status;
}

static void *function_of(void *library, const char *name) {
    void *function = dlsym(library, name);
    if (!function) exit(102);
    return function;
}

static int foreign(char **a) {
    void *library = dlopen(a[0], RTLD_NOW | RTLD_LOCAL);
    if (!library) exit(102);
    cnet_status (*other_describe)(const char **), (*other_create)(int, cnet_model **), (*other_destroy)(cnet_model *);
    cnet_status (*other_run)(cnet_model *, const float *, size_t, size_t, float *, size_t);
    cnet_status (*other_isa)(const cnet_model *, const char **), (*other_shape)(size_t *, size_t *, size_t *, size_t *);
    *(void **)&other_describe = function_of(library, "cnet_describe");
    *(void **)&other_create = function_of(library, "cnet_create");
    *(void **)&other_destroy = function_of(library, "cnet_destroy");
    *(void **)&other_run = function_of(library, "cnet_run");
    *(void **)&other_isa = function_of(library, "cnet_isa");
    *(void **)&other_shape = function_of(library, "cnet_shape");
    const char *own_text, *other_text, *isa;
    EXPECT(cnet_describe(&own_text), CNET_OK);
    EXPECT(other_describe(&other_text), CNET_OK);
    EXPECT(strcmp(own_text, other_text) != 0, 1);
    cnet_model *own, *other;
    EXPECT(cnet_create(2, &own), CNET_OK);
    EXPECT(other_create(2, &other), CNET_OK);
    float value = 0;
    EXPECT(cnet_run(other, &value, 1, 1, &value, 1), CNET_BAD_HANDLE);
    EXPECT(other_run(own, &value, 1, 1, &value, 1), CNET_BAD_HANDLE);
    EXPECT(cnet_isa(other, &isa), CNET_BAD_HANDLE);
    EXPECT(other_isa(own, &isa), CNET_BAD_HANDLE);
    EXPECT(cnet_destroy(other), CNET_BAD_HANDLE);
    EXPECT(other_destroy(own), CNET_BAD_HANDLE);
    size_t channels, height, width, classes;
    EXPECT(other_shape(&channels, &height, &width, &classes), CNET_OK);
    float *image = calloc(channels * height * width, sizeof *image), *logits = calloc(classes, sizeof *logits);
    EXPECT(other_run(other, image, channels * height * width, 1, logits, classes), CNET_OK);
    free(image);
    free(logits);
    EXPECT(cnet_destroy(own), CNET_OK);
    EXPECT(other_destroy(other), CNET_OK);
    return 0;
}

static int destroyed(void) {
    cnet_model *model;
    float value = 0;
    const char *name;
    EXPECT(cnet_create(2, &model), CNET_OK);
    EXPECT(cnet_destroy(model), CNET_OK);
    EXPECT(cnet_run(model, &value, 1, 1, &value, 1), CNET_BAD_HANDLE);
    EXPECT(cnet_isa(model, &name), CNET_BAD_HANDLE);
    EXPECT(cnet_destroy(model), CNET_BAD_HANDLE);
    return 0;
}

static int forked(char **a) {
    size_t floats = strtoul(a[0], 0, 10), classes = strtoul(a[1], 0, 10);
    float *images = calloc(floats, sizeof *images), *logits = calloc(classes, sizeof *logits);
    cnet_model *model;
    EXPECT(cnet_create(2, &model), CNET_OK);
    EXPECT(cnet_run(model, images, floats, 1, logits, classes), CNET_OK);
    pid_t child = fork();
    if (child == 0) {
        EXPECT(cnet_run(model, images, floats, 1, logits, classes), CNET_FORKED);
        EXPECT(cnet_destroy(model), CNET_OK);
        EXPECT(cnet_create(2, &model), CNET_OK);
        EXPECT(cnet_run(model, images, floats, 1, logits, classes), CNET_OK);
        EXPECT(cnet_destroy(model), CNET_OK);
        _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    EXPECT(status, 0);
    EXPECT(cnet_run(model, images, floats, 1, logits, classes), CNET_OK);
    EXPECT(cnet_destroy(model), CNET_OK);
    free(images);
    free(logits);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 9 && !strcmp(argv[1], "run")) return run(argv + 2);
    if (argc == 4 && !strcmp(argv[1], "refuse")) return refuse(argv + 2);
    if (argc == 6 && !strcmp(argv[1], "many")) return many(argv + 2);
    if (argc == 2 && !strcmp(argv[1], "destroyed")) return destroyed();
    if (argc == 4 && !strcmp(argv[1], "fork")) return forked(argv + 2);
    if (argc == 8 && !strcmp(argv[1], "prepare")) return prepare(argv + 2);
    if (argc == 3 && !strcmp(argv[1], "foreign")) return foreign(argv + 2);
    return 103;
}
