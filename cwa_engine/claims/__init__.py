"""Published claims: what somebody measured, how it is measured here, and whether the two agree. torch-free."""
