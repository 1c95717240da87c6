"""Airflow and MLflow on this machine: for a person to look at (`up`), and to show that the whole loop runs (`demo`)."""
