# The server as an image: it works as any user, read-only and without capabilities, and listens on $PORT.
#
#     docker build --target cpu --tag classifier:cpu .
#
# The last target, gpu, is what is built where none is named, as Banana's "Deploy from GitHub" does; without a GPU it
# computes on the CPU. An image with a model that fails its test cannot be built.

ARG BASE_IMAGE=python:3.11-slim-bookworm

# -- the ONNX file -------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS converter
# PyTorch for the CPU: what PyPI has for Linux is for GPUs, and several gigabytes.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /convert
COPY requirements/ requirements/
RUN pip install --no-cache-dir --root-user-action=ignore -r requirements/convert.txt
COPY images/ images/
# The brackets: where the weights are not there, they are downloaded.
COPY runtime/ runtime/
COPY conversion/ conversion/
COPY client/ client/
COPY convert_to_onnx.py model.py pytorch_model.py pytorch_model_weights.pt[h] test_onnx.py ./

FROM converter AS convert
ARG MODEL=resnet18
RUN python convert_to_onnx.py --model "${MODEL}" && python test_onnx.py

# -- the packages, without what serving never loads ----------------------------------------------------------------
FROM ${BASE_IMAGE} AS packages
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
FROM ${BASE_IMAGE} AS app
WORKDIR /app
COPY runtime/ runtime/
COPY serving/ serving/
COPY app.py model.py server.py ./
COPY --from=convert /convert/classifier.onnx ./
# Compiled, as pip has done with the packages: a read-only container would compile it anew at every start.
RUN python -m compileall -q . && chmod -R a+rX .

FROM ${BASE_IMAGE} AS serve
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /app
EXPOSE 8000
# Past any proxy that the environment names.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["python", "-Ic", "import os, urllib.request as r; \
r.build_opener(r.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ.get('PORT') or 8000}/healthcheck\")"]
CMD ["python", "server.py"]
# What SageMaker runs in place of that.
RUN printf '#!/bin/sh\nexec python server.py serve\n' > /usr/local/bin/serve && chmod 755 /usr/local/bin/serve

FROM serve AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=app /app ./
USER 65532:65532

FROM serve AS gpu
# Where NVIDIA's is the default runtime, it gives a container no GPU that does not ask for one.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/venv /opt/venv
COPY --from=app /app ./
USER 65532:65532
