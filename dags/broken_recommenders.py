"""Shows what is wrong with a recommender's YAML as an Airflow import error.

A file of its own: Airflow takes every DAG of a file with an import error out of service, and the others must run on.
"""

from checked_configs import read_all

if problems := read_all()[1]:
    raise ValueError("These recommenders have no DAGs until their YAML is mended:\n  " + "\n  ".join(problems))
