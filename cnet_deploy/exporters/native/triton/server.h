// The part of Triton's C interface for backends (version 1) that this backend calls, declared in our own words. The server provides the
// functions when it loads the backend, so building needs nothing of Triton's.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct TRITONSERVER_Error;
struct TRITONSERVER_Message;
struct TRITONBACKEND_Backend;
struct TRITONBACKEND_Model;
struct TRITONBACKEND_ModelInstance;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Output;

using Error = TRITONSERVER_Error *;  // nullptr: the call succeeded

enum Code : int { INTERNAL = 1, NOT_FOUND = 2, INVALID = 3, UNAVAILABLE = 4, UNSUPPORTED = 5 };
enum Level : int { INFO = 0, WARNING = 1, FAULT = 2 };
enum DataType : int { FP32 = 11 };
enum Memory : int { MEMORY_CPU = 0, MEMORY_PINNED = 1, MEMORY_GPU = 2 };
enum Kind : int { KIND_AUTO = 0, KIND_CPU = 1, KIND_GPU = 2, KIND_MODEL = 3 };
enum Artifacts : int { FILES = 0 };
enum Flags : uint32_t { RESPONSE_FINAL = 1, RELEASE_ALL = 1 };

Error TRITONSERVER_ErrorNew(int code, const char *text);
void TRITONSERVER_ErrorDelete(Error error);
const char *TRITONSERVER_ErrorMessage(Error error);
Error TRITONSERVER_MessageSerializeToJson(TRITONSERVER_Message *message, const char **text, size_t *size);
Error TRITONSERVER_MessageDelete(TRITONSERVER_Message *message);
Error TRITONSERVER_LogMessage(int level, const char *file, int line, const char *text);

Error TRITONBACKEND_ApiVersion(uint32_t *major, uint32_t *minor);

Error TRITONBACKEND_ModelName(TRITONBACKEND_Model *model, const char **name);
Error TRITONBACKEND_ModelVersion(TRITONBACKEND_Model *model, uint64_t *version);
Error TRITONBACKEND_ModelRepository(TRITONBACKEND_Model *model, int *artifacts, const char **folder);
Error TRITONBACKEND_ModelConfig(TRITONBACKEND_Model *model, uint32_t version, TRITONSERVER_Message **config);
Error TRITONBACKEND_ModelState(TRITONBACKEND_Model *model, void **state);
Error TRITONBACKEND_ModelSetState(TRITONBACKEND_Model *model, void *state);

Error TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Model **model);
Error TRITONBACKEND_ModelInstanceKind(TRITONBACKEND_ModelInstance *instance, int *kind);
Error TRITONBACKEND_ModelInstanceState(TRITONBACKEND_ModelInstance *instance, void **state);
Error TRITONBACKEND_ModelInstanceSetState(TRITONBACKEND_ModelInstance *instance, void *state);
Error TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance *instance, TRITONBACKEND_Request *request, const bool success,
                                                  const uint64_t start, const uint64_t compute_start, const uint64_t compute_end,
                                                  const uint64_t end);
Error TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance *instance, const uint64_t batch, const uint64_t start,
                                                       const uint64_t compute_start, const uint64_t compute_end, const uint64_t end);

Error TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request *request, const uint32_t index, TRITONBACKEND_Input **input);
Error TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request *request, uint32_t *count);
Error TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request *request, const uint32_t index, const char **name);
Error TRITONBACKEND_RequestRelease(TRITONBACKEND_Request *request, uint32_t flags);
Error TRITONBACKEND_InputProperties(TRITONBACKEND_Input *input, const char **name, int *type, const int64_t **shape, uint32_t *dimensions,
                                    uint64_t *bytes, uint32_t *buffers);
Error TRITONBACKEND_InputBuffer(TRITONBACKEND_Input *input, const uint32_t index, const void **buffer, uint64_t *bytes, int *memory,
                                int64_t *memory_id);

Error TRITONBACKEND_ResponseNew(TRITONBACKEND_Response **response, TRITONBACKEND_Request *request);
Error TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response *response, TRITONBACKEND_Output **output, const char *name, const int type,
                                   const int64_t *shape, const uint32_t dimensions);
Error TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output *output, void **buffer, const uint64_t bytes, int *memory, int64_t *memory_id);
Error TRITONBACKEND_ResponseSend(TRITONBACKEND_Response *response, const uint32_t flags, Error error);

}  // extern "C"
