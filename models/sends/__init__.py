"""Sending: charges and the attempts made on them, from the first to the last state, without calling a carrier."""
