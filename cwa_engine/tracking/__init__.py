"""Finished runs told to a tracker of experiments. torch-free."""
