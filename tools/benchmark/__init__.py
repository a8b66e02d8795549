"""Measures the server and the copy path beside its peers, in one interleaved run."""
