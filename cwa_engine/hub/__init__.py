"""The Hugging Face Hub: access, names of models, and their places on disk."""
