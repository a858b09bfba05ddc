#!/usr/bin/env bash
# Makes .venv/ in this folder and starts the common jobs. Nothing is set up outside this folder.
#
#   bash startup.sh [setup] [--dev] [--bench] …  the environment only; with the extras of pyproject.toml that are named
#   bash startup.sh demo [--out DIR] [settings]  trains a preference classifier on real reviews, two processes
#   bash startup.sh test [pytest arguments]      the tests; --quick: a third of them, in a minute on two idle cores;
#                                                --long: tests/long, hours (KILLS=20 MANGLED=200: fewer of those)
#   bash startup.sh smoke [--device xpu]         two steps, save, resume, predict: does this machine work?
#   bash startup.sh check [--device xpu]         ten minutes: does a new GPU train as it should? A JSON line an item
#   bash startup.sh plan                         says what would be done, and stops
#   bash startup.sh help
#
# Run again at any time: a finished environment is recognised in well under a second, a half-made one is made again.
#   ABLATE_DEVICE=cpu|cuda|xpu|mps   instead of what is found
#   ABLATE_PYTHON=/path/to/python    instead of the first fitting one on the PATH
#   ABLATE_FLASH_ATTN=1              also tries to install flash-attn (NVIDIA; may compile for an hour)
#   ABLATE_TORCH_INDEX=URL           a mirror of PyTorch's package index
#   ABLATE_UV=0                      pip, although uv is on the PATH
set -euo pipefail

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD
root=${ABLATE_FAKE_ROOT:-}   # the tests put a made-up /sys and /dev there
log=.venv/setup.log
stamp=.venv/ablate-ready     # written last: what the environment was made for
unfinished=.venv/unfinished  # there while anything is being installed
torch_index=${ABLATE_TORCH_INDEX:-https://download.pytorch.org/whl}
unset PIP_USER PIP_TARGET PIP_PREFIX PYTHONHOME PYTHONPATH   # they would send packages, or imports, elsewhere
export PYTHONNOUSERSITE=1

say() { printf 'startup: %s\n' "$*"; }
warn() { printf 'startup: warning: %s\n' "$*" >&2; }
die() { printf 'startup: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------- hardware

# Sets device, build (which torch serves it), gpus (how many a run may use) and found (for people).
detect() {
    device=cpu build=cpu gpus=0 found='no GPU that PyTorch could use' hint=''
    case ${ABLATE_DEVICE:-auto} in
        auto) find_nvidia || find_intel || find_apple || true ;;
        cpu) found='ABLATE_DEVICE=cpu' ;;
        cuda) find_nvidia || { device=cuda build=cuda13 gpus=1 found='ABLATE_DEVICE=cuda, though nvidia-smi shows no GPU'; } ;;
        xpu) find_intel || true; device=xpu build=xpu hint=''
             [ "$gpus" -gt 0 ] || { gpus=1 found='ABLATE_DEVICE=xpu'; } ;;
        mps) device=mps gpus=1 found='ABLATE_DEVICE=mps' ;;
        *) die "ABLATE_DEVICE or --device is '$ABLATE_DEVICE'; it can be auto, cpu, cuda, xpu or mps" ;;
    esac
}

find_nvidia() {
    local smi cards cuda capability
    smi=$(command -v nvidia-smi || true)
    [ -n "$smi" ] || smi=$root/usr/lib/wsl/lib/nvidia-smi   # where WSL keeps it, not always on the PATH
    [ -x "$smi" ] || return 1
    cards=$("$smi" -L 2>/dev/null | grep '^GPU ') || return 1
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        case $CUDA_VISIBLE_DEVICES in ''|-1) found='NVIDIA GPUs hidden by CUDA_VISIBLE_DEVICES'; return 1 ;; esac
        gpus=$(printf '%s\n' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c .)
    else
        gpus=$(printf '%s\n' "$cards" | grep -c .)
    fi
    device=cuda build=cuda13
    cuda=$("$smi" 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9][0-9.]*\).*/\1/p' | head -n 1)
    capability=$("$smi" --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -n | head -n 1)
    # PyPI's torch 2.13 is built for CUDA 13: it needs a driver for 13 (580 or later) and Turing (7.5) or later
    case $cuda in [0-9].*|1[0-2].*) build=cuda12 ;; esac
    case $capability in [0-6].*|7.[0-4]) build=cuda12 ;; esac
    if [ "$build" = cuda12 ]; then
        case $capability in 1[0-9].*) hint="this GPU is too new for torch's CUDA 12 build and this driver too old for the CUDA 13 one: update the driver to 580 or later" ;; esac
    fi
    found="$gpus x $(printf '%s\n' "$cards" | head -n 1 | sed 's/^GPU [0-9]*: //; s/ (UUID.*//')${cuda:+, driver for CUDA $cuda}"
}

# PyTorch runs on discrete Intel GPUs and on the integrated ones from Core Ultra on; older integrated ones look alike
# but are not supported. So: a card off bus 00, or a known device id, and the compute runtime must be there.
find_intel() {
    local node id count=0 runtime=no
    for node in "$root"/sys/class/drm/renderD*; do
        [ "$(cat "$node/device/vendor" 2>/dev/null || true)" = 0x8086 ] || continue
        id=$(cat "$node/device/device" 2>/dev/null || true)
        case $(basename "$(cd "$node/device" 2>/dev/null && pwd -P)") in
            0000:00:*) case $id in 0x7d*|0x64*|0xb0*) ;; *) continue ;; esac ;;   # Meteor, Arrow; Lunar; Panther Lake
        esac
        count=$((count + 1))
        [ -n "$root" ] || [ -w "/dev/dri/${node##*/}" ] ||
            hint="no access to /dev/dri/${node##*/}: sudo gpasswd -a $(id -un) render, then log in again"
    done
    if [ "$count" = 0 ]; then
        [ ! -e "$root/dev/dxg" ] || hint="WSL shows no make of GPU: if it is an Intel Arc, ABLATE_DEVICE=xpu bash startup.sh uses it"
        return 1
    fi
    found="$count x Intel GPU"
    # into a variable first: grep -q leaving early would break the pipe, which pipefail takes for a failure
    runtime=$(PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null || true)
    case $runtime in
        *libze_intel_gpu*) device=xpu build=xpu gpus=$count ;;
        *) found="$found without its compute runtime"
           hint="to use it, install Intel's compute runtime (libze_intel_gpu; the package is libze-intel-gpu1) and run this again"
           return 1 ;;
    esac
}

find_apple() {
    [ "$(uname -s)-$(uname -m)" = Darwin-arm64 ] || return 1
    device=mps gpus=1 found='Apple GPU'
}

# ---------------------------------------------------------------- what there is, what is wanted

find_python() {
    local candidate version seen=''
    if [ -n "${ABLATE_PYTHON:-}" ]; then set -- "$ABLATE_PYTHON"
    else set -- python3 python3.13 python3.12 python3.11 python3.14 python; fi
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        # run it: a name on the PATH may be a stub that only prints advice
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if supported "$version"; then
            python=$(command -v "$candidate") python_version=$version
            return
        fi
        seen="$seen $candidate is $version,"
    done
    die "no Python 3.11 to 3.14 found (${seen:-nothing called ${ABLATE_PYTHON:-python3},} and the packages have wheels for 3.11 to 3.14 only). $(how_to_get_python)"
}

supported() { case $1 in 3.11|3.12|3.13|3.14) ;; *) return 1 ;; esac; }

sudo_() { [ "$(id -u)" = 0 ] || printf 'sudo '; }

how_to_get_python() {
    local name=python3
    if command -v apt-get >/dev/null 2>&1; then
        ! grep -qs 'VERSION_ID="22.04"' /etc/os-release || name=python3.11   # there python3 is 3.10
        printf 'Type:  %s  and run this again.' "$(sudo_)apt-get update && $(sudo_)apt-get install -y $name $name-venv"
    elif command -v dnf >/dev/null 2>&1; then printf 'Type:  %sdnf install -y python3.12  and run this again.' "$(sudo_)"
    elif command -v brew >/dev/null 2>&1; then printf 'Type:  brew install python@3.12  and run this again.'
    else printf 'Install one, or name it: ABLATE_PYTHON=/path/to/python bash startup.sh'; fi
}

fingerprint() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }

venv_version() { .venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# The packages of an extra of pyproject.toml, a line each.
extra() { sed -n "/^$1 = \[/,/^\]/ s/^ *\"\([^\"]*\)\".*/\1/p" pyproject.toml; }

# Sets state to none, half, broken, other (python of an unsupported version), stale or ready.
# $@: extras that are wanted beside demo, which all runs without a hub need
look_at_venv() {
    local have name
    base_key=$( { cat requirements.txt; extra demo; } | fingerprint)
    flash_attn=${ABLATE_FLASH_ATTN:-0}
    venv_python='' why=''
    if [ ! -e .venv ]; then state=none; return; fi
    # an update that had not begun to replace packages (no network, say) has harmed nothing
    if [ -e "$unfinished" ] && { grep -qx new "$unfinished" || grep -qsE '^(Installing collected|Prepared )' "$log"; }; then
        state=half
        return
    fi
    if ! venv_python=$(venv_version); then state=broken; return; fi   # e.g. the volume came back on another image
    if ! supported "$venv_python"; then state=other; return; fi
    state=stale
    have=$(sed -n 's/^build=//p' "$stamp" 2>/dev/null || true)
    if [ -z "$have" ]; then why='it was not made by startup.sh'
    elif [ "$have" != "$build" ] && [ "$device" != cpu ]; then why='its torch is for other hardware'   # any runs on a CPU
    elif ! grep -qx "python=$venv_python" "$stamp"; then why='its Python has changed'
    elif ! grep -qx "base=$base_key" "$stamp"; then why='the requirements have changed'
    elif [ "$flash_attn" = 1 ] && [ "$device" = cuda ] && ! grep -qx 'flash_attn=tried' "$stamp"; then why='flash-attn is wanted'
    else
        for name in "$@"; do
            grep -qx "$name=$(extra "$name" | fingerprint)" "$stamp" || why="packages of the extra $name are missing"
        done
        [ -n "$why" ] || state=ready
    fi
}

# Does the page $1 answer within 3 seconds (and then, within 10, turn out to list $2)?
answers() {
    "$python" - "$1" "$2" 2>/dev/null <<'PY'
import os
import sys
import threading
import urllib.request

url, wanted = sys.argv[1:]
answered, body = threading.Event(), []


def fetch():
    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            answered.set()
            body.append(page.read())
    finally:
        answered.set()  # refused: no need to wait


thread = threading.Thread(target=fetch, daemon=True)  # nothing else limits the look-up of the name
thread.start()
if answered.wait(3):
    thread.join(10)
os._exit(0 if body and wanted.encode() in body[0] else 1)
PY
}

# Sets torch_words (for people), torch_arguments (for pip) and need_gb, the disk that the environment takes.
choose_torch() {
    local version
    version=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' requirements.txt)
    torch_arguments=() torch_words="torch $version from PyPI" need_gb=3
    case $build in
        xpu)
            if answers "$torch_index/xpu/torch/" "torch-$version"; then
                torch_arguments=(--extra-index-url "$torch_index/xpu" $(extra xpu))
                torch_words="torch $version for Intel GPUs from $torch_index/xpu" need_gb=9
                return
            fi
            [ "${ABLATE_DEVICE:-auto}" = auto ] ||
                die "torch for Intel GPUs comes only from $torch_index/xpu, which does not answer. With ABLATE_DEVICE=cpu the CPU is set up."
            warn "$torch_index/xpu does not answer, and only there is torch for Intel GPUs: setting up for the CPU"
            device=cpu build=cpu gpus=0
            choose_torch ;;
        cuda12)
            need_gb=9
            if answers "$torch_index/cu126/torch/" "torch-$version"; then
                torch_arguments=(--extra-index-url "$torch_index/cu126")
                torch_words="torch $version for CUDA 12.6 from $torch_index/cu126"
            else
                warn "this GPU or driver needs torch for CUDA 12 from $torch_index/cu126, which does not answer; PyPI's is for CUDA 13 and may not see the GPU"
            fi ;;
        cuda13) torch_words="$torch_words (CUDA 13)" need_gb=9 ;;
        cpu)
            [ "$(uname -s)" != Darwin ] || return 0   # PyPI's is the CPU and Apple one there
            if answers "$torch_index/cpu/torch/" "torch-$version"; then
                torch_arguments=(--extra-index-url "$torch_index/cpu")
                torch_words="torch $version, CPU wheels from $torch_index/cpu"
            else
                torch_words="$torch_words (PyTorch's CPU index did not answer within 3 seconds; may bring CUDA libraries of 5 GB)"
            fi ;;
    esac
}

free_gb() { df -Pk . | awk 'NR == 2 { printf "%.1f", $4 / 1048576 }'; }

check_disk() {
    local free
    free=$(free_gb)
    awk -v free="$free" -v need="$need_gb" 'BEGIN { exit !(free >= need) }' ||
        die "not enough disk: the environment takes about $need_gb GB, and $here has $free GB free. Free some, or put the project on a larger volume."
    [ -w . ] || die "no permission to write in $here: run this as the owner of the folder, or copy the project to one of yours"
}

# ---------------------------------------------------------------- making the environment

begin() { mkdir -p .venv; printf '%s\n' "$1" >"$unfinished"; : >"$log"; }   # $1: new or update

make_venv() {
    rm -rf .venv
    begin new
    say "making .venv/ with $python (Python $python_version)"
    if [ -n "$uv" ] && "$uv" venv --allow-existing --seed --python "$python" .venv >>"$log" 2>&1; then return; fi
    if "$python" -c 'import ensurepip, venv' >>"$log" 2>&1 && "$python" -m venv .venv >>"$log" 2>&1; then return; fi
    say "this Python cannot put pip into an environment (Debian and Ubuntu keep that in python3-venv): trying without"
    if "$python" -m venv --without-pip .venv >>"$log" 2>&1; then
        bring_pip && return
    else
        bring_virtualenv && return
    fi
    tail -n 20 "$log" >&2
    rm -rf .venv
    die "could not make an environment. Type:  $(sudo_)apt-get update && $(sudo_)apt-get install -y python$python_version-venv  and run this again."
}

has_pip() { .venv/bin/python -m pip --version >>"$log" 2>&1; }

bring_pip() {
    local wheel
    .venv/bin/python -m ensurepip >>"$log" 2>&1 && has_pip && return
    "$python" -m pip --python .venv/bin/python install pip >>"$log" 2>&1 && has_pip && return
    wheel=$(pip_wheel) && .venv/bin/python "$wheel/pip" install --no-index "$wheel" >>"$log" 2>&1 && has_pip
}

# Where even the module venv is missing, virtualenv makes the same. Installed aside, used once.
bring_virtualenv() {
    local wheel
    "$python" -m virtualenv .venv >>"$log" 2>&1 && has_pip && return
    "$python" -m pip install --target .venv/bootstrap virtualenv >>"$log" 2>&1 ||
        { wheel=$(pip_wheel) && "$python" "$wheel/pip" install --target .venv/bootstrap virtualenv >>"$log" 2>&1; } ||
        return 1
    PYTHONPATH=.venv/bootstrap VIRTUALENV_OVERRIDE_APP_DATA=$here/.venv/bootstrap/data \
        "$python" -m virtualenv .venv >>"$log" 2>&1 && has_pip
}

# Prints the path of a pip wheel: one on the disk, else the distribution's own, fetched and unpacked below .venv/
# without rights or traces elsewhere. (Only Debian and its children ship Python without ensurepip, hence apt.)
pip_wheel() {
    local wheel apt=$here/.venv/apt
    for wheel in "$root"/usr/share/python-wheels/pip-*.whl; do [ ! -e "$wheel" ] || { printf '%s' "$wheel"; return; }; done
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    (
        cd "$apt"
        apt_get() { apt-get -q -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" "$@"; }
        own=(-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache")
        apt_get download python3-pip-whl || { apt_get "${own[@]}" update && apt_get "${own[@]}" download python3-pip-whl; }
        for package in python3-pip-whl_*.deb; do dpkg-deb -x "$package" .; done
    ) >>"$log" 2>&1 || return 1
    for wheel in "$apt"/usr/share/python-wheels/pip-*.whl; do [ ! -e "$wheel" ] || { printf '%s' "$wheel"; return; }; done
    return 1
}

# Reads pip's output and shows that something happens: one changing line, or a line every half minute in a log.
progress() {
    local line status=0 latest='resolving versions' drawn='' shown=$SECONDS from=$SECONDS
    while [ "$status" = 0 ] || [ "$status" -gt 128 ]; do   # above 128 a second passed without a line; else the end
        status=0
        IFS= read -r -t 1 line || status=$?
        line=${line#"${line%%[![:space:]]*}"}
        case $line in
            Collecting*|Downloading*|Building*|Preparing*) latest=$line ;;
            Installing\ collected*|Prepared*) latest='unpacking what was downloaded' ;;
        esac
        if [ -t 1 ]; then
            [ "$drawn" = "$SECONDS$latest" ] || printf '\r\033[K  %4d s  %.60s' "$((SECONDS - from))" "$latest"
            drawn=$SECONDS$latest
        elif [ $((SECONDS - shown)) -ge 30 ]; then
            shown=$SECONDS
            printf '  %4d s  %.80s\n' "$((SECONDS - from))" "$latest"
        fi
    done
    [ ! -t 1 ] || printf '\r\033[K'
}

# By uv where it is there, else, or where it fails (it reads none of pip's settings but the index), by pip.
packages_install() {
    if [ -n "$uv" ]; then
        if UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-https://pypi.org/simple}} \
            "$uv" pip install --python .venv/bin/python --index-strategy unsafe-best-match --no-progress "$@" </dev/null 2>&1 |
            tee -a "$log" | progress; then return; fi
        say "uv could not install them: trying pip (log: $log)"
        has_pip || bring_pip || die ".venv/ has no pip and none could be brought: see $log"
    fi
    pip_install "$@"
}

pip_install() {
    .venv/bin/python -m pip --disable-pip-version-check --no-input install --progress-bar off "$@" </dev/null 2>&1 |
        tee -a "$log" | progress
}

explain_failure() {
    local index
    printf '\n--- the last lines of %s\n' "$log" >&2
    tail -n 20 "$log" >&2
    printf -- '---\n' >&2
    index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || printf PyPI)}
    index=$(printf '%s' "$index" | sed 's#//[^/@]*@#//#')   # a name and password in it are nobody's business
    if grep -qi 'no space left on device' "$log"; then
        die "the disk is full: $(free_gb) GB free in $here (pip also needs room in ${TMPDIR:-/tmp})"
    elif grep -qiE 'connection (error|refused|reset|broken)|failed to establish|name resolution|name or service not known|timed out|unreachable|proxyerror|sslerror|max retries' <(tail -n 40 "$log"); then
        die "no network? pip could not reach $index. Check the connection (or PIP_INDEX_URL, https_proxy) and run this again."
    elif grep -qiE 'no matching distribution|resolutionimpossible' "$log"; then
        die "$index ${PIP_NO_INDEX:+(switched off by PIP_NO_INDEX) }has no fitting version of a package (named above) for Python $venv_python on $(uname -sm)"
    fi
    die "pip failed: see $log"
}

# $@: extras beside demo; those that were installed before are kept up to date
install() {
    local packages=() before=$SECONDS line name known
    known=$(sed -n 's/^\([a-z]*\)=[0-9a-f]\{64\}$/\1/p' "$stamp" 2>/dev/null | grep -vx base || true)
    set -- $(printf '%s\n' "$@" $known | sort -u)
    for name in demo "$@"; do packages+=($(extra "$name")); done
    if [ -e "$stamp" ] && ! grep -qx "build=$build" "$stamp" && [ "$device" != cpu ]; then
        say "removing the torch that was made for other hardware"
        rm "$stamp"
        .venv/bin/python -m pip uninstall -q -y torch >>"$log" 2>&1 || "$uv" pip uninstall -q --python .venv/bin/python torch >>"$log" 2>&1 || true
    fi
    # one command for all: the torch pin then binds what sentence-transformers would choose
    say "installing $torch_words; requirements.txt; pyproject.toml's $(printf '%s, ' demo "$@" | sed 's/, $//') (a few minutes; log: $log)"
    packages_install ${torch_arguments[@]+"${torch_arguments[@]}"} -r requirements.txt "${packages[@]}" || explain_failure
    if [ "$flash_attn" = 1 ] && [ "$device" = cuda ]; then
        say "installing flash-attn (may compile for up to an hour; log: $log)"
        if ! packages_install ninja wheel packaging setuptools || ! packages_install --no-build-isolation $(extra cuda); then
            warn "flash-attn could not be installed; PyTorch's own attention (SDPA) is used. See $log"
        fi
    fi
    line=$(check_torch)
    say "installed in $((SECONDS - before)) s: $line"
    {
        printf 'build=%s\npython=%s\nbase=%s\n' "$build" "$venv_python" "$base_key"
        for name in "$@"; do printf '%s=%s\n' "$name" "$(extra "$name" | fingerprint)"; done
        [ "$flash_attn" != 1 ] || printf 'flash_attn=tried\n'
    } >"$stamp.tmp"
    mv "$stamp.tmp" "$stamp"
    rm -f "$unfinished"
}

check_torch() {
    .venv/bin/python - "$device" <<'PY' || die "the packages are installed, but torch cannot be imported (above)"
import sys

import torch

device = sys.argv[1]
line = f"torch {torch.__version__}"
if device == "cpu":
    print(f"{line}, {torch.get_num_threads()} threads")
elif getattr(torch, device).is_available():
    name = "" if device == "mps" else ": " + getattr(torch, device).get_device_name(0)
    print(f"{line} sees {getattr(torch, device).device_count()} {device} device(s){name}")
else:
    fix = {"cuda": "is the driver too old for this build? nvidia-smi shows it",
           "xpu": "is Intel's compute runtime installed, and may you use /dev/dri/renderD*?"}
    print(f"{line} does NOT see a {device} device ({fix.get(device, 'wrong machine?')})")
PY
}

report_plan() {
    say "found $found: $([ "$device" = cpu ] && printf 'the CPU' || printf '%s' "$device") will be used"
    [ -z "$hint" ] || say "note: $hint"
    if grep -qsi microsoft "$root/proc/version" && case $here in /mnt/*) ;; *) false ;; esac; then
        say "note: $here is a Windows disk, slow from WSL; a copy in the Linux home is many times faster"
    fi
}

# $@: extras beside demo. Leaves a ready environment, or ends with a clear line.
ensure() {
    detect
    look_at_venv "$@"
    if [ "$state" = ready ]; then return; fi
    # one at a time: two terminals may start at once. The lock is on this file, so that nothing is left lying about.
    if command -v flock >/dev/null 2>&1 && exec 9<startup.sh; then
        flock -n 9 || { say "another startup.sh is setting up; waiting for it"; flock 9 || true; }
        look_at_venv "$@"
        if [ "$state" = ready ]; then exec 9<&-; return; fi
    fi
    report_plan
    case $state in
        none|half|broken)
            find_python
            choose_torch
            check_disk
            [ "$state" != half ] || say "the .venv/ here was not finished: making it again"
            [ "$state" != broken ] || say "the Python that .venv/ was made with is gone: making it again"
            make_venv
            venv_python=$python_version ;;
        other) die ".venv/ has Python $venv_python; 3.11 to 3.14 is needed. Remove the folder (rm -r .venv) and run this again." ;;
        stale)
            python=$here/.venv/bin/python
            choose_torch
            say "bringing .venv/ up to date: $why"
            begin update
            [ -n "$uv" ] || has_pip || bring_pip ||
                die ".venv/ has no pip and none could be brought: see $log, or remove .venv/ and run this again" ;;
    esac
    rm -rf .venv/apt .venv/bootstrap   # what the two bring_ functions needed
    install "$@"
    exec 9<&- || true
}

plan() {
    detect
    report_plan
    look_at_venv
    if [ "$state" = stale ] || [ "$state" = ready ]; then python=$here/.venv/bin/python python_version=$venv_python
    else find_python; fi
    say "python: $python ($python_version)"
    case $state in
        none) say "environment: .venv/ is to be made" ;;
        half) say "environment: .venv/ is half made and will be made again" ;;
        broken) say "environment: .venv/ has lost its Python and will be made again" ;;
        other) say "environment: .venv/ has Python $venv_python, which does not fit; remove it first" ;;
        stale) say "environment: .venv/ is to be brought up to date: $why" ;;
        ready) say "environment: .venv/ is ready"; return ;;
    esac
    choose_torch
    say "torch: $torch_words"
    say "disk: $need_gb GB wanted, $(free_gb) GB free"
}

# ---------------------------------------------------------------- jobs

# $@: the job and its words. What it does is in commands/jobs.py; here it is only seen which device is wanted.
job() {
    local word before=''
    for word in "$@"; do
        case $word in --device=*) ABLATE_DEVICE=${word#*=} ;; esac
        [ "$before" != --device ] || ABLATE_DEVICE=$word
        before=$word
    done
    case $1 in test) ensure dev ;; *) ensure ;; esac
    word=$1; shift
    exec .venv/bin/python -m commands.jobs "$word" --found "$device:$gpus" --caller "$caller" "$@"
}

# ----------------------------------------------------------------

uv=''
[ "${ABLATE_UV:-1}" = 0 ] || uv=$(command -v uv || true)
command=${1:-setup}
case $command in
    --help) ;;
    --*) command=setup ;;
    *) [ $# -eq 0 ] || shift ;;
esac
case $command in
    setup)
        extras=()
        for name in "$@"; do
            [ "$name" != "${name#--}" ] && [ -n "$(extra "${name#--}")" ] ||
                die "setup knows --$(sed -n 's/^\([a-z]*\) = \[$/\1/p' pyproject.toml | tr '\n' ' ' | sed 's/ *$//; s/ /, --/g'), not '$name'"
            extras+=("${name#--}")
        done
        ensure ${extras[@]+"${extras[@]}"}
        say "ready for $device ($found): .venv/bin/python run_5_models.py --help, or bash startup.sh demo"
        case $device in
            cuda|xpu) say "next, once: bash startup.sh check: does this GPU train as it should? Ten minutes" ;;
        esac ;;
    plan) plan ;;
    demo|test|smoke|check) job "$command" "$@" ;;
    help|-h|--help) sed -n '2,/^set -euo/{/^set -euo/d; s/^# \{0,1\}//; p;}' startup.sh ;;
    *) die "unknown command '$command': it can be setup, demo, test, smoke, check, plan or help" ;;
esac
