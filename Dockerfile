# Three images: `docker build --target serve .` is the service, `--target archive` the same with what reads and writes Parquet files,
# `--target train` the trainer with PyTorch.

# Dependencies come first and alone, so that a change of the code does not fetch them again.
FROM python:3.11-slim-bookworm AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml requirements.lock ./
RUN touch README.md LICENSE \
 && python -m venv --without-pip /opt/longwave \
 && pip --python /opt/longwave/bin/python install -c requirements.lock '.[cpu]'


FROM dependencies AS service
COPY README.md LICENSE ./
COPY app app
# Out goes what serving never loads: the client of a model hub that tokenizers asks for, with what only that needs; ONNX Runtime's
# library for C programs (the Python module has its own) and its model tools; numpy's build tools; packages' tests; the trainer's
# command. The last line fails the build if something was needed after all.
RUN pip --python /opt/longwave/bin/python install --no-deps --force-reinstall . \
 && pip --python /opt/longwave/bin/python uninstall --yes \
      huggingface_hub hf-xet httpx2 httpcore2 truststore fsspec filelock tqdm PyYAML \
 && cd /opt/longwave/lib/python3.11/site-packages \
 && rm -r onnxruntime/capi/libonnxruntime.so.* onnxruntime/transformers onnxruntime/tools onnxruntime/quantization \
      numpy/f2py numpy/distutils /opt/longwave/bin/longwave-train \
 && find . -type d -name tests -prune -exec rm -r {} + \
 && /opt/longwave/bin/python -c 'import app.main; app.main.create_app()'


FROM python:3.11-slim-bookworm AS serve
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin longwave
COPY --from=service /opt/longwave /opt/longwave
# There is no Redis in this image: LONGWAVE_REDIS_URL must name one. The bundle is mounted at /bundle. ONNX Runtime reports
# sessions and models to its maker unless it is told not to.
ENV PATH=/opt/longwave/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    LONGWAVE_BUNDLE_DIR=/bundle \
    LONGWAVE_HOST=0.0.0.0 \
    LONGWAVE_PORT=8000 \
    LONGWAVE_LOG_FORMAT=json
EXPOSE 8000
USER 10001
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"LONGWAVE_PORT\"]}/healthz', timeout=2)"]
ENTRYPOINT ["longwave", "serve"]


# pyarrow without what the archive never loads, a third of it: the clients of remote file systems and servers, its own tests, headers
# and sources, and a library's second and third copy (a wheel holds no links).
FROM dependencies AS parquet
RUN pip install --no-deps --target /opt/parquet -c requirements.lock pyarrow \
 && cd /opt/parquet/pyarrow \
 && rm -r tests include includes src libarrow_flight.* libarrow_s3.* libarrow_python.so libarrow_python.so.*.*.* \
 && find . -regextype posix-extended -regex '.*/(_flight|_s3fs|_gcsfs|_azurefs|_hdfs|_orc|_substrait|libarrow_python_flight)\..*' -delete \
 && find . -regextype posix-extended -regex '.*\.(pyx|pxd|pxi)|.*/_pyarrow_cpp_tests\..*' -delete \
 && find /opt/parquet -name __pycache__ -prune -exec rm -r {} +


# The service's image and pyarrow: layers are shared, so that the second image costs the files above. Compose runs the archiver from
# it; `docker run longwave:archive restore` (or rebuild, or import) are the archive's other commands.
FROM serve AS archive
COPY --from=parquet /opt/parquet /opt/longwave/lib/python3.11/site-packages
RUN ["python", "-c", "from app.archive import archive, archiver, histories, imports, rebuild, restore, tables"]
USER root
RUN install -d -o longwave /archive
USER 10001
ENV LONGWAVE_ARCHIVE_DIR=/archive
VOLUME /archive
HEALTHCHECK NONE
ENTRYPOINT ["longwave"]
CMD ["archive", "--follow"]


# PyTorch comes as pip finds it, which on an x86-64 machine is the build for CUDA, several GB; `--build-arg TORCH_WHEELS=URL` names a
# page of wheels to take it from instead, such as PyTorch's own of builds for the CPU. The sources stay in /src and are installed from
# there, as in a checkout: the exporter validates against schema/, which no wheel carries.
FROM dependencies AS trainer
ARG TORCH_WHEELS
RUN ${TORCH_WHEELS:+env PIP_FIND_LINKS=$TORCH_WHEELS} pip --python /opt/longwave/bin/python install -c requirements.lock '.[train,demo]'
COPY README.md LICENSE ./
COPY app app
COPY model model
COPY schema schema
RUN pip --python /opt/longwave/bin/python install --no-deps --force-reinstall --editable .


# Data sets, runs and bundles are in /data. `--entrypoint longwave` runs the demo.
FROM python:3.11-slim-bookworm AS train
RUN useradd --uid 10001 --create-home longwave && install -d -o longwave /data
COPY --from=trainer /opt/longwave /opt/longwave
COPY --from=trainer /src /src
ENV PATH=/opt/longwave/bin:$PATH ORT_DISABLE_TELEMETRY=1
USER 10001
WORKDIR /data
VOLUME /data
ENTRYPOINT ["longwave-train"]


# Without --target, the service.
FROM serve
