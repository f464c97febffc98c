"""The Hugging Face Hub: how it is reached, and what a model is called there and on disk."""
