#!/usr/bin/env bash
# Installs SGLang into an environment of its own, so that it runs on a machine without a GPU.
#
#   scripts/install_sglang_cpu.sh [FOLDER]        (default: .venv-sglang)
#
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CONSTRAINT, ...) decide where packages come from. torch is asked
# for as ==2.13.0: with no settings that is PyPI's build, which runs without a GPU but brings gigabytes of GPU libraries
# along. To get the CPU build, let pip see it and pin it:
#
#   echo 'torch==2.13.0+cpu' >constraint.txt
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_CONSTRAINT=$PWD/constraint.txt make install-sglang-cpu
#
# SGLang's own list of requirements names kernels and libraries that exist for GPUs alone; what text models need without
# one is listed here instead. What SGLang imports from the missing ones, r1async/generator/sglang_cpu stands in for.
set -euo pipefail

SGLANG=0.5.23
PYTHON=${PYTHON:-python3}
folder=${1:-.venv-sglang}

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
  echo "SGLang needs Python 3.11 to 3.13: $PYTHON is $("$PYTHON" -V 2>&1); set PYTHON=python3.11" >&2
  exit 1
}
"$PYTHON" -m venv "$folder"
pip=("$folder/bin/python" -m pip install --quiet)

packages=(
  torch==2.13.0 transformers==5.19.0 numpy aiohttp fastapi uvicorn uvloop httpx requests orjson msgspec packaging
  pillow psutil pybase64 pydantic python-multipart pyzmq scipy sentencepiece==0.2.1 setproctitle tiktoken tqdm zstandard
  einops partial_json_parser openai==2.8.0 IPython gguf distro regex watchfiles 'mistral_common>=1.11.5'
  prometheus-client loguru
  # Imported by SGLang, but missing from its requirements.
  dill jsonschema soundfile pycountry pydantic-extra-types
)
# Their own requirements would bring the GPU libraries in. torchaudio stays out: its library does not load without CUDA.
alone=(
  "sglang==$SGLANG" triton==3.9.0 torchvision==0.28.0 xgrammar==0.2.7 apache-tvm-ffi==0.1.11 compressed-tensors==0.18.0
)
echo "installing SGLang $SGLANG into $folder (minutes the first time) ..."
"${pip[@]}" "${packages[@]}"
"${pip[@]}" --no-deps "${alone[@]}"
"$folder/bin/python" -c 'import importlib.metadata as m; print("sglang", m.version("sglang"), "with torch", m.version("torch"))'
