"""Changing weights from feedback: objectives, examples, adapters, the loop, and runs that survive."""
