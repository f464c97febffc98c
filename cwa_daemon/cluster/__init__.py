"""Runs on Ray: one actor for each slot holds warm models, and the run folders come home. Only this room imports Ray."""
