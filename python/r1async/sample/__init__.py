"""Rejection sampling: k completions a prompt from a fixed checkpoint, graded, filtered, written down as a data set."""
