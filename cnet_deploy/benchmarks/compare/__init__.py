"""One model on every backend and in every precision, side by side: latency, top-1 error, agreement with fp32, file size."""
