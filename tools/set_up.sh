#!/usr/bin/env bash
# Make .venv with torch, the pinned OpenMMLab stack with compiled ops, and this package.
# STACK=openmmlab makes .venv-openmmlab with the original packages instead of the forks.
# Run it through `make`. PYTHON chooses the interpreter. PIP_* variables work as usual.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${STACK:-forks} == forks ]]; then
    venv=.venv
    packages=requirements/mminstall.txt
else
    venv=.venv-$STACK
    packages=requirements/$STACK.txt
fi
python=$PWD/$venv/bin/python
stamp=$venv/.set-up
constraints=requirements/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1

pinned() { sed -n "s/^$1==//p" "$constraints"; }
mmcv_name=$(grep -x '.*mmcv' "$packages")
mmcv=$(pinned "$mmcv_name")

step() { printf '[set-up] %s\n' "$*"; }

fail() {
    printf '\n[set-up] stopped: %s\n' "$1" >&2
    shift
    if (($#)); then printf '         %s\n' "$@" >&2; fi
    exit 1
}

pip_install() {
    "$python" -m pip install --constraint "$constraints" "$@" ||
        fail "pip could not install: $*" 'Its own message is above. Run make again to go on.'
}

version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

suits() { [[ $(version_of "$1") =~ ^3\.1[012]\. ]]; }

choose_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        suits "$PYTHON" || fail "PYTHON=$PYTHON is $(version_of "$PYTHON" ||
            echo 'not an interpreter that runs'); Python 3.10, 3.11 or 3.12 is needed." \
            'Try: make PYTHON=/path/to/python3.11'
        echo "$PYTHON"
        return
    fi
    # A name on PATH may be a shim of a version manager that fails when it is run.
    for candidate in python3 python3.11 python3.12 python3.10; do
        if suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10, 3.11 or 3.12 on PATH (python3 is $(version_of python3 ||
        echo missing))." 'Install one, or name it: make PYTHON=/path/to/python3.11'
}

make_venv() {
    local base
    if suits "$python" && "$python" -m pip --version >/dev/null 2>&1; then
        step "$venv is there, Python $(version_of "$python") (remove it to choose another)"
        return
    fi
    base=$(choose_python)
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base has no venv module." 'On Debian and Ubuntu: apt-get install python3-venv'
    step "making $venv with Python $(version_of "$base")"
    "$base" -m venv --clear "$venv"
}

is_there() {
    [[ $("$python" -m pip show "$1" 2>/dev/null) == *"Version: $(pinned "$1")"[+$'\n']* ]]
}

mmcv_is_there() {
    is_there "$mmcv_name" &&
        compgen -G "$venv/lib/python3*/site-packages/mmcv/_ext*.so" >/dev/null
}

need_compiler() {
    local compiler=${CXX:-c++} headers
    # CXX may carry arguments (g++ -m64).
    command -v "${compiler%% *}" >/dev/null ||
        fail "mmcv $mmcv has no prebuilt wheel here and there is no C++ compiler ($compiler)." \
            'On Debian and Ubuntu: apt-get install g++ (or set CXX), then run make again.' \
            'With a wheel at hand, add its folder to PIP_FIND_LINKS instead.'
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [[ -e $headers/Python.h ]] ||
        fail "mmcv $mmcv has to be built and $headers/Python.h is missing." \
            'On Debian and Ubuntu: apt-get install python3-dev, then run make again.'
}

# mmcv builds CUDA ops when torch sees a GPU. torch refuses an nvcc of another major version.
need_cuda_toolkit() {
    local wanted toolkit
    wanted=$("$python" -W ignore -c 'import torch
print(torch.cuda.is_available() and torch.version.cuda or "")')
    [[ -n $wanted ]] || return 0
    toolkit=$("$python" -W ignore -c 'from torch.utils.cpp_extension import CUDA_HOME
print(CUDA_HOME or "none")' 2>/dev/null)
    "$toolkit/bin/nvcc" --version 2>/dev/null | grep "release ${wanted%%.*}\." >/dev/null ||
        fail "torch sees a GPU; ops for it need the CUDA toolkit $wanted; found: $toolkit." \
            "Install the toolkit $wanted and set CUDA_HOME to its folder (with bin/nvcc), or," \
            'to work on the CPU alone, export CUDA_VISIBLE_DEVICES= ; then run make again.'
}

build_mmcv() {
    need_compiler
    need_cuda_toolkit
    step "building mmcv $mmcv with its ops from source: 10-20 minutes on two cores"
    # With build isolation mmcv finds no torch and silently builds without ops. The flags
    # remove the debug symbols of Python's own flags, which halves the time. By default
    # mmcv always runs four jobs.
    CFLAGS="${CFLAGS:+$CFLAGS }-g0 -O2" MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
        pip_install --no-deps --no-build-isolation --force-reinstall \
        --no-binary "$mmcv_name" "$@" "$mmcv_name"
}

ops_work() {
    "$python" - 2>&1 <<'EOF'
import torch
from mmcv.ops import nms

device = 'cuda' if torch.cuda.is_available() else 'cpu'
boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 11., 11.]], device=device)
kept = nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.5)[1]
assert kept.tolist() == [0], f'nms kept {kept.tolist()}, not [0]'
EOF
}

# The stack requires two opencv wheels, which overwrite each other in cv2/. Keep the
# headless one: the other fails to import without libGL.so.1 and libglib-2.0.
keep_headless_opencv() {
    "$python" -m pip show -q opencv-python 2>/dev/null || return 0
    "$python" -m pip uninstall -q -y opencv-python opencv-python-headless
    pip_install -q --no-deps opencv-python-headless
}

# Apart from the other packages, where only tests of foundation models look: mmdet imports
# transformers if it can, which adds some 5 s to the start of each process. Without the
# dependency of timm on torchvision: PyPI's does not import beside the CPU build of torch.
install_foundation() {
    step 'installing timm and transformers for tests, 0.2 GB'
    pip_install -q --prefix "$venv/foundation" \
        $(grep -v -e '^#' -e '^timm$' requirements/foundation.txt)
    pip_install -q --prefix "$venv/foundation" --no-deps timm
}

# A cached build may lack its ops or the CUDA ops. A wheel may belong to another torch.
check_ops() {
    local trouble
    if ! trouble=$(ops_work); then
        step "the ops of the mmcv found do not run here (${trouble##*$'\n'})"
        build_mmcv --no-cache-dir
        trouble=$(ops_work) || fail "mmcv was built, its ops do not run: ${trouble##*$'\n'}" \
            "To see the whole error: $venv/bin/python -c 'import mmcv.ops'"
    fi
}

make_venv
rm -f "$stamp"

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
if ! mmcv_is_there; then
    step "looking for a prebuilt wheel of mmcv $mmcv"
    # No output, as usually there is none. This runs before the long downloads, so that a
    # missing compiler stops the set-up at once.
    "$python" -m pip download -q --no-deps --only-binary "$mmcv_name" --dest "$wheels" \
        --constraint "$constraints" "$mmcv_name" >/dev/null 2>&1 || need_compiler
fi

step 'installing the build tools'
pip_install -q -r requirements/build.txt
if ! is_there torch; then
    step "installing torch $(pinned torch): 0.2 GB, on Linux with CUDA some 3 GB"
    pip_install torch
fi
if ! mmcv_is_there; then
    if compgen -G "$wheels/*.whl" >/dev/null; then
        step "installing the prebuilt wheel of mmcv $mmcv"
        pip_install -q --no-deps --force-reinstall "$wheels"/*.whl
    else
        build_mmcv
    fi
fi
step 'installing mmengine, mmdet, mmseg and the tools (about 80 packages)'
pip_install -q -r requirements/runtime.txt -r "$packages" \
    -r requirements/optional.txt -r requirements/tests.txt
keep_headless_opencv
install_foundation
step 'installing kdtoolbox (editable)'
pip_install -q --no-deps --no-build-isolation --editable .
step "trying the ops of mmcv $mmcv"
check_ops
touch "$stamp"
step 'done'
