"""Asking SQL of thousands of run folders. torch-free; duckdb is imported when something is asked."""
