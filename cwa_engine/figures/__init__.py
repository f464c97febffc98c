"""Figures, data first: functions from records to a tidy table and to what is drawn of it. Nothing here draws. torch-free."""
