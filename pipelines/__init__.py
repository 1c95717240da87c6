"""The steps from raw logs to top-N lists: each one function, tables in, tables out."""
