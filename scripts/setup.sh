#!/usr/bin/env bash
# Makes .venv with everything the project needs, or brings it up to date. It may be run again at any moment: the stamp
# in .venv is written last, so a .venv without one was interrupted and is made anew (docs/decisions/0001).
#
#   PYTHON       the Python to make it with, 3.11 or newer; if unset, the first such one on PATH
#   TORCH_INDEX  the package index to take torch (and fbgemm, with CUDA) from; if unset, pip's own, or PyTorch's index
#                of CPU builds where pip has only CUDA builds on offer and this machine has no NVIDIA driver
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv STAMP=.venv/.ready LOG=var/setup.log
readonly CPU_INDEX=https://download.pytorch.org/whl/cpu
# pyproject.toml is the one place that names these versions.
TORCH=$(grep -o '"torch==[^"]*"' pyproject.toml | tr -d '"')
FBGEMM_CPU=$(grep -o '"fbgemm-gpu-cpu==[^"]*"' pyproject.toml | tr -d '"')
FBGEMM_CUDA=$(grep -o '"fbgemm-gpu==[^"]*"' pyproject.toml | tr -d '"')
readonly TORCH FBGEMM_CPU FBGEMM_CUDA

fail() {
  printf 'setup: %s\n' "$1" >&2
  exit 1
}

# step TITLE COMMAND…: runs it quietly, a second time if it fails (networks stumble), and shows how a failure ended.
step() {
  local title=$1 started=$SECONDS
  shift
  printf 'setup: %s … ' "$title"
  if ! { "$@" || { sleep 3 && "$@"; }; } >>"$LOG" 2>&1; then
    printf 'failed\n'
    tail -n 15 "$LOG" >&2
    fail "could not install: $title; the whole log is $LOG"
  fi
  printf '%d s\n' $((SECONDS - started))
}

choose_python() {
  local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer (looked for: ${candidates[*]}); install one, or name it: PYTHON=/path/to/python make setup"
}

has_nvidia_driver() {
  [[ -e /proc/driver/nvidia/version || -e /dev/nvidiactl || -e /dev/dxg ]]
}

# What a fresh set-up depends on; if it changes, the next run brings .venv up to date.
fingerprint() {
  cat requirements/*.txt pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1
}

# A virtual environment works only where it was made, and only while its Python is there.
is_complete() {
  [[ -f $STAMP && $(head -n 1 "$STAMP") == "$PWD" ]] && "$VENV/bin/python" -c '' 2>/dev/null
}

pip_install() {
  "$VENV/bin/python" -m pip install --retries 5 --no-input --no-compile --progress-bar off "$@"
}

make_venv() {
  local python
  python=$(choose_python)
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module; on Debian and Ubuntu: apt install $("$python" -c \
      'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  if [[ -e $VENV ]]; then
    echo "setup: removing .venv, which is unfinished, broken or was made elsewhere"
    rm -rf "$VENV"
  fi
  step "$("$python" -V) in .venv" "$python" -m venv "$VENV"
}

pip_offers_only_cuda() {
  pip_install --quiet --dry-run --ignore-installed --no-deps --report - "$TORCH" | "$VENV/bin/python" -c '
import json, sys
(torch,) = json.load(sys.stdin)["install"]
needs = torch["metadata"].get("requires_dist", [])
sys.exit(not any(need.startswith(("nvidia", "cuda", "triton")) for need in needs))'
}

# torch goes in before everything else and from its own index, if one is named; its dependencies come from pip's own.
install_torch() {
  if [[ -n ${TORCH_INDEX:-} ]]; then
    pip_install --no-deps --index-url "$TORCH_INDEX" "$TORCH" || return
  elif ! has_nvidia_driver && pip_offers_only_cuda; then
    # Out of reach is no failure: then the CUDA build comes in, and `check` says so.
    pip_install --timeout 20 --retries 1 --no-deps --index-url "$CPU_INDEX" "$TORCH" || true
  fi
  pip_install uv "$TORCH"
}

# fbgemm's two variants must not be installed side by side, and must be torch's.
install_fbgemm() {
  if "$VENV/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    pip_install --no-deps "$FBGEMM_CPU"
  else
    pip_install --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$FBGEMM_CUDA"
  fi
}

# uv reads none of pip's settings; an index that was named in the environment for pip is meant for it, too.
uv_install() {
  if [[ -n ${PIP_INDEX_URL:-} && -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then
    local -x UV_DEFAULT_INDEX=$PIP_INDEX_URL
  fi
  "$VENV/bin/uv" pip install --no-progress --python "$VENV/bin/python" --no-deps "$@"
}

# Shows that the parts load together. torch and fbgemm of different builds crash here, rather than in a training.
check() {
  "$VENV/bin/python" -W ignore - <<'EOT' 2>>"$LOG" || { tail -n 15 "$LOG" >&2; fail "what was installed does not load; the whole log is $LOG"; }
import torch
import torchrec

import pipelines

print(f"setup: ready: torch {torch.__version__}, torchrec {torchrec.__version__}, CUDA {torch.version.cuda or 'none'}")
EOT
  if ! has_nvidia_driver && compgen -G "$VENV/lib/python3*/site-packages/nvidia" >/dev/null; then
    echo "setup: note: CUDA packages came in although this machine has no NVIDIA driver: no CPU build of torch was on offer." \
      "For one: rm -rf $VENV && TORCH_INDEX=<an index that has one, such as $CPU_INDEX> make setup" >&2
  fi
}

main() {
  [[ $(uname -s) == Linux ]] || fail "fbgemm, which torchrec needs, has wheels for Linux only; use a Linux machine, WSL or a container"
  # One set-up at a time. What pip or uv still does after a kill holds the lock, too.
  exec 9<scripts/setup.sh
  flock --nonblock 9 || { echo "setup: another one is running here, waiting for it" && flock 9; }

  local wanted
  wanted=$(printf '%s\n' "$PWD" "$(fingerprint)")
  if is_complete && [[ $(<"$STAMP") == "$wanted" ]]; then
    echo "setup: .venv is ready"
    return
  fi
  mkdir -p "$(dirname "$LOG")"
  : >"$LOG"
  if is_complete; then
    echo "setup: the requirements have changed, bringing .venv up to date"
    rm "$STAMP"
  else
    rm -f "$STAMP"
    make_venv
  fi
  step "$TORCH" install_torch
  step "requirements/dev.txt" uv_install -r requirements/dev.txt
  step "fbgemm to match" install_fbgemm
  step "recsys-moe itself" uv_install --editable .
  check
  printf '%s\n' "$wanted" >"$STAMP"
}

main
