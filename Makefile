# Two commands do everything from a fresh clone: `make demo` and `make test`. They need Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
OUT := build/demo
RESULTS ?= build/bench
TABLE = torch,onnxruntime,native,native.int8
FUZZ_SECONDS ?= 600
TESTS = $(BIN)/python -m pytest -n 2 --dist worksteal
export PYTHONDONTWRITEBYTECODE =  # tests start hundreds of processes, and each would compile every module again

.PHONY: demo test test-all lint docs package bench fuzz attack bench-gpu clean

demo: .venv/ready
	mkdir -p $(OUT)
	$(BIN)/cnet-deploy inspect examples/reference-cifar10.pth.tar
	$(BIN)/cnet-deploy convert examples/reference-cifar10.pth.tar -o $(OUT)/model.safetensors --statistics cifar10 --labels examples/cifar10-labels.txt --images examples/cifar10-test-500.bin
	$(BIN)/cnet-deploy export $(OUT)/model.safetensors --onnx -o $(OUT)/model.onnx
	$(BIN)/cnet-deploy verify $(OUT)/model.onnx $(OUT)/model.safetensors --images examples/cifar10-test-500.bin
	$(BIN)/cnet-deploy export $(OUT)/model.safetensors --native -o $(OUT)/model.so
	$(BIN)/cnet-deploy verify $(OUT)/model.so $(OUT)/model.safetensors --images examples/cifar10-test-500.bin
	$(BIN)/cnet-deploy run $(OUT)/model.so examples/images
	$(BIN)/cnet-deploy bench --json $(OUT)/table.json

# What can be shown in seconds, once; `make test-all` has the rest: repeats (more commands to kill, compilers, networks) and what takes long.
test: .venv/ready lint
	$(TESTS) -m "not exhaustive" --hypothesis-profile=quick

test-all: .venv/ready lint
	$(TESTS)

lint: .venv/ready
	$(BIN)/vulture & dead=$$!; $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy; typed=$$?; wait $$dead && exit $$typed

# The API reference, from the docstrings: open build/docs/index.html.
docs: .venv/ready
	rm -rf build/docs
	$(BIN)/python docs/reference.py build/docs

# What a user gets: sdist and wheel, checked, installed into an empty environment, and used there.
package: .venv/ready
	PYTHON=$(BIN)/python bash .ci/package

# Coverage-guided fuzzing of all that reads a stranger's file: FUZZ_SECONDS for each target, what came of it in build/fuzz/results.json.
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz.campaign build/fuzz --seconds $(FUZZ_SECONDS)

# Performance has a suite of its own: long runs, recorded with the machine they ran on.
# ORIGINAL is a checkout of github.com/ShichenLiu/CondenseNet, to measure a training step beside its own layers; CIFAR10 is the folder
# cifar-10-batches-bin, for the accuracy of int8; AUTHORS_V2 is a folder with the networks of CondenseNet V2 as its authors' converter makes
# them, exported as condensenet-v2-a.onnx, -b and -c.
bench: .venv/ready .venv-triton/ready
	mkdir -p $(RESULTS)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[nncf,loadgen]"
	$(BIN)/cnet-deploy bench --backend $(TABLE) --threads 1 --rounds 20 --json $(RESULTS)/table-1-thread.json
	$(BIN)/cnet-deploy bench --backend $(TABLE) --threads 2 --rounds 20 --json $(RESULTS)/table-2-threads.json --html $(RESULTS)/report.html
	$(BIN)/python -m cnet_deploy.benchmarks.studies.overhead $(RESULTS)/overhead.json
	$(BIN)/cnet-deploy bench --family paper,v2 --backend $(TABLE) --threads 2 --rounds 20 --json $(RESULTS)/table-v2-2-threads.json --html $(RESULTS)/report-v2.html
	$(BIN)/python -m cnet_deploy.benchmarks.studies.runtimes $(RESULTS)/native-and-peers.json examples/native/classify.c
	$(BIN)/python -m cnet_deploy.benchmarks.studies.batches $(RESULTS)/batches.json
	if $(BIN)/python -c "import mlperf_loadgen"; then $(BIN)/python -m cnet_deploy.benchmarks.studies.loadgen $(RESULTS)/loadgen.json; fi
	if test -x .venv-triton/bin/perf_analyzer; then $(BIN)/python -m cnet_deploy.benchmarks.studies.serving $(RESULTS)/serving.json .venv-triton; fi
	$(BIN)/python -m cnet_deploy.benchmarks.studies.condensenet_v2 $(RESULTS)/v2-and-peers.json $(if $(AUTHORS_V2),"$(AUTHORS_V2)")
	if test -d "$(CIFAR10)"; then $(BIN)/cnet-deploy compare examples/reference-cifar10.pth.tar --data "$(CIFAR10)" --statistics cifar10 --backend onnxruntime,openvino,native --precision fp32,int8 --rounds 20 --json $(RESULTS)/compare-example.json --html $(RESULTS)/compare-example.html; fi
	if test -d "$(ORIGINAL)"; then $(BIN)/python -m cnet_deploy.benchmarks.studies.training_step $(RESULTS)/training.json "$(ORIGINAL)"; fi

# A bad day, at length: every command killed a hundred times in each way, and what else tests/attacks has for it.
attack: .venv/ready
	CNET_KILLS=100 $(BIN)/python -m pytest -s tests/attacks/test_bounds.py tests/attacks/test_kills.py tests/attacks/test_full_disks.py tests/attacks/test_two_writers.py \
		tests/attacks/test_links.py tests/attacks/test_bad_days.py

# The same table on the GPU: needs a CUDA device and the extra for it (gpu or rtx).
bench-gpu: .venv/ready
	mkdir -p $(RESULTS)
	$(BIN)/cnet-deploy bench --device cuda --batch 1,8,64,256 --rounds 20 --json $(RESULTS)/table-cuda.json --html $(RESULTS)/report-cuda.html

clean:
	rm -rf .venv .venv-triton build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[cpu,dev]"
	touch $@

# The Triton server that tests/serving starts. Without it those tests are skipped.
.venv-triton/ready: pyproject.toml tests/serving/constraints.txt | .venv/ready
	test -x .venv-triton/bin/python || $(PYTHON) -m venv .venv-triton
	$(BIN)/python tests/serving/requirements.py > .venv-triton/requirements.txt
	.venv-triton/bin/python -m pip install --quiet --no-compile --no-deps --disable-pip-version-check \
		--constraint tests/serving/constraints.txt --requirement .venv-triton/requirements.txt
	touch $@
