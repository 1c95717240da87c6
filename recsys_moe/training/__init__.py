"""Fitting a model: one code path for one process and for many, on torchrec. Reports through callbacks.

`loop` walks over epochs, validations and checkpoints; `trainer` is the model and its optimizers, one step at a time;
`objective` turns a batch into the number to descend; `sharding` is what torchrec does with the tables; `state` is the
folder that a killed training goes on from.
"""

from recsys_moe.training.loop import Fitted, fit

__all__ = ["Fitted", "fit"]
