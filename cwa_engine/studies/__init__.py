"""Many runs asked for at once: a grid of specs, who runs it, and the answer that their reports give. torch-free."""
