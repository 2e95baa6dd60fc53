# The few commands of this project. `make demo` and `make test` work on a fresh machine.
#
#   TORCH   which torch to install, e.g. make test TORCH=torch==2.13.0 for one that is pinned
#   PYTHON  the Python that the virtual environment is made with
#   VENV    where the virtual environment goes
#   WORKERS how many tests run at once

PYTHON ?= python3
TORCH ?= torch>=2.10
VENV ?= .venv
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Keeps the installed torch when other packages ask for a newer one.
CONSTRAINT := $(VENV)/constraints.txt
# The environment has what the build needs; without isolation ninja recompiles only what has changed.
INSTALL := $(PIP) install --no-build-isolation -c $(CONSTRAINT)
CXX_FILES = $(foreach folder,csrc csrc/cpu csrc/cuda tests/cpp $(addprefix tests/cuda_emulator,\
    / /runtime /include /include/cuda_emulator),$(wildcard $(addprefix $(folder)/*.,h cuh inc cpp cu)))
SANITIZED := build/sanitized
CUDA := build/cuda

.PHONY: demo test setup check format lint bench report gpu tune sanitize package cuda-check triton-check clean

demo: $(VENV)/.examples  ## trains spiking networks with learnable neuron constants, draws plots
	$(BIN)/python examples/parameter_learning.py $(if $(DATA),--data $(DATA)) $(ARGS)

test: $(VENV)/.test  ## runs all tests, as many at once as there are processors
	$(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

setup: $(VENV)/.dev  ## prepares a clone for development

check: $(VENV)/.dev lint  ## what must pass before a commit
	$(BIN)/python -m pytest -q -n $(WORKERS)

lint: $(VENV)/.dev  ## checks format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.dev  ## formats the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/.bench  ## measures, and appends rows to benchmarks/results
	$(BIN)/python benchmarks/run.py --peers $(ARGS)

report: $(VENV)/.bench  ## writes the reports, figures and README tables from the rows
	$(BIN)/python benchmarks/report.py

gpu:  ## with the Python that is there: builds, tests, sanitizes and measures on a GPU, in 9 minutes
	$(PYTHON) benchmarks/gpu.py $(ARGS)

tune:  ## measures plans for the Triton kernels on a GPU, and writes them into the table of the package
	PYTHONPATH=$(CURDIR) $(PYTHON) benchmarks/tune_triton.py --write $(ARGS)

sanitize: $(VENV)/.test  ## runs the operators' tests with the address and undefined-behaviour sanitizers
	FUSED_LIF_CUDA=0 FUSED_LIF_SANITIZE=1 $(BIN)/python setup.py -q build --build-lib $(SANITIZED) \
	    --build-temp $(SANITIZED)-objects
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    PYTHONPATH=$(SANITIZED) PYTHONSAFEPATH=1 CUDA_EMULATOR_SANITIZE=1 \
	    $(BIN)/pytest -q -s -p no:cacheprovider tests/test_lif_forward.py tests/test_lif_backward.py \
	    tests/test_surrogate.py tests/test_property.py tests/test_events.py tests/test_smooth.py tests/test_recurrent_forward.py \
	    tests/test_recurrent_backward.py tests/test_recurrent_operators.py tests/test_recurrent_operator_messages.py \
	    $(wildcard tests/test_emulated_*.py) \
	    --deselect tests/test_emulated_order.py::test_every_wait_is_needed -k "not triton and not [reference and not reference]"

package: $(VENV)/.test  ## builds and tries wheels, with and without build isolation
	rm -rf build/wheels && mkdir -p build/wheels
	for isolation in "" --no-build-isolation; do \
	    $(PIP) wheel --no-deps $$isolation -w build/wheels/wheel$$isolation . && \
	    $(PIP) install --no-deps --target build/wheels/package$$isolation \
	        build/wheels/wheel$$isolation/fused_lif-*.whl && \
	    (cd build/wheels/package$$isolation && PYTHONPATH=. PYTHONWARNINGS=error \
	        $(abspath $(BIN))/python -m fused_lif.info) || exit 1; \
	done

cuda-check: $(VENV)/.cuda  ## builds the CUDA kernels, inspects what nvcc made of them, loads them; no GPU needed
	FUSED_LIF_CUDA=1 $(BIN)/python setup.py -q build --build-lib $(CUDA)
	$(BIN)/python tests/cuda_binary.py $(CUDA)/fused_lif/_C*.so
	cd $(CUDA) && PYTHONPATH=. PYTHONWARNINGS=error $(abspath $(BIN))/python -m fused_lif.info > info \
	    && cat info && grep -q "CUDA: .*, architectures" info

triton-check: $(VENV)/.test  ## compiles the Triton kernels, inspects what ptxas made of them; no GPU needed
	$(BIN)/python tests/triton_binary.py $(ARGS)

clean:
	rm -rf build dist *.egg-info fused_lif/_C*.so $(VENV)

# ---- the virtual environment ----

$(CONSTRAINT):
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" "setuptools>=77" wheel "pybind11>=2.13" ninja
	$(BIN)/python -c "import torch; print('torch==' + torch.__version__.split('+')[0])" > $@

# Editable: the extension is built into fused_lif/, and edits of Python files need no installation.
$(VENV)/.examples: $(CONSTRAINT) setup.py pyproject.toml $(CXX_FILES)
	$(INSTALL) -e ".[examples]"
	touch $@

$(VENV)/.test: $(CONSTRAINT) setup.py pyproject.toml $(CXX_FILES)
	$(INSTALL) -e ".[test,examples,triton]"
	touch $@

# What these libraries ask for besides (samna, tensorboard, torchaudio) is not needed here.
$(VENV)/.bench: $(CONSTRAINT) setup.py pyproject.toml $(CXX_FILES)
	$(INSTALL) -e ".[benchmarks]" jax loguru pbr
	$(PIP) install --no-deps snntorch==1.0.0 sinabs==3.1.3 spikingjelly==2.0.0
	touch $@

$(VENV)/.cuda: $(VENV)/.test  # cuobjdump does not come with every nvcc
	$(PIP) install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	touch $@

$(VENV)/.dev: $(VENV)/.test .pre-commit-config.yaml
	$(INSTALL) -e ".[dev]"
	-$(BIN)/pre-commit install > /dev/null
	touch $@
