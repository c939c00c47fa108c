# Every target sets up what it needs; nothing is done twice. `make` alone lists them.

PYTHON ?= python3
# resnet18 (the assignment's), efficientnet-lite0, or auto: what is converted already, otherwise resnet18 if its weights
# are available, otherwise efficientnet-lite0
MODEL ?= auto
# PyTorch's index of builds for CPUs; PyPI's builds for Linux are for GPUs and 3 GB larger: TORCH_INDEX= installs those
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
# the image of `make run`; default: the two in images/
IMAGE ?=
# the image that `make docker` builds and `make docker-run` runs: cpu or gpu; PORT is the port that it listens on
TARGET ?= cpu
PORT ?= 8000
# more options for `docker build` and `docker run`, such as --network=host
BUILD_FLAGS ?=
RUN_FLAGS ?=
# the GPUs for TARGET=gpu; on a host without NVIDIA's Container Toolkit, set none: GPUS=
GPUS ?= all
# the address that `make serve` and `make ray` listen on; a container listens on every address
HOST ?= 127.0.0.1

bin := .venv/bin
# On a terminal it shows its progress, elsewhere only warnings and errors.
pip_install = pip install $$(test ! -t 2 && echo --quiet) --disable-pip-version-check
PHOTOS_URL ?= https://raw.githubusercontent.com/MTailorEng/mtailor_mlops_assessment/1a3464dd1125008f9e1545b34a0b0f0d06247b43
photos := $(addprefix images/photos/,n01440764_tench.jpeg n01632777_axolotl.jpeg)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run serve test fuzz lint format photos bench bench-peers screenshot docker docker-run ray test-ray clean FORCE

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: classifier.onnx  ## convert, start a server, and classify both images, or IMAGE=path/to/image
	@env -u BANANA_MODEL_URL $(bin)/python test_server.py $(if $(IMAGE),"$(IMAGE)",images/*.jpeg)

serve: classifier.onnx  ## serve on http://127.0.0.1:8000 until Ctrl-C
	@HOST=$(HOST) exec $(bin)/python server.py

test: classifier.onnx  ## run every test
	$(bin)/python -m pytest -n 2 --dist loadfile

fuzz: classifier.onnx .venv/fuzz  ## send random input to a server for some minutes
	FUZZ_SCALE=40 $(bin)/python -m pytest tests/serving/test_hostile_*.py
	$(bin)/python -m tests.fuzz_openapi

lint: .venv/installed  ## check style, types, the workflows, the Dockerfile and the shell script
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/zizmor --offline --pedantic --quiet .github
	$(bin)/actionlint -shellcheck $(bin)/shellcheck .github/workflows/*.yml
	$(bin)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(bin)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(bin)/hadolint Dockerfile
	$(bin)/shellcheck .ci/run

format: .venv/installed  ## format the code as lint requires
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

photos: $(photos)  ## download the assignment's own photographs for the preset tests

bench: classifier.onnx  ## measure the server's speed next to PyTorch's and the machine's limit
	$(bin)/python -m benchmarks.bench

bench-peers: classifier.onnx .venv-peers/installed  ## the same, with LitServe and FastAPI under the same load
	$(bin)/python -m benchmarks.bench --peers

screenshot: classifier.onnx  ## take the README's screenshots of the page, docs/page*.png, with Chromium
	$(bin)/python -m tests.screenshot

docker:  ## build the image: TARGET=cpu, or gpu
	docker build --build-arg TARGET=$(TARGET) --build-arg MODEL=$(MODEL) --build-arg PIP_EXTRA_INDEX_URL $(BUILD_FLAGS) \
	    --tag classifier:$(TARGET) .

ray: classifier.onnx .venv-ray/installed  ## serve like `make serve`, on the machines of a Ray cluster
	@HOST=$(HOST) exec .venv-ray/bin/python -m deploy.ray_serve

test-ray: classifier.onnx .venv-ray/installed  ## test that with two nodes on this machine, one of which is lost
	.venv-ray/bin/python -m pytest -W error --noconftest tests/deploy

docker-run: docker  ## serve from the image on http://127.0.0.1:8000, read-only, until Ctrl-C
	docker run --rm --read-only --cap-drop=ALL --security-opt=no-new-privileges --env BANANA_API_KEY \
	    --env PORT=$(PORT) --publish $(PORT):$(PORT) $(if $(filter gpu,$(TARGET)),$(GPUS:%=--gpus=%)) $(RUN_FLAGS) classifier:$(TARGET)

clean:  ## remove everything that make created
	rm -rf .venv .venv-peers .venv-ray .make classifier.onnx images/photos

.venv/installed: requirements.txt $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@index='$(TORCH_INDEX)'; \
	if [ -n "$$index" ] && ! $(PYTHON) -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/", timeout=5)' \
	    "$$index" 2>/dev/null; then \
	    echo "$$index cannot be reached: PyTorch comes from PyPI, whose build for Linux is 3 GB larger" >&2; index=; \
	fi; \
	$(bin)/$(pip_install) $${index:+--extra-index-url "$$index"} -r requirements/dev.txt
	@touch $@

.venv/fuzz: .venv/installed
	$(bin)/$(pip_install) -r requirements/fuzz.txt
	@touch $@

.venv-peers/installed: benchmarks/peers/requirements.txt
.venv-ray/installed: requirements/ray.txt $(wildcard requirements/*.txt)
.venv-peers/installed .venv-ray/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/$(pip_install) -r $<
	@touch $@

# The model that was converted last. Newer than classifier.onnx if MODEL names another one; `auto` accepts any.
.make/model: FORCE
	@mkdir -p .make
	@[ '$(MODEL)' = auto ] && [ -s $@ ] || echo '$(MODEL)' | cmp -s - $@ || echo '$(MODEL)' > $@

classifier.onnx: .venv/installed .make/model convert_to_onnx.py model.py pytorch_model.py $(wildcard conversion/*.* runtime/*.py pytorch_model_weights.pth)
	$(bin)/python convert_to_onnx.py --model $(MODEL) --output $@
	@$(bin)/python -c 'from model import OnnxClassifier; print(OnnxClassifier("$@").model_name)' > .make/model
	@touch $@

images/photos/n01440764_tench.jpeg: SHA256 := 98f7e89b26142f7bdb61f3a627dee89729b0bb07a29e9e7f3be9d394c00c6f01
images/photos/n01632777_axolotl.jpeg: SHA256 := 04c86fd7c01c8383c04ff088a65a0e8692e8e4a8fa3169026249607252bc299f
$(photos):
	@mkdir -p .make
	curl --fail --no-progress-meter --connect-timeout 5 --max-time 60 --output .make/$(@F) $(PHOTOS_URL)/$(@F)
	echo "$(SHA256)  .make/$(@F)" | sha256sum --check
	@mkdir -p $(@D) && mv .make/$(@F) $@
