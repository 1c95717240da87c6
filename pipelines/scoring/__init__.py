"""Batch scoring: a plan, its shards one by one, and the publication of all of them at once."""
