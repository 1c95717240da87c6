#!/usr/bin/env bash
# Makes .venv-peers with the libraries that benchmarks/training.py is measured beside. They have an environment of
# their own, so that their needs and ours do not meet. The stamp is written last: without it .venv-peers is made anew.
#
#   PYTHON       the Python to make it with; if unset, .venv's
#   TORCH_INDEX  the package index to take torch from; if unset, pip's own
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv-peers STAMP=.venv-peers/.ready LOG=var/setup_peers.log
readonly PEERS=(torch-rechub==0.9.0 deepctr-torch==0.3.0)
# What they import to train an MMoE, at versions that work together; packaging stands in for a part of pip.
readonly NEEDS=(numpy==2.4.6 pandas==3.1.1 scikit-learn==1.9.1 tqdm==4.70.1 packaging==26.3)
TORCH=$(grep -o '"torch==[^"]*"' pyproject.toml | tr -d '"')
readonly TORCH

fail() {
  printf 'setup_peers: %s\n' "$1" >&2
  exit 1
}

# step TITLE COMMAND…: runs it quietly, and shows how a failure ended.
step() {
  local title=$1 started=$SECONDS
  shift
  printf 'setup_peers: %s … ' "$title"
  if ! "$@" >>"$LOG" 2>&1; then
    printf 'failed\n'
    tail -n 15 "$LOG" >&2
    fail "could not install: $title; the whole log is $LOG"
  fi
  printf '%d s\n' $((SECONDS - started))
}

pip_install() {
  "$VENV/bin/python" -m pip install --retries 5 --no-input --no-compile --progress-bar off "$@"
}

main() {
  exec 9<scripts/setup_peers.sh
  flock 9
  local wanted
  wanted=$(printf '%s\n' "$PWD" "$TORCH" "${PEERS[@]}" "${NEEDS[@]}")
  if [[ -f $STAMP && $(<"$STAMP") == "$wanted" ]]; then
    echo "setup_peers: $VENV is ready"
    return
  fi
  mkdir -p "$(dirname "$LOG")"
  : >"$LOG"
  rm -rf "$VENV"
  step "$VENV" "${PYTHON:-.venv/bin/python}" -m venv "$VENV"
  # First and by itself: the peers ask for no version, and would bring in whichever is newest.
  step "$TORCH" pip_install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
  step "${NEEDS[*]}" pip_install "${NEEDS[@]}"
  step "${PEERS[*]}" pip_install --no-deps "${PEERS[@]}"
  printf '%s\n' "$wanted" >"$STAMP"
  echo "setup_peers: ready; now: .venv/bin/python -m benchmarks training"
}

main
