"""Rankings and tables in the formats of other programs, and back. torch-free until a mask is made."""
