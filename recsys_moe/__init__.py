"""A multi-gate mixture-of-experts ranking model: experts per user segment, sparse routing, balanced load."""
