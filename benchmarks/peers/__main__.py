"""`python -m benchmarks.peers PACKAGE WORKLOAD`, in the environment `.venv-peers`: measure a peer on request."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version

import torch

from benchmarks.peers import PEERS
from benchmarks.peers.worker import Channel
from benchmarks.peers.workload import Workload


def main(package: str, workload: str) -> None:
    """Build the peer's model, then measure what is asked for."""
    channel = Channel()
    torch.manual_seed(0)
    peer = import_module(f"benchmarks.peers.{PEERS[package]}")
    measures = peer.measures(Workload.from_json(workload))
    channel.say(**{package: version(package), "torch": torch.__version__})
    channel.serve(measures)


if __name__ == "__main__":
    main(*sys.argv[1:])
