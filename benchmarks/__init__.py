"""Measurements behind what the documentation claims: `python -m benchmarks NAME --json` runs one and prints it.

Each benchmark is a module with three functions: `add_options(parser)` declares its options, `run(**options)` measures
and returns what JSON can hold, `table(result)` shows that to a person. It is listed in `benchmarks.__main__` and
imported only when it is asked for. Benchmarks may use the product, and nothing uses them.
"""
