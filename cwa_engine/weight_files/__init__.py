"""Files of weights, cwtool's own and those of other tools, read as targets. torch-free, and nothing is unpickled."""
