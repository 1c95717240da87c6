"""MMoE of other libraries, each in a process of the environment `.venv-peers`, beside ours (benchmarks.training).

Nothing here imports recsys_moe or pipelines, which are not installed there.
"""

from __future__ import annotations

from collections.abc import Mapping

PEERS: Mapping[str, str] = {"torch-rechub": "torch_rechub", "deepctr-torch": "deepctr_torch"}
"""The module in this package that runs it, by the name of the package on PyPI."""
