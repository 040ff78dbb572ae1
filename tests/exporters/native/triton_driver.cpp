// The server's side of the interface in triton/server.h, for what no real server does on demand: calls that fail, memory that runs out,
// images in pieces, misaligned, or in a GPU. It also shows what the readers of JSON and SHA-256 make of foreign bytes.
//
//     driver json            for each line of hexadecimal digits: the values in it, or ! and why it is no JSON
//     driver sha256          for each such line: its digest
//     driver quota A B       processors of a container
//     driver serve FOLDER VERSION CONFIG IMAGES FAIL EXECUTION...
//
// IMAGES is a file of float32 images. FAIL is the number of the call that fails, of the server's and of malloc's, from 1; 0: none. An
// EXECUTION is requests with commas: how many images, and how they are sent (see `kinds`).
#include <stdio.h>

#include <string>
#include <vector>

#include "../cpp/processors.h"
#include "json.h"
#include "server.h"
#include "sha256.h"

struct TRITONSERVER_Error {
    std::string text;
};
struct TRITONSERVER_Message {
    std::string text;
};
struct TRITONBACKEND_Model {
    std::string name, folder, config;
    uint64_t version;
    void *state;
};
struct TRITONBACKEND_ModelInstance {
    TRITONBACKEND_Model *model;
    void *state;
    int kind;
};
struct Piece {
    const void *at;
    uint64_t size;
    int memory;
};
struct TRITONBACKEND_Input {
    std::vector<Piece> pieces;
    std::vector<int64_t> shape;
    std::vector<char> bytes;
    int type = FP32;
    uint64_t stated = 0;
};
struct TRITONBACKEND_Request {
    TRITONBACKEND_Input input;
    std::vector<const char *> outputs;
    int output_memory = MEMORY_CPU;
    size_t output_shift = 0;
    int sent = 0, released = 0, reported = 0;
    bool answerable = false;
};
struct TRITONBACKEND_Output {
    std::vector<char> bytes;
};
struct TRITONBACKEND_Response {
    TRITONBACKEND_Request *request;
    TRITONBACKEND_Output output;
    bool has_output = false;
    size_t size = 0;
};

namespace {
long calls, fail_at, errors;
uint32_t major_version = 1;
TRITONSERVER_Error *fresh(const std::string &text) {
    errors++;
    return new TRITONSERVER_Error{text};
}
bool fails() { return ++calls == fail_at; }
void require(bool condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "the backend broke a rule: %s (call %ld fails)\n", what, fail_at);
    _exit(9);
}
}  // namespace

#define MAY_FAIL \
    if (fails()) return fresh("no more")

extern "C" {
void *__real_malloc(size_t size);
void *__real_realloc(void *at, size_t size);
int __real_posix_memalign(void **at, size_t alignment, size_t size);
void *__wrap_malloc(size_t size) { return fails() ? nullptr : __real_malloc(size); }
void *__wrap_realloc(void *at, size_t size) { return fails() ? nullptr : __real_realloc(at, size); }
int __real_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags) {
    const int file = fails() ? -1 : __real_memfd_create(name, flags);
    if (file < 0) printf("elsewhere from /tmp\n");
    return file;
}
int __wrap_posix_memalign(void **at, size_t alignment, size_t size) { return fails() ? 12 : __real_posix_memalign(at, alignment, size); }

Error TRITONSERVER_ErrorNew(int, const char *text) { return fresh(text); }
void TRITONSERVER_ErrorDelete(Error error) {
    require(error, "an error that is none is deleted");
    errors--;
    delete error;
}
const char *TRITONSERVER_ErrorMessage(Error error) { return error->text.c_str(); }
Error TRITONSERVER_MessageSerializeToJson(TRITONSERVER_Message *message, const char **text, size_t *size) {
    MAY_FAIL;
    *text = message->text.data();
    *size = message->text.size();
    return nullptr;
}
Error TRITONSERVER_MessageDelete(TRITONSERVER_Message *message) {
    delete message;
    return nullptr;
}
Error TRITONSERVER_LogMessage(int level, const char *, int, const char *text) {
    MAY_FAIL;
    printf("log %d %s\n", level, text);
    return nullptr;
}
Error TRITONBACKEND_ApiVersion(uint32_t *major, uint32_t *minor) {
    MAY_FAIL;
    *major = major_version;
    *minor = 0;
    return nullptr;
}
Error TRITONBACKEND_ModelName(TRITONBACKEND_Model *model, const char **name) {
    MAY_FAIL;
    *name = model->name.c_str();
    return nullptr;
}
Error TRITONBACKEND_ModelVersion(TRITONBACKEND_Model *model, uint64_t *version) {
    MAY_FAIL;
    *version = model->version;
    return nullptr;
}
Error TRITONBACKEND_ModelRepository(TRITONBACKEND_Model *model, int *artifacts, const char **folder) {
    MAY_FAIL;
    *artifacts = FILES;
    *folder = model->folder.c_str();
    return nullptr;
}
Error TRITONBACKEND_ModelConfig(TRITONBACKEND_Model *model, uint32_t, TRITONSERVER_Message **config) {
    MAY_FAIL;
    *config = new TRITONSERVER_Message{model->config};
    return nullptr;
}
Error TRITONBACKEND_ModelState(TRITONBACKEND_Model *model, void **state) {
    *state = model->state;
    return nullptr;
}
Error TRITONBACKEND_ModelSetState(TRITONBACKEND_Model *model, void *state) {
    MAY_FAIL;
    model->state = state;
    return nullptr;
}
Error TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Model **model) {
    MAY_FAIL;
    *model = instance->model;
    return nullptr;
}
Error TRITONBACKEND_ModelInstanceKind(TRITONBACKEND_ModelInstance *instance, int *kind) {
    MAY_FAIL;
    *kind = instance->kind;
    return nullptr;
}
Error TRITONBACKEND_ModelInstanceState(TRITONBACKEND_ModelInstance *instance, void **state) {
    *state = instance->state;
    return nullptr;
}
Error TRITONBACKEND_ModelInstanceSetState(TRITONBACKEND_ModelInstance *instance, void *state) {
    MAY_FAIL;
    instance->state = state;
    return nullptr;
}
Error TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance *, TRITONBACKEND_Request *request, const bool,
                                                  const uint64_t start, const uint64_t compute_start, const uint64_t compute_end,
                                                  const uint64_t end) {
    require(!request->released, "a request is used after it was released");
    require(start <= compute_start && compute_start <= compute_end && compute_end <= end, "its times are not in order");
    request->reported++;
    MAY_FAIL;
    return nullptr;
}
Error TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance *, const uint64_t batch, const uint64_t start,
                                                       const uint64_t compute_start, const uint64_t compute_end, const uint64_t end) {
    require(start <= compute_start && compute_start <= compute_end && compute_end <= end, "the batch's times are not in order");
    printf("batch %llu\n", static_cast<unsigned long long>(batch));
    MAY_FAIL;
    return nullptr;
}
Error TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request *request, const uint32_t index, TRITONBACKEND_Input **input) {
    require(index == 0, "there is one input");
    MAY_FAIL;
    *input = &request->input;
    return nullptr;
}
Error TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request *request, uint32_t *count) {
    MAY_FAIL;
    *count = static_cast<uint32_t>(request->outputs.size());
    return nullptr;
}
Error TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request *request, const uint32_t index, const char **name) {
    MAY_FAIL;
    *name = request->outputs.at(index);
    return nullptr;
}
Error TRITONBACKEND_RequestRelease(TRITONBACKEND_Request *request, uint32_t flags) {
    require(flags == RELEASE_ALL && !request->released, "a request is released twice");
    request->released++;
    return nullptr;
}
Error TRITONBACKEND_InputProperties(TRITONBACKEND_Input *input, const char **name, int *type, const int64_t **shape, uint32_t *dimensions,
                                    uint64_t *bytes, uint32_t *buffers) {
    MAY_FAIL;
    *name = "input";
    *type = input->type;
    *shape = input->shape.data();
    *dimensions = static_cast<uint32_t>(input->shape.size());
    *bytes = input->stated;
    *buffers = static_cast<uint32_t>(input->pieces.size());
    return nullptr;
}
Error TRITONBACKEND_InputBuffer(TRITONBACKEND_Input *input, const uint32_t index, const void **buffer, uint64_t *bytes, int *memory,
                                int64_t *) {
    MAY_FAIL;
    const Piece &piece = input->pieces.at(index);
    *buffer = piece.at;
    *bytes = piece.size;
    *memory = piece.memory;
    return nullptr;
}
Error TRITONBACKEND_ResponseNew(TRITONBACKEND_Response **response, TRITONBACKEND_Request *request) {
    MAY_FAIL;
    request->answerable = true;
    *response = new TRITONBACKEND_Response{request, {}};
    return nullptr;
}
Error TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response *response, TRITONBACKEND_Output **output, const char *name, const int type,
                                   const int64_t *shape, const uint32_t dimensions) {
    require(!strcmp(name, "logits") && type == FP32 && dimensions >= 1 && dimensions <= 2 && shape[0] > 0, "the output is another");
    MAY_FAIL;
    response->has_output = true;
    *output = &response->output;
    return nullptr;
}
Error TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output *output, void **buffer, const uint64_t bytes, int *memory, int64_t *) {
    MAY_FAIL;
    // The response that has this output says where the client wants it.
    auto *response = reinterpret_cast<TRITONBACKEND_Response *>(reinterpret_cast<char *>(output) - offsetof(TRITONBACKEND_Response, output));
    output->bytes.assign(bytes + 16, 0);
    response->size = bytes;
    *buffer = output->bytes.data() + response->request->output_shift;
    *memory = response->request->output_memory;
    return nullptr;
}
Error TRITONBACKEND_ResponseSend(TRITONBACKEND_Response *response, const uint32_t flags, Error error) {
    TRITONBACKEND_Request *request = response->request;
    require(flags == RESPONSE_FINAL && !request->sent && !request->released, "a response is sent twice, or after its request is released");
    request->sent++;
    if (error) {
        printf("error %s\n", error->text.c_str());
    } else {
        printf("logits ");
        for (size_t i = 0; response->has_output && i < response->size; i++)
            printf("%02x", static_cast<unsigned char>(response->output.bytes[request->output_shift + i]));
        printf("\n");
    }
    delete response;
    MAY_FAIL;
    return nullptr;
}

Error TRITONBACKEND_Initialize(TRITONBACKEND_Backend *);
Error TRITONBACKEND_Finalize(TRITONBACKEND_Backend *);
Error TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model *);
Error TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model *);
Error TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance *);
Error TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance *);
Error TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance *, TRITONBACKEND_Request **, const uint32_t);
}

namespace {

std::string file(const char *path) {
    std::string content;
    FILE *opened = fopen(path, "rb");
    require(opened, "a file of the test can't be read");
    char piece[4096];
    for (size_t size; (size = fread(piece, 1, sizeof piece, opened));) content.append(piece, size);
    fclose(opened);
    return content;
}

void print(json::Value value) {
    if (json::is_string(value)) {
        json::Characters characters(value.at + 1, value.end - 1);
        printf("s");
        for (int c; (c = characters.next()) >= 0;) printf("%02x", static_cast<unsigned>(c));
    } else if (json::is_array(value) || json::is_object(value)) {
        putchar(*value.at);
        for (json::Value each = json::next(value, {}); each; each = json::next(value, each)) {
            putchar(' ');
            print(each);
        }
        putchar(value.end[-1]);
    } else {
        fwrite(value.at, 1, static_cast<size_t>(value.end - value.at), stdout);
    }
}

// Lines of hexadecimal digits, each as bytes of its own memory, so that a reader that goes beyond them is seen.
template <class Each>
void lines(Each each) {
    std::string line;
    for (int c; (c = getchar()) != EOF;) {
        if (c != '\n') {
            line.push_back(static_cast<char>(c));
            continue;
        }
        std::vector<char> bytes(line.size() / 2);
        for (size_t i = 0; i < bytes.size(); i++)
            bytes[i] = static_cast<char>(json::hex_digit(line[2 * i]) * 16 + json::hex_digit(line[2 * i + 1]));
        each(bytes.data(), bytes.size());
        putchar('\n');
        fflush(stdout);
        line.clear();
    }
}

// A request for `count` images that begin at `from`.
void fill(TRITONBACKEND_Request &request, const char *from, int64_t count, uint64_t image, bool batched, const std::string &kind) {
    TRITONBACKEND_Input &input = request.input;
    if (batched && kind != "no-dimension") input.shape.push_back(count);  // as Triton has it for a batch of 0
    for (int64_t dim : {3, 32, 32}) input.shape.push_back(dim);
    input.stated = static_cast<uint64_t>(count) * image;
    request.outputs = {"logits"};
    const size_t shift = kind == "misaligned" ? 1 : 0;
    input.bytes.assign(from, from + input.stated);
    input.bytes.insert(input.bytes.begin(), shift, 0);
    const char *at = input.bytes.data() + shift;
    if (kind == "pieces") {
        for (uint64_t had = 0, size = 0; had < input.stated; had += size) {
            size = input.stated - had < 4099 ? input.stated - had : 4099;
            input.pieces.push_back({at + had, size, MEMORY_CPU});
            input.pieces.push_back({nullptr, 0, MEMORY_GPU});
        }
        return;
    }
    input.pieces.push_back({at, input.stated, kind == "gpu" ? MEMORY_GPU : kind == "pinned" ? MEMORY_PINNED : MEMORY_CPU});
    if (kind == "few") input.stated -= 4;                      // states less than it should
    if (kind == "fewer") input.pieces[0].size -= 4;            // has less than it states
    if (kind == "more") input.pieces.push_back(input.pieces[0]);  // has more than it states
    if (kind == "none") input.pieces.clear();
    if (kind == "type") input.type = 10;
    if (kind == "unwanted") request.outputs.clear();
    if (kind == "output-gpu") request.output_memory = MEMORY_GPU;
    if (kind == "output-misaligned") request.output_shift = 1;
}

int ended(Error error) {
    printf("failed %s\n", error->text.c_str());
    TRITONSERVER_ErrorDelete(error);
    require(errors == 0, "an error is not deleted");
    return 0;
}

void execute(TRITONBACKEND_ModelInstance *instance, const std::string &images, const std::string &line, bool batched) {
    const uint64_t image = 3 * 32 * 32 * sizeof(float);
    std::vector<TRITONBACKEND_Request> requests;
    uint64_t first = 0;
    requests.reserve(64);
    for (size_t at = 0; at < line.size();) {
        const size_t end = line.find(',', at) == std::string::npos ? line.size() : line.find(',', at);
        const size_t colon = line.find(':', at);
        const int64_t count = atoll(line.c_str() + at);
        requests.emplace_back();
        fill(requests.back(), images.data() + first * image, count, image, batched, line.substr(colon + 1, end - colon - 1));
        first += static_cast<uint64_t>(count);
        at = end + 1;
    }
    std::vector<TRITONBACKEND_Request *> pointers;
    for (auto &request : requests) pointers.push_back(&request);
    const Error error = TRITONBACKEND_ModelInstanceExecute(instance, pointers.data(), static_cast<uint32_t>(pointers.size()));
    for (auto &request : requests) {
        require(request.released == (error ? 0 : 1), "a request is not released, or is released though the call failed");
        require(request.sent == (!error && request.answerable ? 1 : 0), "a request has no answer");
        require(request.reported == (error ? 0 : 1), "a request is not in the statistics");
    }
    if (error) ended(error);
}

int serve(char **argv, int count) {
    TRITONBACKEND_Model model{"m", argv[0], file(argv[2]), static_cast<uint64_t>(atoll(argv[1])), nullptr};
    const std::string images = file(argv[3]);
    fail_at = atol(argv[4]);
    const bool gpu = getenv("DRIVER_GPU"), batched = !getenv("DRIVER_UNBATCHED");
    if (const char *major = getenv("DRIVER_MAJOR")) major_version = static_cast<uint32_t>(atoi(major));
    if (Error error = TRITONBACKEND_Initialize(nullptr)) return ended(error);
    if (Error error = TRITONBACKEND_ModelInitialize(&model)) return ended(error);
    TRITONBACKEND_ModelInstance instance{&model, nullptr, gpu ? KIND_GPU : KIND_CPU};
    Error error = TRITONBACKEND_ModelInstanceInitialize(&instance);
    if (error) {
        ended(error);
    } else {
        for (int i = 5; i < count; i++) execute(&instance, images, argv[i], batched);
        require(!TRITONBACKEND_ModelInstanceFinalize(&instance), "an instance can't be finalized");
    }
    require(!TRITONBACKEND_ModelFinalize(&model), "a model can't be finalized");
    require(!TRITONBACKEND_Finalize(nullptr), "the backend can't be finalized");
    require(errors == 0, "an error is not deleted");
    printf("calls %ld\n", calls);
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "json") {
        lines([](const char *at, size_t size) {
            const char *fault = json::fault(at, size);
            if (fault) printf("! %s", fault);
            else print(json::value_of(at, size));
        });
        return 0;
    }
    if (what == "sha256") {
        lines([](const char *at, size_t size) {
            Sha256 digest;
            char text[65];
            const size_t half = size / 3;
            digest.add(at, half);
            digest.add(at + half, size - half);
            digest.finish(text);
            printf("%s", text);
        });
        return 0;
    }
    if (what == "quota" && argc == 4) {
        printf("%llu\n", static_cast<unsigned long long>(processors_of(argv[2], argv[3])));
        return 0;
    }
    if (what == "serve" && argc >= 7) return serve(argv + 2, argc - 2);
    return 2;
}
