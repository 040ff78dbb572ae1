"""A sweep: models on backends, with numbers of threads and sizes of batches, and the results that come of it."""
